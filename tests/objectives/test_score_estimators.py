"""Estimators for draws without a path, VIMCO and reweighted wake-sleep: exact means by summing over all tuples of particles."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch.nn.functional import softplus

from pyro_vae import Beta, Bound, ciwae, dreg, elbo, gdreg, iwae, miwae, pathwise, piwae, renyi, rws, tvo, vimco
from pyro_vae.errors import UsageError
from pyro_vae.objectives.gradient_estimators import first
from pyro_vae.objectives.leave_one_out import without_one
from tests.helpers.gradient_programs import (
    CATEGORICAL,
    MIXED,
    PROGRAMS,
    TWO,
    categorical_guide,
    categorical_model,
    categorical_states,
    exact_gradient,
    gradients,
    loss_of,
    mixed_model,
    normal_first,
    over_tuples,
    t_values,
    two_guide,
    two_model,
    worst,
    wrong,
)

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}
ENCODER = ("loc", "raw", "slope", "loc2", "raw2")


# the means: doubly reparameterised, sticking the landing


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_vimco_under_beta(beta):
    """β is in the weights; draws come from q, not from q^β, whose score it is."""

    def states(p):
        probability, log_w = categorical_states(p)
        log_px = dist.Normal(p["weight"], 0.7).log_prob(X).sum(-1)
        return probability, log_px + beta * (log_w - log_px)

    truth = exact_gradient(states, CATEGORICAL, iwae, 3)
    objective = Bound(iwae, 3, estimator=vimco)
    programs = (categorical_model, categorical_guide, CATEGORICAL)
    t, where = worst(gradients(objective, *programs, rows=20_000, wrap=Beta(beta)), truth)
    assert t < 4, where


# draws without a path: exact means by summing over all tuples of K particles


@pytest.mark.parametrize(
    ("bound", "k"), [(elbo, 2), (iwae, 2), (iwae, 4), (renyi(0.5), 3), (ciwae(0.3), 3), (tvo(3, 0.1), 3)]
)
def test_vimco_against_all_tuples(bound, k):
    truth = exact_gradient(categorical_states, CATEGORICAL, bound, k)
    found = gradients(Bound(bound, k, estimator=vimco), categorical_model, categorical_guide, CATEGORICAL, rows=20_000)
    t, where = worst(found, truth)
    assert t < 4, where


@pytest.mark.parametrize("estimator", [vimco, rws])
def test_runs_of_one_particle_each_agree_with_one_run(estimator):
    """vectorize_particles=False: the same mean."""
    programs = (categorical_model, categorical_guide, CATEGORICAL)
    a, b = (gradients(Bound(iwae, 3, estimator=estimator, vectorize_particles=v), *programs, seed=v) for v in (0, 1))
    for name in a:
        error = ((a[name].var(0) + b[name].var(0)) / ROWS).sqrt()
        assert ((a[name].mean(0) - b[name].mean(0)).abs() <= 4 * error).all(), name


@pytest.mark.parametrize("bound", [elbo, iwae, renyi(0.5), miwae])
def test_the_baseline_is_of_the_other_particles(bound):
    """F with log w_k replaced by the mean of its group's others, one by one; for the ELBO that mean itself."""
    log_w = torch.randn(*((2,) if bound is miwae else ()), 4, 3, **F64)
    found = without_one(bound, log_w)
    assert found.shape == log_w.shape
    for index in itertools.product(*(range(n) for n in log_w.shape[:-1])):
        *group, k = index
        others = [log_w[(*group, j)] for j in range(4) if j != k]
        replaced = log_w.clone()
        replaced[index] = sum(others) / 3
        torch.testing.assert_close(found[index], bound(replaced))
        if bound is elbo:
            torch.testing.assert_close(found[index], sum(others) / 3)


def test_the_baseline_of_weights_that_are_zero():
    """−∞ of one is no matter to its own baseline; where all others are −∞, a constant that is none of k's business."""
    log_w = torch.tensor([[-math.inf, -math.inf], [1.0, -math.inf], [2.0, 0.5]], **F64)
    found = without_one(iwae, log_w)
    torch.testing.assert_close(found[0, 0], torch.tensor([1.5, 1.0, 2.0], **F64).logsumexp(0) - math.log(3))
    assert found.isfinite().all() and found[2, 1] == 0


