"""The engines that a device has, on that device: a CUDA graph on a GPU, a trace on a CPU, beside the programs as they run."""

from contextlib import contextmanager
from functools import lru_cache, partial

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import Bound, Checkpointer, adam, binarize, cosine, fit, fit_ensemble, iwae, log_likelihood, warmup
from pyro_vae.training.engines.recorded_steps import STEPS
from tests.ensembles.test_as_alone import SEEDS, alone, assert_same
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary, small_vae


@pytest.fixture
def engine(device):
    return "graph" if device.type == "cuda" else "trace"


def trained(engine, x, **options):
    vae = small_vae(device=x.device, seed=0).double()
    run = fit(
        vae, x, engine=engine, epochs=2, batch_size=8, seed=5, schedule=warmup(cosine, 0.3), verbose=False, **options
    )
    return vae, run


@pytest.mark.parametrize(("objective", "transform"), [(Trace_ELBO, None), (partial(Bound, iwae, 3), binarize)])
def test_a_run_is_that_of_the_programs(objective, transform, engine, device):
    steps = 2 * STEPS + 5 if engine == "graph" else 4  # one by one, and in replays of several; and an uneven one
    grey = torch.rand(8 * steps + 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (grey if transform else grey.round()).to(device)
    options = {"transform": transform, "optimizer": adam(1e-2)}
    (plain, a), (other, b) = (trained(e, x, objective=objective(), **options) for e in ("eager", engine))
    assert "eager" in a.engine and "eager" not in b.engine.splitlines()[0], b.engine
    for old, new in zip(a.history, b.history, strict=True):
        assert (old["step"], old["lr"]) == (new["step"], new["lr"])
        assert [new[k] for k in ("loss", "elbo")] == pytest.approx([old[k] for k in ("loss", "elbo")], rel=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-6, atol=1e-6)


@contextmanager
def deterministic(device, monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(device.type == "cuda" or before)
    yield
    torch.use_deterministic_algorithms(before)


class Killed(Checkpointer):
    """Ends a training after so many steps as a kill does: with what is on the disk by then."""

    at = 0

    def after_step(self, trainer):
        self.save(trainer)
        if trainer.state.step >= self.at:
            raise ArithmeticError("killed")

    def on_error(self, trainer, error):
        self.writer.release()
        return ""


RESUMED = {"transform": binarize, "optimizer": adam(1e-2)}


@lru_cache
def uncut(engine, device):
    """The rows of the runs that are killed, and the run that is not."""
    steps = 2 * STEPS + 5 if engine == "graph" else 5
    x = binary(8 * steps + 3, device).double()
    return steps, x, *trained(engine, x, **RESUMED)


SHARES = {"in the first epoch": 0.3, "between two": 0.5} | ({"in the second": 0.8} if HEAVY else {})


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(share, engine, device, tmp_path, monkeypatch):
    with deterministic(device, monkeypatch):
        steps, x, whole, run = uncut(engine, device)
        killed = Killed(tmp_path)
        killed.at = int(share * 2 * (steps + 1))
        with pytest.raises(ArithmeticError, match=r"^killed$"):
            trained(engine, x, callbacks=[killed], **RESUMED)
        checkpointer = Checkpointer(tmp_path)
        again, rest = trained(engine, x, callbacks=[checkpointer], resume=checkpointer.newest(), **RESUMED)
    assert "eager" not in rest.engine.splitlines()[0] and rest.exact
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    wanted, found = ([{**of, "seconds": 0} for of in r.history] for r in (run, rest))
    assert found == wanted


def test_members_of_an_ensemble_are_the_lone_runs(device):
    def make():
        return small_vae().to(device)

    x, options = binary(15, device), {"epochs": 1, "batch_size": 5}
    ensemble = fit_ensemble(make, x, seeds=SEEDS, engine="trace", verbose=False, **options)
    assert "2 members as one graph" in ensemble.results[0].engine
    assert_same(ensemble, [alone(make, seed, x, **options) for seed in SEEDS])


def test_particles_are_weighed_as_by_the_programs(device):
    """Whole blocks: of 64 rows and 64 particles on a CPU, and 4,096 on a GPU."""
    particles = 4096 if device.type == "cuda" else 128
    x, vae = binary(64, device), small_vae(device=device, seed=0)
    score = partial(log_likelihood, vae.model, vae.guide, x, num_samples=particles, verbose=False)
    plain, traced = score(engine="eager"), score(engine="trace")
    assert "operations traced" in traced.engine_note and "programs themselves" not in traced.engine_note
    torch.testing.assert_close(traced.log_px, plain.log_px, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(traced.ess, plain.ess, rtol=1e-4, atol=0)
