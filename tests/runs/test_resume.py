"""Training that is cut off goes on to the same bits: weights, optimizer, metrics, whatever was under way."""

import math
import os
import signal
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyro_vae import MLP, VAE, Beta, Conditional, StandardNormal, adam, bernoulli, binarize, cosine, normal, warmup
from pyro_vae import fit as noisy_fit
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.inductor import compiler
from pyro_vae.errors import (
    CheckpointError,
    DeviceLostError,
    DivergedError,
    Interrupted,
    StorageError,
    Terminated,
    UsageError,
)
from pyro_vae.programs.pair import owners
from pyro_vae.runs import checkpointer as checkpointer_module
from pyro_vae.runs.checkpoint import Checkpoints
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.training.aggressive_inference import Aggressive
from pyro_vae.training.engines import choose, graph_tally, traced
from pyro_vae.training.serialize import pack, unpack
from pyro_vae.training.trainer import Trainer
from pyro_vae.training.training_state import TrainingState
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")

fit = partial(noisy_fit, verbose=False)


class Killed(BaseException):
    """The process ends here: nothing more is written."""


class Mortal(Checkpointer):
    """Saves after every step, and is killed after some."""

    interval = 0.0

    def __init__(self, path, die_after=math.inf):
        super().__init__(path, minutes=0)
        self.die_after = die_after

    def after_step(self, trainer):
        self.try_to_save(trainer)
        if trainer.state.step >= self.die_after:
            raise Killed


def grey(rows=20, device="cpu"):
    return torch.rand(rows, 6, generator=torch.Generator().manual_seed(0)).to(device)


def with_layers(*layers):
    torch.manual_seed(0)
    encoder = nn.Sequential(MLP(6, 8), *layers, nn.Linear(8, 4))
    return small_vae(posterior=Conditional(encoder, normal))


def plain():
    return with_layers(), {}


def binarized():
    return with_layers(), {"transform": binarize}


def annealed():
    vae, beta = with_layers(), Beta(2.0, lambda done: min(1.0, 2 * done))
    return beta.pair((vae.model, vae.guide)), {"scheduled": [beta], "transform": binarize}


def aggressive():
    return with_layers(), {"aggressive": Aggressive(check_every=2, max_inner=4), "transform": binarize}


def noisy_layers():
    return with_layers(nn.BatchNorm1d(8), nn.Dropout(0.3)), {"transform": binarize}


def patient():
    return with_layers(), {"patience": 1, "optimizer": adam(0.5), "transform": binarize}


def momentum():
    return with_layers(), {"optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9)}


def by_hand():
    """Programs without a module: their parameters are in Pyro's store."""
    pyro.clear_param_store()

    def model(x):
        loc = pyro.param("loc", torch.zeros(6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(1), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), scale).to_event(1))

    return (model, guide), {}


def dropping():
    return with_layers(nn.BatchNorm1d(8)), {"drop_last": True, "transform": binarize}


def in_units():
    return small_vae(likelihood=normal, features=2, seed=0), {"standardize": True}


def patient_and_annealed():
    pair, options = annealed()
    return pair, options | {"patience": 1, "optimizer": adam(0.5)}


CASES = [plain, binarized, annealed, aggressive, noisy_layers, patient, momentum, by_hand]
CASES += [dropping, in_units, patient_and_annealed]
STEPS = 3  # an epoch: 20 rows in batches of 8


def trained(case, path, die_after=math.inf, resume=False, validated=True, **more):
    """The run and its checkpointer; built anew, as a fresh process would."""
    vae, options = case()
    options = {"schedule": warmup(cosine, 0.5), "epochs": 3, "batch_size": 8} | options | more
    checkpointer = Mortal(path, die_after)
    held = binary(12, seed=1) if validated else None
    saved = checkpointer.newest() if resume else None
    x = grey() if "transform" in options else binary(20, seed=1)
    return fit(vae, x, validation=held, callbacks=[checkpointer], resume=saved, **options), checkpointer