def test_the_baseline_takes_noise_out():
    """Less than a third of the variance that F itself has as the signal (which is unbiased, too)."""

    def no_baseline(draw, bound):
        log_q = draw.first.log_q(["z"])
        return bound(draw.log_w), draw.surrogate(first(bound, draw.log_w)) + bound(draw.log_w).detach() * log_q.sum(0)

    programs = (categorical_model, categorical_guide, CATEGORICAL)
    a, b = (
        gradients(Bound(iwae, 4, estimator=e), *programs, rows=20_000)["logits"]
        for e in (vimco, wrong(no_baseline, needs_path=False))
    )
    assert t_values(a, b).abs().max() < 4
    assert (a.var(0) < b.var(0) / 3).all()


@pytest.mark.parametrize("bound", [miwae, piwae])
def test_vimco_in_groups(bound):
    """2 groups of 2; under piwae the guide follows miwae."""

    def grouped(flat, which):
        return which(flat.reshape(2, 2, -1))

    model, guide = (
        exact_gradient(categorical_states, CATEGORICAL, partial(grouped, which=b), 4) for b in (bound, miwae)
    )
    objective = Bound(bound, 2, num_groups=2, estimator=vimco)
    found = gradients(objective, categorical_model, categorical_guide, CATEGORICAL, rows=20_000)
    truth = {name: guide[name] if name == "logits" else model[name] for name in model}
    t, where = worst(found, truth)
    assert t < 4, where


def test_vimco_of_the_elbo_against_enumeration():
    """TraceEnum_ELBO sums the site out, and knows nothing of tuples."""
    p = {n: v.expand(1, *v.shape).clone().requires_grad_() for n, v in CATEGORICAL.items()}
    guide = pyro.infer.config_enumerate(partial(categorical_guide, p))

    def model(x):  # batched from the left by enumeration
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=p["prior_logits"]))
            pyro.sample("x", dist.Normal(z @ p["weight"][0], 0.7).to_event(1), obs=x)

    (-TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, X[None])).backward()
    truth = {n: v.grad.reshape(-1) for n, v in p.items()}
    summed = exact_gradient(categorical_states, CATEGORICAL, elbo, 1)
    found = gradients(Bound(elbo, 3, estimator=vimco), categorical_model, categorical_guide, CATEGORICAL, rows=20_000)
    assert worst(found, truth)[0] < 4
    for name in truth:
        torch.testing.assert_close(truth[name], summed[name])


def switch_first(p, x):
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(logits=p["logit"][:, 0]))
        pyro.sample("y", dist.Normal(p["loc"][:, 0] + p["slope"][:, 0] * s, softplus(p["raw"][:, 0])))


def mixed_states(p, order):
    """The switch twice, times 40 Gauss-Hermite points of the normal's noise."""
    nodes, weights = hermite(40)
    s, noise = torch.arange(2.0, **F64).repeat_interleave(40), nodes.repeat(2)
    if order == "switch first":
        logit, y = p["logit"].expand(80), p["loc"] + p["slope"] * s + softplus(p["raw"]) * noise
        log_qy = dist.Normal(p["loc"] + p["slope"] * s, softplus(p["raw"])).log_prob(y)
    else:
        y = p["loc"] + softplus(p["raw"]) * noise
        logit, log_qy = p["logit"] + 2 * p["slope"] * y, dist.Normal(p["loc"], softplus(p["raw"])).log_prob(y)
    log_qs = dist.Bernoulli(logits=logit).log_prob(s)
    log_p = dist.Bernoulli(logits=p["prior_logit"]).log_prob(s) + dist.Normal(p["jump"] * s, 1.0).log_prob(y)
    log_px = dist.Normal(y.tanh() + p["shift"] * s, 0.5).log_prob(X[0])
    return weights.repeat(2) * log_qs.exp(), log_p + log_px - log_qs - log_qy


