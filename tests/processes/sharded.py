"""Checkpoints of networks that are sharded over two processes, as each of them makes and takes them."""

from functools import partial

import pytest
import torch
from torch import distributed

from pyro_vae import MLP, VAE, Checkpointer, Conditional, StandardNormal, fit, normal
from pyro_vae.common.exchange import agree
from pyro_vae.common.safe_read import dump
from pyro_vae.errors import ProcessesError, UsageError
from pyro_vae.training.trainer import TrainingCallback

X = torch.randn(96, 5, generator=torch.Generator().manual_seed(1))


def small():
    torch.manual_seed(0)
    likelihood = Conditional(MLP(2, 10, hidden=(7,)), normal)  # 7 rows are not cut evenly
    return VAE(StandardNormal(2), likelihood, Conditional(MLP(5, 4, hidden=(8,)), normal))


def parted(of=("posterior", "likelihood")):
    """A VAE of which these networks are sharded over all processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    vae, mesh = small(), init_device_mesh("cpu", (distributed.get_world_size(),))
    for role in of:
        fully_shard(getattr(vae, role).net, mesh=mesh)
    return vae


def train(vae, folder=None, **more):
    """Train for two epochs, from the newest checkpoint in a folder, where there is one."""
    checkpointer = None if folder is None else Checkpointer(folder)
    loop = partial(torch.optim.Adam, lr=0.01, foreach=False)  # as sharded parameters need it
    common = {
        "epochs": 2,
        "batch_size": 24,
        "validation": X[:50],
        "engine": "eager",
        "optimizer": loop,
        "verbose": False,
    }
    if checkpointer is not None:
        common |= {"callbacks": [checkpointer], "resume": checkpointer.newest()}
    return fit(vae, X, **(common | more))


class Stop(TrainingCallback):
    """Ends a training after two steps by an error of its own."""

    def after_step(self, trainer):
        if trainer.state.step == 2:
            raise ArithmeticError("enough")


class Fails(TrainingCallback):
    """Fails on rank 1 after six steps, two after a checkpoint; rank 0 goes on to the next, and waits there."""

    def after_step(self, trainer):
        if trainer.state.step == 6 and trainer.step.here.rank == 1:
            raise ArithmeticError("enough")


def stopped_by_an_error(folder):
    """Train until rank 1 fails, which ends all; note what each is told."""
    try:
        train(parted(), callbacks=[Checkpointer(folder, epochs=1), Fails()])
    except (ArithmeticError, ProcessesError) as error:
        told = "\n".join([f"{type(error).__name__}: {error}", *error.__notes__])
        (folder.parent / f"{folder.name}-{distributed.get_rank()}.txt").write_text(told)
        raise


def begun(folder):
    """Leave the checkpoint of a whole network that was stopped in the middle of an epoch."""
    with pytest.raises(ArithmeticError, match="enough"):
        train(small(), callbacks=[Checkpointer(folder), Stop()])


def tensors_of(folder):
    """Return everything of the newest checkpoint: weights, best weights, moments, generators."""
    groups = Checkpointer(folder).newest().groups
    return {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}


class Told(TrainingCallback):
    """Hears a signal after a step, as a Checkpointer does when its process is told to end."""

    def __init__(self, number):
        self.signal, self.number = None, number

    def after_step(self, trainer):
        self.signal = self.number


def gathered_and_resumed(here, folder):
    """What W processes leave in `folder`: a run told to stop after a step of its first epoch, by rank 1; and finished."""
    told = Told(15 if here.rank == here.world - 1 else None)
    checkpointer = Checkpointer(folder / "parted")
    with pytest.raises(KeyboardInterrupt):
        train(parted(), callbacks=[told, checkpointer])
    run = train(parted(), folder / "parted")
    agree("the end", [run.best_epoch, run.exact])
    train(parted(), folder / "whole")  # which a whole network has begun
    refused(here, folder / "parted")


def refused(here, folder):
    """What ranks must agree on is named on all of them, and the group goes on."""
    odd = here.rank == 1

    def fails(said, vae, error=UsageError, **more):
        with pytest.raises(error, match=said):
            train(vae, **more)

    fails(
        "how the networks are sharded must be the same on each rank", parted(("posterior",) if odd else ("likelihood",))
    )
    fails("callbacks= of networks that are sharded .* rank 1 has .*Told", parted(), callbacks=[Told(None)] * odd)
    seen = None if odd else Checkpointer(folder).newest()  # as where the hosts share no file system
    fails(
        r"resumes from a checkpoint \(resume=, of a folder that all processes see\) must be the same",
        parted(),
        resume=seen,
    )
    vae = parted()
    with pytest.raises(UsageError, match="sharded over 2 processes, and this one has a part of it"):
        dump(vae.state_dict())
    fails("the training must be the same on each rank: rank 1", vae, seed=int(odd))