def outcome(run, checkpointer):
    """All that a run leaves: digests of the last and the best weights, of the optimizer, and the metrics."""
    last = checkpointer.newest()
    digests = {group: tensor_digest(last.groups[group]) for group in ("model", "best", "optimizer")}
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in run.history]
    return digests, last.head["optimizer"], history, run.best_epoch, run.stopped, run.warnings


@pytest.mark.filterwarnings("ignore:.*will be used untrained")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_run_killed_after_any_step_goes_on_to_the_same_bits(case, tmp_path):
    """In the middle of an epoch, at its end, before the first step, and killed twice."""
    whole = outcome(*trained(case, tmp_path / "whole"))
    for step in (1, 2, STEPS, STEPS + 1) if HEAVY else (STEPS,):  # killed twice is killed in the middle, too
        with pytest.raises(Killed):
            trained(case, tmp_path / str(step), step)
        assert outcome(*trained(case, tmp_path / str(step), resume=True)) == whole, step
    with pytest.raises(Killed):
        trained(case, tmp_path / "twice", 2)
    with pytest.raises(Killed):
        trained(case, tmp_path / "twice", 5 if case not in (patient, patient_and_annealed) else 4, resume=True)
    assert outcome(*trained(case, tmp_path / "twice", resume=True)) == whole


@pytest.mark.filterwarnings("ignore:.*will be used untrained")
@pytest.mark.parametrize("case", CASES[:5] if HEAVY else [annealed, aggressive], ids=lambda case: case.__name__)
def test_a_traced_run_goes_on_to_the_same_bits(case, tmp_path, monkeypatch):
    """A short last batch that is traced once it is met often enough, and changing numbers, included."""
    monkeypatch.setattr(traced, "RARE", 2)
    whole = trained(case, tmp_path / "whole", engine="trace")
    assert "traced" in whole[0].engine and "refused" not in whole[0].engine
    for step in (2, 2 * STEPS + 1):
        with pytest.raises(Killed):
            trained(case, tmp_path / str(step), step, engine="trace")
        run, checkpointer = trained(case, tmp_path / str(step), resume=True, engine="trace")
        assert outcome(run, checkpointer) == outcome(*whole), step
        assert "traced" in run.engine and run.exact and choices(checkpointer) == choices(whole[1])


class Asking(VAE):
    """Asks of a number that changes in which third of training it is: a graph of each."""

    def model(self, x):
        beta = self.beta.value
        self.asked = beta > 0.3, beta > 0.7
        super().model(x)


def three_graphs():
    vae, beta = with_layers(), Beta(1.0, lambda done: done)
    asking = Asking(vae.prior, vae.likelihood, vae.posterior)
    asking.beta = beta
    return (asking.model, asking.guide), {"scheduled": [beta]}


def test_a_run_at_the_limit_of_its_graphs_leaves_them_at_the_same_step(tmp_path, monkeypatch):
    """The third graph is one too many, also for a process that never made the first."""
    monkeypatch.setattr(graph_tally, "MOST", 2)
    options = {"engine": "trace", "batch_size": 10}
    whole = trained(three_graphs, tmp_path / "whole", **options)
    assert "more than 2 kinds" in whole[0].engine
    with pytest.raises(Killed):
        trained(three_graphs, tmp_path / "cut", 3, **options)
    run, checkpointer = trained(three_graphs, tmp_path / "cut", resume=True, **options)
    assert "more than 2 kinds" in run.engine
    assert choices(checkpointer) == choices(whole[1]) and outcome(run, checkpointer) == outcome(*whole)


def choices(checkpointer):
    """What the engine had decided at the end."""
    saved = checkpointer.newest()
    return unpack(saved.head["plain"], saved.groups["optimizer"])["engine"]


def another_compiler(flat, inputs):
    """A function of the graph with other bits than the graph, as a compiled one has: in no step can one pass for the other."""

    def compiled(*given):
        return [t * (1 + 2**-20) if t.is_floating_point() else t for t in flat.module(*given)]

    return compiled