def hermite(count):
    """Points and weights of E f(ε), ε ~ N(0, 1)."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("bound", [elbo, iwae])
@pytest.mark.parametrize(("order", "guide"), [("switch first", switch_first), ("normal first", normal_first)])
def test_vimco_of_a_switch_and_a_normal(order, guide, bound):
    """One site with a path and one without, each depending on the other in turn: exact by quadrature, K = 2."""
    truth = exact_gradient(partial(mixed_states, order=order), MIXED, bound, 2)
    found = gradients(Bound(bound, 2, estimator=vimco), mixed_model, guide, MIXED, rows=20_000)
    t, where = worst(found, truth)
    assert t < 4, where


def test_pathwise_against_quadrature():
    """The reference of this file, itself against a sum: IWAE with K = 2 of one normal latent."""
    fixed = {n: MIXED[n] for n in ("jump", "shift", "loc", "raw")}

    def model(p, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(p["jump"][:, 0], 1.0))
            pyro.sample("x", dist.Normal(y.tanh() + p["shift"][:, 0], 0.5), obs=x[:, 0])

    def guide(p, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(p["loc"][:, 0], softplus(p["raw"][:, 0])))

    def states(p):
        nodes, weights = hermite(60)
        y = p["loc"] + softplus(p["raw"]) * nodes
        log_p = dist.Normal(p["jump"], 1.0).log_prob(y) + dist.Normal(y.tanh() + p["shift"], 0.5).log_prob(X[0])
        return weights, log_p - dist.Normal(p["loc"], softplus(p["raw"])).log_prob(y)

    truth = exact_gradient(states, fixed, iwae, 2)
    for estimator in (pathwise, dreg, gdreg):
        found = gradients(Bound(iwae, 2, estimator=estimator), model, guide, fixed, rows=20_000)
        t, where = worst(found, truth)
        assert t < 4, (estimator, where)


# reweighted wake-sleep


def test_rws_model_gradient_is_that_of_pathwise():
    """To the last digit: the same draws, F_k ∂_θ log p."""
    for program in PROGRAMS:
        a, b = (gradients(Bound(iwae, 5, estimator=e), *PROGRAMS[program], rows=50) for e in (rws, pathwise))
        for name in set(a) - set(ENCODER):
            torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("k", "beta"), [(2, 1.0), (4, 1.0), (3, 0.3), (3, 0.0)])
def test_rws_guide_gradient_against_all_tuples(k, beta):
    """E Σ_k w̃_k ∂_φ log q(z_k), the self-normalised estimate with its bias: exact at any K; w = p(x | z) p(z)^β / q(z | x)."""
    logits = CATEGORICAL["logits"].clone().requires_grad_()
    probability, log_w = (t.detach() for t in categorical_states(CATEGORICAL))
    log_w = log_w - (1 - beta) * CATEGORICAL["prior_logits"].log_softmax(-1)
    log_q = logits.log_softmax(-1)
    wake = over_tuples(lambda grid: (log_w[grid].softmax(1) * log_q[grid]).sum(1), probability, k)
    truth = torch.autograd.grad(wake, logits)[0]
    programs = (categorical_model, categorical_guide, CATEGORICAL)
    found = gradients(Bound(iwae, k, estimator=rws), *programs, rows=20_000, wrap=Beta(beta))
    assert t_values(found["logits"], truth).abs().max() < 4


def test_rws_guide_descends_the_forward_kl():
    """K = 256: −∂_φ KL(p(z | x) ‖ q) by summing over z, with the first-order bias −1/K E_q[(w/p(x))² (s − E_p s)] taken off."""
    logits, k = CATEGORICAL["logits"].clone().requires_grad_(), 256
    q, log_w = (t.detach() for t in categorical_states(CATEGORICAL))
    w = log_w.exp() / (q * log_w.exp()).sum()
    posterior = q * w
    scores = torch.autograd.functional.jacobian(lambda a: a.log_softmax(-1), logits)  # ∂ log q(z) of each z
    limit = posterior @ scores
    bias = -((q * w * w)[:, None] * (scores - limit)).sum(0) / k
    found = gradients(Bound(iwae, k, estimator=rws), categorical_model, categorical_guide, CATEGORICAL, rows=2000)
    assert t_values(found["logits"], limit + bias).abs().max() < 4
    assert bias.abs().max() < 0.02 * limit.abs().max()


def test_rws_of_a_chain():
    """Two sites: Σ_k w̃_k ∂_φ (log q(z1) + log q(z2 | z1)) at fixed draws, from a loop's own draws and formula."""
    rows, k = 40, 3
    p = {n: v.expand(rows, *v.shape).clone().requires_grad_() for n, v in TWO.items()}
    model, guide, x = partial(two_model, p), partial(two_guide, p), X.expand(rows, 3).clone()
    torch.manual_seed(0)
    objective = Bound(iwae, k, estimator=rws)
    _, surrogate, draw = objective.estimate(model, guide, (x,), {})
    found = torch.autograd.grad(surrogate.sum(), [p[n] for n in ENCODER])
    z1, z2 = (draw.first.q[n]["value"].detach() for n in ("z1", "z2"))
    log_q = dist.Normal(p["loc"], softplus(p["raw"])).log_prob(z1).sum(-1) + dist.Normal(
        p["loc2"] + p["slope"] * z1.sin(), softplus(p["raw2"] + 0.5 * z1)
    ).log_prob(z2).sum(-1)
    wake = (draw.log_w.detach().softmax(0) * log_q).sum()
    for name, a, b in zip(ENCODER, found, torch.autograd.grad(wake, [p[n] for n in ENCODER]), strict=True):
        torch.testing.assert_close(a, b, msg=name)


