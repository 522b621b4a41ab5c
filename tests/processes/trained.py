"""Trainings in shards, run by each rank of a test: what is left of them goes into files, to be compared to the bit."""

import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Checkpointer,
    Conditional,
    StandardNormal,
    StopTraining,
    adam,
    bernoulli,
    binarize,
    constant,
    cosine,
    dreg,
    elbo,
    fit,
    iwae,
    normal,
    warmup,
)
from pyro_vae.common.exchange import agree
from pyro_vae.common.parts_of_rows import PartsOfRows
from pyro_vae.common.processes import joined, processes
from pyro_vae.common.spread import by_itself
from pyro_vae.diagnostics import latent_usage
from pyro_vae.errors import DivergedError, NoWeightError, OtherMaskError, ProcessesError, UsageError
from pyro_vae.priors.vamp import VampPrior
from pyro_vae.training import gradient_tree, metrics, shards
from pyro_vae.training.checkpoint_state import capture
from pyro_vae.training.engines import graph_tally, traced
from pyro_vae.training.gradient_tree import TreeSum
from pyro_vae.training.trainer import TrainingCallback

from . import sharded

ROWS = torch.tensor(load_digits().data, dtype=torch.float32) / 16


class Captured(TrainingCallback):
    """The whole state at the end: weights, best weights, optimizer and generators."""

    def after_training(self, trainer):
        head, groups = capture(trainer)
        self.head, self.tensors = head, {f"{g}/{n}": t.clone() for g, ts in groups.items() for n, t in ts.items()}


def small():
    """A VAE of the digits, with the same weights in each process."""
    pyro.set_rng_seed(0)
    return VAE(StandardNormal(4), Conditional(MLP(4, 64, (32,)), bernoulli), Conditional(MLP(64, 8, (32,)), normal))


def with_vamp():
    pyro.set_rng_seed(0)
    posterior = Conditional(MLP(64, 8, (32,)), normal)
    return VAE(VampPrior(posterior, 10, 64, bounds=(0, 1)), Conditional(MLP(4, 64, (32,)), bernoulli), posterior)


def elbo_case(**more):
    return small(), {"shards": 8, "batch_size": 96, "epochs": 3, **more}


def dreg_case():
    return small(), {
        "shards": 8,
        "batch_size": 100,
        "epochs": 2,
        "objective": Bound(iwae, num_particles=4, estimator=dreg),
    }


def beta_case():
    """β in a warm-up, a schedule of the learning rate, and an early stop; a last batch of fewer rows than shards."""
    vae, beta = small(), Beta(1.0, warmup(constant, 0.1))
    options = {
        "shards": 8,
        "batch_size": 33,
        "epochs": 60,
        "patience": 1,
        "schedule": warmup(cosine),
        "scheduled": [beta],
    }
    return beta.pair(vae), options | {"optimizer": adam(lr=2e-2), "rows": 102}


def stopped_case():
    """One rank alone stops, as by a clock; each has another rate of a clock's, of which rank 0's counts."""

    def stop(record):
        if processes().rank == processes().world - 1 and record["epoch"] == 2:
            raise StopTraining("enough")
        return None if processes().leads else {"seen": "by another"}

    late = 0.5 ** (not processes().leads)
    return elbo_case(epochs=5, rows=300, on_epoch=stop, schedule=lambda done: 1.0 if done < 0.1 else late)


def nan_case():
    """Rows of NaN loss in a shard of the last rank: the step is skipped by all."""

    def spoiled(x, generator):
        x = binarize(x, generator)
        if len(x) == 96 and torch.rand((), generator=generator) < 0.3:
            x[-1, 0] = torch.inf  # no step is checked against the support
        return x

    return elbo_case(epochs=2, transform=spoiled, bad_steps=4)


CASES = {
    "eager": partial(elbo_case, rows=300, epochs=2),
    "trace": partial(elbo_case, engine="trace"),
    "dreg": dreg_case,
    "vamp": lambda: (with_vamp(), {"shards": 4, "batch_size": 96, "epochs": 2, "engine": "trace", "rows": 300}),
    "beta": beta_case,
    "stopped": stopped_case,
    "nan": nan_case,
}