@pytest.mark.skipif(HEAVY and compiler() is None, reason="no C++ compiler")
def test_a_run_that_compiles_on_the_way_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """auto: cut before the compiler is called, and after; the flat graph's steps and the compiled ones are where they were.

    By Inductor in the long form: it takes seconds each time.
    """
    for name, value in {"WORTH_TRACE": 1, "WORTH_COMPILE": 1, "PATIENCE": 4}.items():
        monkeypatch.setattr(choose, name, value)
    made = []
    finish = traced.ACCELERATORS["compile"] if HEAVY else another_compiler
    monkeypatch.setitem(traced.ACCELERATORS, "compile", lambda *a: made.append(1) or finish(*a))
    whole = outcome(*trained(annealed, tmp_path / "whole", batch_size=10, epochs=5))
    assert len(made) == 1
    for step in (3, 8):
        with pytest.raises(Killed):
            trained(annealed, tmp_path / str(step), step, batch_size=10, epochs=5)
        assert outcome(*trained(annealed, tmp_path / str(step), resume=True, batch_size=10, epochs=5)) == whole, step
    assert len(made) == 4


def test_another_engine_goes_on_and_says_that_it_is_not_exact(tmp_path, capsys):
    with pytest.raises(Killed):
        trained(binarized, tmp_path, 4, engine="trace")
    run, checkpointer = trained(binarized, tmp_path, resume=True, engine="eager")
    said = capsys.readouterr().err
    assert "not bit-exact" in said and "engine  trace       eager" in said and not run.exact
    assert len(run.history) == 3 and checkpointer.newest().head["about"]["engine"] == "eager"


def test_a_fork_with_other_batches_is_traced_anew(tmp_path):
    with pytest.raises(Killed):
        trained(binarized, tmp_path, 4, engine="trace")
    run, _ = trained(binarized, tmp_path, resume=True, engine="trace", batch_size=5, fork=True)
    assert "for 5 rows" in run.engine


def test_the_module_under_a_handler_is_found():
    """Its parameters have names that another process gives them, too."""
    vae, beta = with_layers(), Beta(2.0)
    assert owners(*beta.pair(vae)) == [vae]


def test_without_validation_rows_it_goes_on_as_exactly(tmp_path):
    whole = outcome(*trained(binarized, tmp_path / "whole", validated=False))
    with pytest.raises(Killed):
        trained(binarized, tmp_path / "cut", 4, validated=False)
    assert outcome(*trained(binarized, tmp_path / "cut", resume=True, validated=False)) == whole


def test_keeping_a_run_changes_none_of_it(tmp_path):
    kept, _ = trained(binarized, tmp_path)
    vae, options = binarized()
    held = binary(12, seed=1)
    bare = fit(vae, grey(), validation=held, schedule=warmup(cosine, 0.5), epochs=3, batch_size=8, **options)
    assert [r | {"seconds": 0} for r in bare.history] == [r | {"seconds": 0} for r in kept.history]


@pytest.mark.parametrize("lost", ["noise", "order.now", "order.before"])
def test_a_state_without_one_of_its_generators_would_show(tmp_path, lost):
    """The test above is not blind: with a generator's state wrong, the bits are others."""
    whole = outcome(*trained(binarized, tmp_path / "whole"))
    with pytest.raises(Killed):
        trained(binarized, tmp_path / "cut", 2)
    checkpointer = Mortal(tmp_path / "cut")
    saved = checkpointer.newest()
    saved.groups["rng"][lost] = torch.Generator().manual_seed(5).get_state()
    vae, options = binarized()
    held = binary(12, seed=1)
    more = {"schedule": warmup(cosine, 0.5), "epochs": 3, "batch_size": 8}
    run = fit(vae, grey(), validation=held, callbacks=[checkpointer], resume=saved, **options, **more)
    assert outcome(run, checkpointer)[0] != whole[0]


