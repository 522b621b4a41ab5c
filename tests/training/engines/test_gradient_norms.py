"""Bounds of gradients' norms by their factors: never below the norm, finite only where the gradient is."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import fit
from pyro_vae.training.engines.gradient_norms import by_factors
from tests.helpers.environment import HEAVY


def graphs(a, b):
    """A graph of ‖a b‖ and ‖(a b)ᵀ‖, and the same by factors."""

    def f(a, b):
        norms = [torch.linalg.vector_norm(a @ b), torch.linalg.vector_norm((a @ b).t())]
        return [torch.stack(norms), *norms]

    bounded = make_fx(f)(a, b)
    by_factors(bounded, [a, b], 1)
    return make_fx(f)(a, b)(a, b)[0], bounded(a, b)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_bound_is_no_smaller_than_the_norm_and_of_rank_one_the_norm(rows):
    draws = torch.Generator().manual_seed(rows)
    exact, results = graphs(torch.randn(50, rows, generator=draws), torch.randn(rows, 40, generator=draws))
    assert len(results) == 1 and (results[0] >= exact * (1 - 1e-6)).all()
    assert rows > 1 or torch.allclose(results[0], exact)
    assert rows == 1 or (results[0] > exact * 1.01).all()  # it is the bound indeed


def test_factors_larger_than_the_product_are_left():
    exact, results = graphs(torch.randn(4, 99), torch.randn(99, 4))
    assert torch.equal(results[0], exact)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("other", [0.0, 1.0], ids=["zeros", "ones"])
def test_what_is_not_finite_shows(bad, where, other):
    factors = [torch.full((50, 2), other), torch.full((2, 40), other)]
    factors[where][0, 1] = bad
    _, results = graphs(*factors)
    assert not results[0].isfinite().any()


class Large(nn.Module):
    """q(z | x) = N(10⁻²⁰ (10²⁰ x) w, 1): the gradient by w is of the size of x, one factor's squares are beyond float32."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(40, 8))

    def model(self, x):
        pyro.module("large", self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z] * 5, -1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("large", self)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(1e-20 * ((1e20 * x) @ self.w), 1.0).to_event(1))


def test_a_step_whose_bound_overflows_is_made_singly_and_right():
    x = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    ends, results = [], []
    graph = "compile" if HEAVY else "trace"
    for engine in ("eager", graph):
        pyro.clear_param_store()
        torch.manual_seed(0)
        programs = Large()
        results.append(fit((programs.model, programs.guide), x, epochs=4, batch_size=2, engine=engine, verbose=False))
        ends.append(programs.w.detach())
    assert f"engine {graph}" in results[1].engine and "eager from here on" not in results[1].engine
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