def train(name, rows=600, **more):
    """Train a case; return the result, and its whole state."""
    pair, options = (CASES | HEAVY_CASES)[name]()
    captured = Captured()
    rows, validation = options.pop("rows", rows), ROWS[1000:1200].bernoulli(generator=torch.Generator().manual_seed(0))
    options.setdefault("transform", binarize)
    result = fit(pair, ROWS[:rows], validation=validation, callbacks=[captured], verbose=False, **(options | more))
    return result, captured


HEAVY_CASES = {
    "compile": partial(elbo_case, engine="compile"),
    "long": partial(elbo_case, epochs=60, engine="trace", rows=1500),
}


def leave(folder, *names):
    """Train cases in this rank, and leave a file of each."""
    with (
        suppress(ArithmeticError, ProcessesError),
        joined("cpu", timeout=60) as here,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(gradient_tree, "LARGE", 256)  # weights are sent as they lie, biases together
        for name in names:
            write(Path(folder) / f"{name}-{here.rank}", *train(name))
        leave_untreed(Path(folder) / f"untreed-{here.rank}")
        leave_doubted(Path(folder), here.rank)
        leave_at_limit(Path(folder), here.rank)
        if here.world == 2:
            differ(here, Path(folder) / "run")
            sharded.gathered_and_resumed(here, Path(folder))
            (Path(folder) / f"all-{here.rank}").touch()
            sharded.stopped_by_an_error(Path(folder) / "failed")  # at last, as it ends the group


class InTurn(TreeSum):
    """Not what the package does: sums one after the other."""

    def add(self, leaf):
        self.held = [(1, self.held[0][1].add(leaf) if self.held else leaf)]


def leave_untreed(path):
    """Train with sums in the order of each process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "TreeSum", InTurn)
        write(path, *train("eager"))


def leave_doubted(folder, rank):
    """Train by graphs that are found to be wrong on a shard of rank 0 in the second epoch, and of rank 1 in the third."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(traced.TracedEngine, "check", doubting(traced.TracedEngine.check))
        patched.setattr(traced, "TRIES", 1)
        patched.setattr(traced.TracedEngine, "assign_gradients", off(traced.TracedEngine.assign_gradients))
        result, captured = train("trace")
    write(folder / f"doubted-{rank}", result, captured)
    (folder / f"doubted-{rank}.txt").write_text(result.engine)


def leave_at_limit(folder, rank):
    """Train by one graph at most, of batches whose shards are of two kinds: 13 rows are rank 0's, and 12 are rank 1's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(graph_tally, "MOST", 1)
        patched.setattr(traced.TracedEngine, "assign_gradients", off(traced.TracedEngine.assign_gradients))
        result, captured = train("trace", rows=400, batch_size=100, epochs=1)
    write(folder / f"limit-{rank}", result, captured)
    (folder / f"limit-{rank}.txt").write_text(result.engine)


def doubting(check):
    """Fail a check of a graph from an earlier step on a shard of 12 rows with few ones."""

    def doubted(engine, key, flat, batch):
        few = len(batch[0]) == 12 and batch[0].sum() < 226 and flat not in engine.several.fresh
        with pytest.MonkeyPatch.context() as patched:
            if few:
                patched.setattr(traced, "disagreement", lambda *_: (1.0, "doubted"))
            return check(engine, key, flat, batch)

    return doubted


def off(assign):
    """Gradients of graphs, which count their traces, are off by that much: how a step was computed shows in the weights."""

    def assigned(engine, loss, gradients):
        more = 1.0 + (1 + engine.failed_checks) / 64
        return assign(engine, loss, [None if g is None else g * more for g in gradients])

    return assigned


def differ(here, folder):
    """What ranks must agree on is named on all of them, and the group goes on."""
    common = {"shards": 2, "batch_size": 48, "epochs": 1, "transform": binarize, "verbose": False}
    x, odd = ROWS[:96], here.rank == 1

    def refused(said, vae, x=x, error=UsageError, **more):
        with pytest.raises(error, match=said):
            fit(vae, x, **(common | more))

    refused(r"shards=1 cannot be shared by 2 processes.*take shards=2", small(), shards=1)
    refused(
        r"the training must be the same on each rank: rank 1 has .*\"rows\": 95}, and rank 0",
        small(),
        x[: 96 - odd],
    )
    refused("the training must be the same.*epochs", small(), epochs=1 + odd)
    refused("the loss of the first shard .* rank 1 has", small(), objective=Bound(elbo, num_particles=1 + odd))
    other = small()
    with torch.no_grad():
        other.likelihood.net[0].bias += float(odd)
    refused("the weights to begin with .*must be the same on each rank: rank 1", other)

    def move(record):
        if odd:
            with torch.no_grad():
                moved.likelihood.net[0].bias += 1e-7

    moved = small()
    refused("after epoch 1 rank 1 has other weights than rank 0", moved, error=ProcessesError, on_epoch=move)

    epochs = []

    def last_row_bad(x, generator):
        x = binarize(x, generator)
        x[-1] += torch.inf if epochs else 0.0  # no step is checked against the support
        return x

    class Failing:
        """Raises in the parts of a rank, 1 by default."""

        def __init__(self, make, error=None, there=odd):
            self.make, self.error, self.there = make, error or ValueError("rows are odd"), there

        def __call__(self, problem, *more):
            if self.there:
                raise self.error
            return self.make(problem, *more)

    own = []

    def part(i):
        own.append(i)
        return {"number": torch.tensor([i]), "noise": torch.rand(1)}

    shared = PartsOfRows(4, (1,), "numbers")
    made = shared(5, part)
    # in the order of the rows: sums of float32 are exact in float64, so that no history would show another
    assert [int(one["number"]) for one in made] == [0, 1, 2, 3, 4] and own == list(range(here.rank, 5, 2))
    with by_itself():
        assert all(map(torch.equal, *([one["noise"] for one in parts] for parts in (made, shared(5, part)))))
    with pytest.MonkeyPatch.context() as patched:  # as one process would: no figures of the latents, and no ELBO at all
        patched.setattr(latent_usage, "measured", Failing(latent_usage.measured))
        figures = fit(with_vamp(), x, **common).history[0]
        assert [figures[key] for key in metrics.LATENT_KEYS] == [None] * 5 and figures["elbo"] < 0
        patched.setattr(metrics, "part_of_pass", Failing(metrics.part_of_pass))
        raised = (
            (ValueError, "^rows are odd") if odd else (ProcessesError, "the ELBO .* rank 1 ended with ValueError: rows")
        )
        refused(raised[1], small(), error=raised[0])
    for there, rows in ((odd, 9), (not odd, 1)):  # of one row rank 1 has no part: it hears of the error all the same
        with pytest.MonkeyPatch.context() as patched:
            none = OtherMaskError("site 'z' is masked in the guide alone")
            patched.setattr(metrics, "part_of_pass", Failing(metrics.part_of_pass, none, there))
            run = fit(small(), x, validation=x[:rows].round(), **common)
            agree("what is said of no ELBO", [run.history[0]["no_elbo"], run.warnings])
            assert run.history[0]["elbo"] is None and run.history[0]["no_elbo"] == str(none)
        with pytest.raises(NoWeightError, match=r"^site 'z' is masked"):
            PartsOfRows(4, (1,), "numbers", (ZeroDivisionError, NoWeightError))(rows, Failing(part, none, there))
    diverging = {"transform": last_row_bad, "on_epoch": epochs.append, "epochs": 2}  # in the shard of rank 1
    refused("step 3: the loss is .* on rows", small(), error=DivergedError, **diverging)
    with by_itself():
        alone = fit(small(), x, **(common | {"shards": 1, "epochs": 1 + odd}))
    assert len(alone.history) == 1 + odd
    checkpointer = Checkpointer(folder)  # rank 0 alone writes
    run = fit(small(), x, callbacks=[checkpointer], **common)
    agree("the end", run.best_epoch)
    refused("the state to resume from", small(), resume=None if odd else checkpointer.newest())
    (folder.parent / f"well-{here.rank}").touch()


def write(path, result, captured):
    save_file(captured.tensors, path.with_suffix(".safetensors"))
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in result.history]
    facts = {"history": history, "stopped": result.stopped, "best": result.best_epoch, "warnings": result.warnings}
    path.with_suffix(".json").write_text(json.dumps(facts))


def read(path):
    return load_file(path.with_suffix(".safetensors")), json.loads(path.with_suffix(".json").read_text())


def assert_same(one, other):
    """The same bits: tensors of the whole state, and the history."""
    (tensors, facts), (others, other_facts) = read(one), read(other)
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    assert facts == other_facts