def test_a_whole_run_is_left_as_it_is(tmp_path):
    whole = outcome(*trained(plain, tmp_path))
    before = Checkpoints(tmp_path).numbers()
    run, checkpointer = trained(plain, tmp_path, resume=True)
    assert outcome(run, checkpointer) == whole and Checkpoints(tmp_path).numbers()[0] == before[0] + 1


def test_another_run_is_refused_with_a_table_and_forks(tmp_path):
    with pytest.raises(Killed):
        trained(plain, tmp_path, 4)
    for change, said in [
        ({"epochs": 9}, r"epochs +3 +9"),
        ({"batch_size": 5}, r"batch size +8 +5"),
        ({"drop_last": True}, r"drop last +False +True"),
        ({"seed": 3}, r"seed +0 +3"),
        ({"patience": 2}, r"patience +None +2"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            trained(plain, tmp_path, resume=True, **change)
    vae, _ = plain()
    with pytest.raises(CheckpointError, match=r"data \(SHA-256\)"):
        fit(
            vae,
            1 - binary(20, seed=1),
            callbacks=[Checkpointer(tmp_path)],
            resume=Checkpointer(tmp_path).newest(),
            epochs=3,
            batch_size=8,
        )
    run, _ = trained(plain, tmp_path, resume=True, batch_size=5, epochs=4, fork=True)
    assert [r["epoch"] for r in run.history] == [1, 2, 3, 4] and run.history[-1]["step"] == 4 * 4


def test_a_state_from_before_drop_last_goes_on(tmp_path):
    whole = outcome(*trained(plain, tmp_path / "whole"))
    with pytest.raises(Killed):
        trained(plain, tmp_path / "cut", 4)
    vae, _ = plain()
    checkpointer = Mortal(tmp_path / "cut")
    saved = checkpointer.newest()
    del saved.head["about"]["drop last"]
    options = {"schedule": warmup(cosine, 0.5), "epochs": 3, "batch_size": 8}
    run = fit(vae, binary(20, seed=1), validation=binary(12, seed=1), callbacks=[checkpointer], resume=saved, **options)
    assert outcome(run, checkpointer) == whole


def test_another_models_state_is_refused_by_name_and_shape(tmp_path):
    with pytest.raises(Killed):
        trained(plain, tmp_path, 4)
    with pytest.raises(CheckpointError, match=r"another model: 'posterior.net.1.bias' is .* there and"):
        fit(
            noisy_layers()[0],
            binary(20, seed=1),
            validation=binary(12, seed=1),
            resume=Checkpointer(tmp_path).newest(),
            epochs=3,
            batch_size=8,
        )


def test_a_state_of_nan_is_refused(tmp_path):
    with pytest.raises(Killed):
        trained(plain, tmp_path, 4)
    saved = Checkpointer(tmp_path).newest()
    next(iter(saved.groups["model"].values())).fill_(math.nan)
    vae, options = plain()
    held = binary(12, seed=1)
    more = {"schedule": warmup(cosine, 0.5), "epochs": 3, "batch_size": 8}
    with pytest.raises(CheckpointError, match="non-finite"):
        fit(vae, binary(20, seed=1), validation=held, resume=saved, **options, **more)


def test_another_version_of_torch_goes_on(tmp_path):
    with pytest.raises(Killed):
        trained(plain, tmp_path, 4)
    saved = Checkpointer(tmp_path).newest()
    saved.head["about"]["torch"] = "1.0"
    vae, _ = plain()
    held = binary(12, seed=1)
    assert len(fit(vae, binary(20, seed=1), validation=held, resume=saved, epochs=3, batch_size=8).history) == 3


def test_what_a_record_holds_that_no_checkpoint_can_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"cannot hold state/fit/history/0/mine, a set"):
        trained(plain, tmp_path, on_epoch=lambda record: {"mine": {1}})


def test_plain_values_come_back():
    tensors = {}
    value = {"a": [1, 2.5, math.inf, None, True], 3: ({"t": torch.ones(2)}, "x")}
    said = pack(value, "n", tensors)
    back = unpack(said, tensors)
    assert back["a"] == value["a"] and back[3][1] == "x" and torch.equal(back[3][0]["t"], torch.ones(2))


# signals, errors, disks


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)])
def test_a_signal_finishes_the_step_saves_and_goes_on_exactly(tmp_path, number, error):
    whole = outcome(*trained(binarized, tmp_path / "whole"))
    seen = []

    def stop(x, generator):
        seen.append(len(x))
        if len(seen) == 5:
            os.kill(os.getpid(), number)  # from inside the step
        return binarize(x, generator)

    vae, _ = binarized()
    held = binary(12, seed=1)
    more = {"schedule": warmup(cosine, 0.5), "epochs": 3, "batch_size": 8}
    checkpointer, before = Checkpointer(tmp_path / "cut"), signal.getsignal(number)
    stopped = seen.clear()  # the checks before training draw, too
    with pytest.raises(error) as caught, checkpointer.listening():
        stopped = True
        fit(vae, grey(), validation=held, callbacks=[checkpointer], transform=stop, **more)
    assert stopped and caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert signal.getsignal(number) is before
    manifest = checkpointer.newest().manifest
    assert manifest["interrupted"] and f"interrupted at step {manifest['step']}" in str(caught.value)
    assert outcome(*trained(binarized, tmp_path / "cut", resume=True)) == whole


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    child = os.fork()
    if not child:
        checkpointer = Checkpointer(tmp_path)
        with checkpointer.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_an_error_of_the_users_own_saves_the_state_that_is_whole(tmp_path):
    whole = outcome(*trained(binarized, tmp_path / "whole"))

    def on_epoch(record):
        if record["epoch"] == 2:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        trained(binarized, tmp_path / "cut", on_epoch=on_epoch)
    saved = Checkpointer(tmp_path / "cut").newest()
    assert saved.manifest["interrupted"] and saved.manifest["step"] == 2 * STEPS
    assert outcome(*trained(binarized, tmp_path / "cut", resume=True)) == whole


