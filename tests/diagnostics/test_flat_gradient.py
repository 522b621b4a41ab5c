"""Gaps by gradients from a graph: the numbers that the programs give, and the programs where it cannot be trusted."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import gaps, normal
from pyro_vae.diagnostics import flat_gradient, per_row_optimum
from pyro_vae.diagnostics.inference_gaps import Gaps
from tests.helpers.environment import HEAVY
from tests.helpers.importance import Chain, GammaPoisson
from tests.helpers.small import binary, small_vae

gaps = partial(gaps, steps=12, num_particles=3, num_samples=20, verbose=False)


@pytest.fixture
def reasons(monkeypatch):
    """Traces from the first step on; the list is filled with what each chunk of rows fell back for."""
    made = []

    class Kept(flat_gradient.FlatGradient):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(per_row_optimum, "FlatGradient", Kept)
    monkeypatch.setattr(flat_gradient, "WORTH_TRACE", 0)
    monkeypatch.setattr(flat_gradient, "WORTH_FIRST", 0)
    return made


def by_programs(monkeypatch, run) -> Gaps:
    with monkeypatch.context() as never:
        never.setattr(flat_gradient, "WORTH_TRACE", 10**9)
        never.setattr(flat_gradient, "WORTH_FIRST", 10**9)
        return run()


def check_same(monkeypatch, run, within=0.0):
    traced, programs = run(), by_programs(monkeypatch, run)
    for name in ("best_elbo", "elbo", "log_px", "improvement"):
        torch.testing.assert_close(getattr(traced, name), getattr(programs, name), rtol=0, atol=within)


def neural(**parts):
    vae = small_vae(seed=0, **parts)
    return vae.model, vae.guide, binary(9)


def one_site(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(((x + 2) / 2).log(), 0.8))


PAIRS = {
    "bernoulli": neural,
    "normal": partial(neural, likelihood=normal, features=2),
    "positive": lambda: (GammaPoisson().model, one_site, GammaPoisson.x[:9]),
}


@pytest.mark.parametrize("name", PAIRS if HEAVY else ["bernoulli", "positive"])  # of networks: one
def test_the_best_of_each_row_is_that_of_the_programs(name, reasons, monkeypatch):
    within = 1e-9 if name == "positive" else 0.0  # where a support is looked at, gradients are added in another order
    check_same(monkeypatch, lambda: gaps(*PAIRS[name](), chunk_size=100), within)  # chunks of 5 rows and of 4
    assert [g.eager_reason for g in reasons[:2]] == [None, None] and all(g.checked for g in reasons[:2])
    assert all("before a trace pays" in g.eager_reason for g in reasons[2:])


def test_a_program_that_reads_a_number_back(reasons, monkeypatch):
    o = Chain(9)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 if z.abs().max() < 1e6 else 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.9))

    check_same(monkeypatch, lambda: gaps(model, guide, o.x))
    assert "Tensor.__bool__() reads numbers back (after site 'z')" in reasons[0].eager_reason


@pytest.mark.parametrize("wrong", ["one value", "a flag"])
def test_a_graph_that_is_wrong_or_flagged_leaves_the_programs_numbers(wrong, reasons, monkeypatch):
    made = flat_gradient.flat_evaluation

    def broken(*args):
        flat = made(*args)

        def run(*inputs):
            *gradients, flag = flat(*inputs)
            return [*gradients[:-1], gradients[-1] + 1e-3, flag] if wrong == "one value" else [*gradients, ~flag]

        return run

    monkeypatch.setattr(flat_gradient, "flat_evaluation", broken)
    check_same(monkeypatch, lambda: gaps(*neural()))
    assert reasons[0].eager_reason == ("its gradient is not that of the programs" if wrong == "one value" else None)
    assert not reasons[0].checked