# discrete latents, trained


def mixture_rows(count=60):
    """Rows of a mixture of two Bernoulli products in 4 columns, and the number of each row's pattern."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.9, 0.8, 0.2, 0.1], [0.2, 0.3, 0.9, 0.7]], **F64)
    which = torch.bernoulli(torch.full((count,), 0.6), generator=generator).long()
    x = torch.bernoulli(centres[which], generator=generator)
    return x, (x @ torch.tensor([1.0, 2.0, 4.0, 8.0], **F64)).long()


class Switched:
    """p(z) Bernoulli, p(x | z) a Bernoulli product; the guide has a logit for each pattern of x, so it can be exact."""

    def __init__(self, enumerated):
        sign = torch.tensor([1.0, 1.0, -1.0, -1.0], **F64)
        self.start = {"weight": torch.stack([sign, -sign]) / 2, "prior": torch.zeros((), **F64)}
        self.infer = {"enumerate": "parallel"} if enumerated else {}

    def parameter(self, name):
        return pyro.param(name, self.start[name].clone())

    def model(self, x, pattern):
        weight, prior = self.parameter("weight"), self.parameter("prior")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=prior))[..., None]
            pyro.sample("x", dist.Bernoulli(logits=weight[0] * (1 - z) + weight[1] * z).to_event(1), obs=x)

    def guide(self, x, pattern):
        logits = pyro.param("logits", torch.zeros(16, **F64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits[pattern]), infer=self.infer)

    def log_px(self, x):
        """log Σ_z p(z) p(x | z), mean over rows."""
        weight, prior = (self.parameter(n).detach() for n in ("weight", "prior"))
        log_pz = torch.stack([-softplus(prior), -softplus(-prior)])
        return ((weight[:, None] * x - softplus(weight)[:, None]).sum(-1) + log_pz[:, None]).logsumexp(0).mean().item()


def trained(objective, enumerated, steps=300):
    """log p(x) before and after."""
    x, pattern = mixture_rows()
    programs = Switched(enumerated)
    with pyro.get_param_store().scope():
        optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.002 ** (1 / steps)})
        svi = SVI(programs.model, programs.guide, optimizer, objective)
        start = programs.log_px(x)
        for _ in range(steps):
            svi.step(x, pattern)
        return start, programs.log_px(x)


def test_vimco_and_enumeration_reach_the_same_optimum():
    """log p(x), summed over z by hand, ends within 0.005 nats a row of one another; it starts 0.1 below or more."""
    start, enumerated = trained(TraceEnum_ELBO(max_plate_nesting=1), True)
    _, drawn = trained(Bound(elbo, 16, estimator=vimco), False)
    assert enumerated - start > 0.1
    assert abs(drawn - enumerated) < 0.005


# errors


def test_vimco_wants_two_particles():
    with pytest.raises(UsageError, match="at least 2, got 1"):
        loss_of(Bound(iwae, 1, estimator=vimco))
    with pytest.raises(UsageError, match="at least 2, got 1"):
        loss_of(Bound(miwae, 1, num_groups=3, estimator=vimco))
