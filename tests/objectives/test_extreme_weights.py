"""Estimators at weights thousands of nats apart, or of zero."""

import gc
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    MLP,
    VAE,
    Bound,
    Conditional,
    StandardNormal,
    bernoulli,
    dreg,
    gdreg,
    iwae,
    miwae,
    normal,
    pathwise,
    piwae,
    posteriors,
    rws,
    stl,
    vimco,
)
from pyro_vae.objectives.particles import ParticleRun
from tests.helpers.gradient_programs import (
    CATEGORICAL,
    ONE,
    categorical_guide,
    categorical_states,
    decode,
    exact_gradient,
    gradients,
    one_guide,
    t_values,
    worst,
)

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}
ENCODER = ("loc", "raw", "slope", "loc2", "raw2")


def sharp_model(p, x, width):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(p["prior_loc"], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(p, z), width).to_event(1), obs=x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [0.03, 0.01])
@pytest.mark.parametrize("estimator", [pathwise, dreg, gdreg])
def test_weights_thousands_of_nats_apart(estimator, width, dtype):
    """Only the best particle counts: the gradient is that of its log weight, path only (its F_k is 1 and F_kk is 0)."""
    parameters = {n: v.to(dtype) for n, v in ONE.items()}
    model = partial(sharp_model, width=width)
    run = partial(gradients, model=model, guide=one_guide, parameters=parameters, rows=30, x=X.to(dtype))
    torch.manual_seed(0)
    p = {n: v.expand(30, *v.shape).clone().requires_grad_() for n, v in parameters.items()}
    objective = Bound(iwae, 6, estimator=estimator)
    _, _, draw = objective.estimate(partial(model, p), partial(one_guide, p), (X.to(dtype).expand(30, 3).clone(),), {})
    apart = draw.log_w.topk(2, 0).values.diff(dim=0).abs()[0].detach()
    far = apart > 200
    assert (draw.log_w.amax(0) - draw.log_w.amin(0)).max() > 1e3 and far.any()

    found = run(objective)
    assert all(g.isfinite().all() for g in found.values())
    best = run(Bound(lambda log_w: log_w.amax(0), 6, estimator=pathwise if estimator is pathwise else stl))
    for name in ("loc", "raw", "weight", "bias"):
        torch.testing.assert_close(found[name][far], best[name][far], rtol=1e-4, atol=1e-4 * 1e3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_piwae_of_a_group_far_below_the_others(dtype):
    """Its weight in the model's gradient underflows, the guide's stays 1/M: b / a is bounded, and the gradient right."""
    parameters = {n: v.to(dtype) for n, v in ONE.items()}
    model = partial(sharp_model, width=0.02)
    run = partial(gradients, model=model, guide=one_guide, parameters=parameters, rows=30, x=X.to(dtype))
    found, model_of, guide_of = (
        run(Bound(*b)) if len(b) < 3 else run(Bound(b[0], b[1], num_groups=b[2]))
        for b in ((piwae, 1, 4), (iwae, 4), (miwae, 1, 4))
    )
    tolerance = 2e-4 if dtype is torch.float32 else 1e-9
    for name in found:
        want = guide_of if name in ENCODER else model_of
        scale = want[name].abs().max().clamp_min(1)
        torch.testing.assert_close(found[name] / scale, want[name] / scale, rtol=tolerance, atol=tolerance)


def excluding(p, x):
    """z = 2 is impossible: log w = −∞ there."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=p["prior_logits"]))
        loc = torch.einsum("...nl,nlc->...nc", z, p["weight"])
        pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)
        pyro.factor("zero", torch.where(z[..., 2] > 0, -math.inf, 0.0).to(z))


def excluding_states(p):
    probability, log_w = categorical_states(p)
    return probability, log_w + torch.tensor([0.0, 0.0, -math.inf], **F64)


def one_more(log_w):
    """log(1 + 1/K Σ_k w_k), finite where all weights are 0."""
    return log_w.exp().mean(0).log1p()


def test_particles_of_weight_zero():
    """log w = −∞ for some particles, or all but one: finite gradients, and the right mean."""
    truth = exact_gradient(excluding_states, CATEGORICAL, one_more, 3)
    found = gradients(Bound(one_more, 3, estimator=vimco), excluding, categorical_guide, CATEGORICAL, rows=20_000)
    assert worst(found, truth)[0] < 4
    p = {name: value.expand(50, *value.shape).clone().requires_grad_() for name, value in CATEGORICAL.items()}
    for estimator in (vimco, rws):
        programs = (partial(excluding, p), partial(categorical_guide, p))
        value, surrogate, _ = Bound(iwae, 3, estimator=estimator).estimate(*programs, (X.expand(50, 3).clone(),), {})
        assert value.isinf().any() and surrogate[value.isfinite()].isfinite().all()
        found = gradients(Bound(iwae, 3, estimator=estimator), excluding, categorical_guide, CATEGORICAL, rows=500)
        finite = torch.stack([g.isfinite().all(1) for g in found.values()]).all(0).double().mean()
        none = categorical_states(CATEGORICAL)[0][2] ** 3  # the share of rows whose bound is −∞: all three at z = 2
        assert abs(1 - finite - none) < 4 * (none / 500) ** 0.5


def test_a_flows_posterior():
    """Draws of a flow are scored by its inverse once they are weighed: the same log w, and dreg's mean."""
    torch.manual_seed(0)
    vae = VAE(
        StandardNormal(2),
        Conditional(MLP(2, 2 * 3, (8,)), normal),
        posteriors.FlowPosterior(MLP(3, 8, hidden=(8,)), 2, context_features=8, hidden=(8,)),
    ).double()
    x = X.expand(8, 3).clone()
    encoder = list(vae.posterior.parameters())

    def draws(estimator):
        objective, out = Bound(iwae, 3, estimator=estimator), []
        for seed in range(80):
            torch.manual_seed(seed)
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
            grads = torch.autograd.grad(loss, encoder, allow_unused=True)
            out.append(torch.cat([g.flatten() for g in grads if g is not None]))
        return torch.stack(out)

    assert t_values(draws(dreg), draws(pathwise)).abs().max() < 4.5  # some hundred coordinates, 80 draws: t, not normal


def test_a_bernoulli_vae_of_the_library():
    """dreg and pathwise of one network VAE in float32: the same mean over 100 draws."""
    torch.manual_seed(0)
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6, (4,)), bernoulli), Conditional(MLP(6, 2 * 2, (4,)), normal))
    x = torch.bernoulli(torch.full((16, 6), 0.4))

    def draws(estimator):
        out, objective = [], Bound(iwae, 8, estimator=estimator)
        for seed in range(100):
            torch.manual_seed(seed)
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
            out.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))]))
        return torch.stack(out).double()

    assert t_values(draws(dreg), draws(pathwise)).abs().max() < 4


@pytest.mark.parametrize("estimator", [pathwise, stl, dreg, gdreg])
def test_a_step_leaves_nothing_behind(estimator):
    """A hook that holds what it hangs on is never collected: 13 MB a step of MNIST, until the machine is full."""
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6), normal), Conditional(MLP(3, 4), normal))
    objective, x = Bound(iwae, 3, estimator=estimator), torch.randn(4, 3)
    for _ in range(3):
        objective.loss_and_grads(vae.model, vae.guide, x)
    gc.collect()
    runs = [kept for kept in gc.get_objects() if type(kept) is ParticleRun]
    assert not [run for run in runs if run.problem.model == vae.model]  # other tests may have failed with theirs