def test_a_save_that_fails_is_tried_again_and_the_third_in_a_row_ends_training(tmp_path, monkeypatch, capsys):
    vae, options = plain()
    checkpointer, real, tries = Mortal(tmp_path), Checkpoints.save, []

    def full(self, *args, **where):
        tries.append(where["step"])
        if where["step"] in (1, 2, 4, 5, 6):
            raise StorageError("cannot write: the disk is full.")
        return real(self, *args, **where)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(StorageError):
        fit(vae, binary(20, seed=1), callbacks=[checkpointer], epochs=3, batch_size=8, **options)
    assert tries[:8] == [0, 1, 2, 3, 3, 4, 5, 6]  # 3: after the step, and after the epoch
    assert "no checkpoint at step 1" in capsys.readouterr().err and checkpointer.newest().manifest["step"] == 3


# steps that diverge


class Poisoned(VAE):
    """The likelihood is NaN on a row that holds a 7."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            d = self.likelihood(z).base_dist
            bad = (x == 7).any(-1, keepdim=True)
            pyro.sample("x", dist.Normal(d.logits.masked_fill(bad, math.nan), 1.0).to_event(1), obs=x)


def poisoned(rows):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    vae = Poisoned(StandardNormal(2), Conditional(MLP(2, 6, (8,)), bernoulli), Conditional(net, normal))
    x = grey()
    x[list(rows), 0] = 7.0
    return vae, x


def test_a_step_that_diverges_is_skipped_with_the_weights_and_buffers_untouched():
    vae, x = poisoned([13])
    held = []

    def look(done):
        held.append(tensor_digest(vae.state_dict()))

    run = fit(vae, x, epochs=2, batch_size=4, bad_steps=3, on_step=look, validation=grey()[:8])
    assert len(run.history) == 2 and all(record["rows_skipped"] == 4 for record in run.history)
    assert all(math.isfinite(record["loss"]) for record in run.history)
    untouched = [a == b for a, b in pairwise(held)]
    assert sum(untouched) == 2  # one step of five in each epoch


def test_after_some_in_a_row_training_stops_with_the_first_bad_site_and_a_capsule(tmp_path):
    vae, x = poisoned(range(20))
    start = tensor_digest(vae.state_dict())
    vae.likelihood.net[0].weight.requires_grad_(True)
    x_first = x.clone()
    x_first[:8, 0] = 0.5  # some batches are whole, so that training begins
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(DivergedError, match=r"First bad site: 'x' of the model: log-probability nan") as caught:
        fit(vae, x_first, epochs=9, batch_size=2, bad_steps=4, callbacks=[checkpointer], validation=grey()[:8])
    assert "replay it with: pyro-vae replay" in str(caught.value) and caught.value.exit_code == 5
    assert sorted(p.name for p in (tmp_path / "divergence").iterdir()) == ["capsule.json", "capsule.safetensors"]
    assert tensor_digest(vae.state_dict()) == start or caught.value.result.history
    assert all(t.isfinite().all() for t in checkpointer.newest().groups["model"].values())


def test_a_device_that_does_not_hold_a_batch_is_said_with_a_batch_that_may_fit(monkeypatch):
    from pyro_vae.errors import DeviceMemoryError
    from pyro_vae.training.step import Step

    def full(self, *batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore")

    monkeypatch.setattr(Step, "loss_and_grads", full)
    with pytest.raises(DeviceMemoryError, match=r"a batch of 8 rows on cpu does not fit .* batch_size=4") as caught:
        fit(with_layers(), binary(20, seed=1), epochs=1, batch_size=8)
    assert caught.value.exit_code == 7


class Failing:
    """A device that fails at a step, after which nothing can be read from it."""

    def __init__(self, monkeypatch, at):
        self.steps, self.at, self.patch = 0, at, monkeypatch

    def fail(self, *_, **__):
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")

    def __call__(self, done):
        self.steps += 1
        if self.steps == self.at:
            self.patch.setattr(checkpointer_module, "capture", self.fail)
            self.patch.setattr(Trainer, "settle", self.fail)
            self.fail()
        return 1.0


@pytest.mark.parametrize("where", ["in a step", "between steps"])
def test_a_device_that_fails_in_the_middle_is_said_with_the_checkpoint_to_go_on_from(where, tmp_path, monkeypatch):
    x, failing = binary(24, seed=1), Failing(monkeypatch, 8)
    checkpointer, vae = Checkpointer(tmp_path, epochs=1), with_layers()
    way = {"schedule": failing} if where == "in a step" else {"on_step": failing}
    with pytest.raises(
        DeviceLostError, match=r"^step \d.* on cpu.*answers no more \(CUDA error: unspecified"
    ) as caught:
        fit(vae, x, epochs=4, batch_size=8, callbacks=[checkpointer], verbose=False, **way)
    assert caught.value.exit_code == 9 and caught.value.result.history[-1]["epoch"] == 2
    assert "The last checkpoint so far is of step 6; go on from it with: fit(" in caught.value.__notes__[0]
    monkeypatch.undo()
    again, whole = with_layers(), with_layers()
    fit(again, x, epochs=4, batch_size=8, callbacks=[checkpointer], resume=checkpointer.newest(), verbose=False)
    fit(whole, x, epochs=4, batch_size=8, verbose=False)
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize(("said", "raised"), [("CUDA error: unspecified launch failure", False), ("other", True)])
def test_best_weights_on_a_device_that_failed_hide_no_error(said, raised):
    class Gone:
        def copy_(self, best):
            raise RuntimeError(said)

    state = TrainingState(best_tensors=[torch.zeros(1)])
    with pytest.raises(RuntimeError, match=said) if raised else nullcontext():
        state.load_best([Gone()])
