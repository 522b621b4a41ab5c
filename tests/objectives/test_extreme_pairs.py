"""Every estimator under every bound, on pairs whose weights are extreme: finite, and the model's is Σ_k F_k ∂ log p."""

import math
from functools import lru_cache, partial

import mpmath as mp
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import (
    Bound,
    ciwae,
    dreg,
    elbo,
    gdreg,
    iwae,
    jackknife,
    miwae,
    pathwise,
    piwae,
    renyi,
    rws,
    stl,
    tvo,
    vimco,
)
from pyro_vae.programs.vectorize_probe import ProbedOnce
from tests.helpers.exact_bounds import exact_slopes
from tests.helpers.gradient_programs import ONE, decode, one_guide

BOUNDS = {
    "elbo": elbo, "iwae": iwae, "miwae": miwae, "piwae": piwae, "ciwae": ciwae(0.3), "renyi_half": renyi(0.5),
    "renyi_2": renyi(2.0), "tvo": tvo(), "jackknife": jackknife(1),
}  # fmt: skip
ESTIMATORS = {e.name: e for e in (pathwise, stl, dreg, gdreg, vimco, rws)}
CASES = [
    pytest.param(bound, estimator, id=f"{b}-{e}")
    for b, bound in BOUNDS.items()
    for e, estimator in ESTIMATORS.items()
    if not (isinstance(bound, jackknife) and "dreg" in e)  # which it refuses
]
every_case = pytest.mark.parametrize(("bound", "estimator"), CASES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
ROWS, K = 5, 6
DATA = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
MASK = torch.tensor([True, False, True, False, True])


def model(p, x, width):
    """Widths of 1e4 make all weights equal; of 0.003, they are a million nats apart."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p["prior_loc"], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(p, z), width).to_event(1), obs=x)


def parameters(dtype):
    return {n: v.to(dtype).expand(ROWS, *v.shape).clone().requires_grad_() for n, v in ONE.items()}


PROBED = ProbedOnce()  # each pair, whose bounds and estimators are many


@lru_cache
def pair_of(model, dtype, **options):
    """Parameters and rows, and the programs on them."""
    p = parameters(dtype)
    return p, DATA.to(dtype).expand(ROWS, 3).clone(), (partial(model, p, **options), partial(one_guide, p))


@lru_cache
def masked_pair():
    """The pair of width 0.3, without rows 1 and 3."""
    p, _, programs = pair_of(model, torch.float64, width=0.3)
    return p, tuple(poutine.mask(program, mask=MASK) for program in programs)


@lru_cache
def slopes_of(bound, log_w):
    """F_k, from the log weights of one row in sixty digits."""
    return [float(v) for v in exact_slopes(bound, [mp.mpf(v) for v in log_w])]


def objective_of(bound, estimator):
    return Bound(bound, K // 2 if bound in (miwae, piwae) else K, estimator=estimator,
                 num_groups=2 if bound in (miwae, piwae) else None)  # fmt: skip


@every_dtype
@pytest.mark.parametrize("width", [1e4, 0.3, 0.03, 0.003], ids=["flat", "plain", "sharp", "sharpest"])
@every_case
def test_the_models_gradient(bound, estimator, width, dtype):
    """F_k in sixty digits, for the log weights that were drawn; ∂ log p as autograd has it, particle by particle."""
    torch.manual_seed(0)
    p, x, programs = pair_of(model, dtype, width=width)
    with PROBED:
        value, surrogate, draw = objective_of(bound, estimator).estimate(*programs, (x,), {})
    leaves = list(p.values())
    found = dict(
        zip(p, torch.autograd.grad(surrogate.sum(), leaves, retain_graph=True, allow_unused=True), strict=True)
    )
    assert value.isfinite().all() and all(g.isfinite().all() for g in found.values() if g is not None)

    log_w = draw.log_w.detach().reshape(-1, ROWS)
    slopes = [slopes_of(bound, tuple(row)) for row in log_w.T.tolist()]
    weights = torch.tensor(slopes, dtype=torch.float64).T
    sizes = []
    decoder = [p["weight"], p["bias"]]
    truth = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in decoder]
    for k in range(K):
        parts = torch.autograd.grad(draw.terms.reconstruction[k].sum(), decoder, retain_graph=True)
        for total, part in zip(truth, parts, strict=True):
            total += weights[k].reshape(-1, *[1] * (part.dim() - 1)) * part.double()
        sizes.append(max(part.abs().max().item() for part in parts))
    rounding = 200 * torch.finfo(dtype).eps * max(sizes) * max(1.0, weights.abs().max().item())
    if isinstance(bound, jackknife):  # logarithms of sums that lie so far below 0 are rounded by as much
        rounding *= max(1.0, (log_w.amax(0) - log_w.amin(0)).max().item() / 1e4)
    for name, total in zip(("weight", "bias"), truth, strict=True):
        assert (found[name].double() - total).abs().max() <= rounding, name


@every_case
def test_masked_rows_have_no_gradient_and_change_none(bound, estimator):
    """Rows 1 and 3 are masked, and their weights are extreme: exactly 0 there, and elsewhere what it is without a mask."""
    x = DATA.expand(ROWS, 3).clone()
    x[1], x[3] = 1e8, -1e8
    grads = []
    p, masked = masked_pair()
    for programs in (masked, pair_of(model, torch.float64, width=0.3)[-1]):
        torch.manual_seed(0)
        with PROBED:
            loss = objective_of(bound, estimator).differentiable_loss(*programs, x)
        grads.append(torch.autograd.grad(loss, list(p.values()), allow_unused=True))
    for name, with_mask, without in zip(ONE, *grads, strict=True):
        if with_mask is not None:
            assert (with_mask[~MASK] == 0).all(), name
            torch.testing.assert_close(with_mask[MASK], without[MASK], rtol=1e-12, atol=1e-12)


def zero_weights(p, x):
    """One particle in so many lies where log p(x, z) = −∞."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p["prior_loc"], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(p, z), 0.3).to_event(1), obs=x)
        pyro.factor("wall", torch.where(z[..., 0] > 0, 0.0, -math.inf).to(z))


@every_case
def test_weights_of_zero_leave_no_nan(bound, estimator):
    """Where a row's bound is finite, so is its gradient, and the other rows are not touched."""
    torch.manual_seed(0)
    p, x, programs = pair_of(zero_weights, torch.float64)
    with PROBED:
        value, surrogate, draw = objective_of(bound, estimator).estimate(*programs, (x,), {})
    assert draw.log_w.isinf().any() and not value.isnan().any()
    finite = value.isfinite()
    for gradient in (
        torch.autograd.grad(surrogate[finite].sum(), list(p.values()), allow_unused=True) if finite.any() else ()
    ):
        assert gradient is None or gradient[finite].isfinite().all()
