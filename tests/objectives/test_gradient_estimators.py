"""Gradient estimators: the same mean as an exact or a pathwise gradient, and less noise where that is the claim.

Each row of a batch carries its own copy of all parameters, so one backward pass gives one independent gradient a row. Means
are compared by t = mean / standard error, coordinate by coordinate, with |t| < 4, over 4,000 draws or more: some 900
coordinates are tested in all, so one correct suite in twenty would see one beyond (6e-5 each); seeds are fixed. A pair of
estimators is compared on the same noise, which makes the test sharper. Broken variants are rejected by the same test. Three
tests of whole networks, whose rows share their weights, make do with 120 to 200 draws.
"""

import gc
import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from torch.nn.functional import softplus

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Conditional,
    StandardNormal,
    bernoulli,
    ciwae,
    dreg,
    elbo,
    gdreg,
    iwae,
    jackknife,
    miwae,
    normal,
    pathwise,
    piwae,
    posteriors,
    priors,
    renyi,
    rws,
    stl,
    tvo,
    vimco,
)
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.objectives.gradient_estimators import Estimate, first, without_one
from pyro_vae.objectives.particles import ParticleRun
from tests.helpers.exact import LinearGaussian

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}


# programs whose parameters are `p`: a dict of tensors (N, ...), one copy a row


def values(seed=5, **shapes):
    """Parameters of these shapes, ~ N(0, 0.7²), without rows."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.7 * torch.randn(shape, generator=generator, **F64) for name, shape in shapes.items()}


def decode(p, z):
    """(…, N, 2) to (…, N, 3), through weights of each row's own."""
    return torch.einsum("...nl,nlc->...nc", z.tanh(), p["weight"]) + p["bias"]


ONE = values(prior_loc=2, prior_raw=2, weight=(2, 3), bias=3, loc=2, raw=2)
ENCODER = ("loc", "raw", "slope", "loc2", "raw2")


def one_prior(p):
    return dist.Normal(p["prior_loc"], softplus(p["prior_raw"])).to_event(1)


def one_model(p, x, prior=one_prior):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior(p))
        pyro.sample("x", dist.Normal(decode(p, z), 0.5).to_event(1), obs=x)


def one_guide(p, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(p["loc"], softplus(p["raw"])).to_event(1))


TWO = values(weight=(2, 3), bias=3, prior_loc=2, loc=2, raw=2, slope=2, loc2=2, raw2=2)


def two_model(p, x):
    """z2, z1 given z2, x given both: the other way round than the guide."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2, **F64), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(p["prior_loc"] * z2.tanh(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(p, z1 + 0.5 * z2), 0.5).to_event(1), obs=x)


def two_guide(p, x):
    """z1, then z2 whose mean and width depend on z1."""
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(p["loc"], softplus(p["raw"])).to_event(1))
        width = softplus(p["raw2"] + 0.5 * z1)
        pyro.sample("z2", dist.Normal(p["loc2"] + p["slope"] * z1.sin(), width).to_event(1))


PROGRAMS = {"one": (one_model, one_guide, ONE), "two": (two_model, two_guide, TWO)}


def gradients(objective, model, guide, parameters, rows=ROWS, seed=0, x=X, wrap=lambda program: program):
    """∂F / ∂p of each row: the parameters' names to ``(rows, coordinates)``."""
    p = {name: value.expand(rows, *value.shape).clone().requires_grad_() for name, value in parameters.items()}
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(
        wrap(partial(model, p)), wrap(partial(guide, p)), x.expand(rows, *x.shape).clone()
    )
    loss.backward()
    return {n: torch.zeros(rows, 1) if t.grad is None else -t.grad.reshape(rows, -1) for n, t in p.items()}


def t_values(rows, truth=0.0):
    """mean(rows − truth) / its standard error for each coordinate ``(N, coordinates)``; 0 where both vanish."""
    difference = rows - truth
    error = difference.std(0) / len(difference) ** 0.5
    scale = rows.abs().max() + 1  # a difference of rounding only is none
    return torch.where(difference.abs().amax(0) < 1e-10 * scale, torch.zeros_like(error), difference.mean(0) / error)


def worst(found, truth):
    """The largest |t| over all parameters, and whose it is."""
    t = {n: t_values(found[n], truth[n]).abs().max().item() for n in found}
    name = max(t, key=t.get)
    return t[name], name


def compare(bound, estimator, program, k=5, groups=None, reference=pathwise, same_noise=True, **options):
    """The largest |t| between the means of an estimator and of a reference."""
    kwargs = {"num_particles": k, "num_groups": groups}
    a = gradients(Bound(bound, estimator=estimator, **kwargs), *PROGRAMS[program], **options)
    b = gradients(Bound(bound, estimator=reference, **kwargs), *PROGRAMS[program], **options)
    assert same_noise or not torch.equal(a["loc"], b["loc"])
    return worst(a, b)


# the means: doubly reparameterised, sticking the landing


BOUNDS = {
    "iwae": (iwae, None),
    "renyi": (renyi(0.5), None),
    "ciwae": (ciwae(0.3), None),
    "tvo": (tvo(4, 0.1), None),
    "miwae": (miwae, 3),
    "piwae": (piwae, 3),
    "elbo": (elbo, None),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", BOUNDS)
def test_dreg_has_the_mean_of_pathwise(name, program):
    bound, groups = BOUNDS[name]
    t, where = compare(bound, dreg, program, groups=groups)
    assert t < 4, where


@pytest.mark.parametrize("program", PROGRAMS)
def test_stl_has_the_mean_of_pathwise_for_the_elbo(program):
    t, where = compare(elbo, stl, program, k=2)
    assert t < 4, where


@pytest.mark.parametrize("estimator", [dreg, stl])
def test_one_run_for_each_particle_changes_nothing(estimator):
    """vectorize_particles=False: the same means, from other noise."""
    a, b = (
        gradients(Bound(elbo, 3, estimator=estimator, vectorize_particles=v), *PROGRAMS["two"], seed=v)
        for v in (False, True)
    )
    for name in a:
        error = ((a[name].var(0) + b[name].var(0)) / ROWS).sqrt()
        assert ((a[name].mean(0) - b[name].mean(0)).abs() <= 4 * error).all(), name


@pytest.mark.parametrize("program", PROGRAMS)
def test_dreg_of_the_elbo_is_stl(program):
    a, b = (gradients(Bound(elbo, 3, estimator=e), *PROGRAMS[program], rows=50) for e in (dreg, stl))
    for name in a:
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("estimator", [dreg, gdreg])
def test_dreg_under_beta(estimator, beta, program):
    """β weighs the score, and so what replaces it: the path's weight is F_k − β F_kk."""
    if (estimator, program) == (gdreg, "two"):
        return
    t, where = compare(iwae, estimator, program, wrap=Beta(beta))
    assert t < 4, where


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


def test_dreg_refuses_latents_weighed_unlike_one_another():
    def guide(p, x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z1 = pyro.sample("z1", dist.Normal(p["loc"], softplus(p["raw"])).to_event(1))
            pyro.sample("z2", dist.Normal(p["loc2"] + p["slope"] * z1, 1.0).to_event(1))

    with pytest.raises(ProgramError, match=r"'z1'.*'z2'.*pathwise"):
        gradients(Bound(iwae, 4, estimator=dreg), two_model, guide, TWO, rows=10)


def test_a_subsampled_plate_scales_the_gradient_of_dreg():
    """N / B weighs rows, from outside."""

    def sub(program):
        def run(x):
            with poutine.scale(scale=7.0):
                program(x)

        return run

    a, b = (gradients(Bound(iwae, 4, estimator=dreg), *PROGRAMS["two"], rows=20, wrap=w) for w in (sub, lambda f: f))
    for name in a:
        torch.testing.assert_close(a[name], 7 * b[name])


def inner_model(p, x, data=-1, inner=-2):
    """Two latents a row, in a plate within the row's; x given their sum."""
    with pyro.plate("data", len(x), dim=data) as rows:
        shape = (-1, 1) if data == -2 else (-1,)
        loc, raw = (p[n][rows, 0].reshape(shape) for n in ("prior_loc", "prior_raw"))
        with pyro.plate("inner", 2, dim=inner):
            z = pyro.sample("z", dist.Normal(loc, softplus(raw)))
        total = z.tanh().sum(inner, keepdim=True)
        pyro.sample("x", dist.Normal(total, 0.5), obs=x[:, 0].reshape(shape))


def inner_guide(p, x, data=-1, inner=-2):
    with pyro.plate("data", len(x), dim=data), pyro.plate("inner", 2, dim=inner):
        loc, width = p["loc"], softplus(p["raw"])  # (N, 2)
        pyro.sample("z", dist.Normal(*((loc, width) if data == -2 else (loc.T, width.T))))


@pytest.mark.parametrize("dims", [(-1, -2), (-2, -1)])
@pytest.mark.parametrize("estimator", [dreg, gdreg])
def test_dreg_of_a_plate_within_the_rows(estimator, dims):
    model, guide = (partial(f, data=dims[0], inner=dims[1]) for f in (inner_model, inner_guide))
    a, b = (gradients(Bound(iwae, 5, estimator=e), model, guide, ONE) for e in (estimator, pathwise))
    t, where = worst(a, b)
    assert t < 4, where
    assert not torch.equal(a["loc"], b["loc"])


# generalised DReG: the prior's parameters


def library_prior(kind):
    def prior(p):
        made = kind(2)
        made.loc, made.raw_scale = (torch.nn.Parameter(p[n]) for n in ("prior_loc", "prior_raw"))
        del made._parameters["loc"], made._parameters["raw_scale"]
        made.loc, made.raw_scale = p["prior_loc"], p["prior_raw"]
        return made()

    return prior


def conditional_prior(p):
    """On a context c = 0.8 of the row."""
    return dist.Normal(p["prior_loc"] * 0.8 - 0.2, softplus(p["prior_raw"] * 0.8)).to_event(1)


PRIORS = {
    "normal": library_prior(priors.DiagonalNormal),
    "laplace": library_prior(partial(priors.Laplace, learned=True)),
    "student": library_prior(partial(priors.StudentT, df=4.0, learned=True)),
    "conditional": conditional_prior,
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", ["iwae", "piwae", "elbo"])
def test_gdreg_has_the_mean_of_dreg(name, prior):
    bound, groups = BOUNDS[name]
    model = partial(one_model, prior=PRIORS[prior])
    a, b = (gradients(Bound(bound, 5, estimator=e, num_groups=groups), model, one_guide, ONE) for e in (gdreg, dreg))
    t, where = worst(a, b)
    assert t < 4, where
    assert not torch.equal(a["prior_loc"], b["prior_loc"])
    for same in ("loc", "raw", "weight", "bias"):
        torch.testing.assert_close(a[same], b[same])


def test_gdreg_of_a_module_with_a_context():
    """A prior network: its gradients over many seeds have the mean of dreg's."""
    torch.manual_seed(3)
    vae = VAE(
        Conditional(MLP(1, 2 * 2, (4,)), normal),
        Conditional(MLP(2 + 1, 2 * 3, (4,)), normal),
        Conditional(MLP(3 + 1, 2 * 2, (4,)), normal),
    ).double()
    x, c = X.expand(30, 3).clone(), torch.linspace(-1, 1, 30, **F64)[:, None]
    weights = list(vae.prior.parameters())

    def draws(estimator):
        objective, out = Bound(iwae, 3, estimator=estimator), []
        for seed in range(200):
            torch.manual_seed(seed)
            loss = objective.differentiable_loss(vae.model, vae.guide, x, c)
            out.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        return torch.stack(out)

    assert t_values(draws(gdreg), draws(dreg)).abs().max() < 4


@pytest.mark.parametrize("estimator", [dreg, gdreg, stl, pathwise])
def test_a_guide_without_parameters_leaves_the_models_gradient(estimator):
    def guide(p, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((2,), 0.3, **F64), 0.7).to_event(1))

    a, b = (gradients(Bound(iwae, 4, estimator=e), one_model, guide, ONE) for e in (estimator, pathwise))
    t, where = worst(a, b)
    assert t < 4 and a["prior_loc"].abs().max() > 0, where


@pytest.mark.parametrize("estimator", [gdreg, dreg, stl, vimco])
def test_scalar_latents_without_event_dimensions(estimator):
    def model(p, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(p["prior_loc"][:, 0], softplus(p["prior_raw"][:, 0])))
            pyro.sample("x", dist.Normal(z.tanh(), 0.5), obs=x[:, 0])

    def guide(p, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p["loc"][:, 0], softplus(p["raw"][:, 0])))

    kind = elbo if estimator is stl else iwae
    a, b = (gradients(Bound(kind, 4, estimator=e), model, guide, ONE) for e in (estimator, pathwise))
    t, where = worst(a, b)
    assert t < 4, where


# draws without a path: exact means by summing over all tuples of K particles


def over_tuples(function, probability, k):
    """E function(tuple) over K independent states, of S: `function` takes the states' numbers ``(S^K, K)``."""
    grid = torch.cartesian_prod(*[torch.arange(len(probability))] * k).reshape(-1, k)
    return (probability[grid].prod(1) * function(grid)).sum()


def exact_gradient(states, parameters, bound, k):
    """∂ E F(log w_1 … log w_K), by name; `states(p)` are (probabilities, log weights), each ``(S,)``, of one particle."""
    p = {n: v.clone().requires_grad_() for n, v in parameters.items()}
    probability, log_w = states(p)
    total = over_tuples(lambda grid: bound(log_w[grid].T), probability, k)
    grads = torch.autograd.grad(total, list(p.values()), allow_unused=True)
    return {n: (torch.zeros(1, **F64) if g is None else g).reshape(-1) for n, g in zip(p, grads, strict=True)}


CATEGORICAL = values(prior_logits=3, weight=(3, 3), logits=3)


def categorical_model(p, x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(logits=p["prior_logits"]))
        loc = torch.einsum("...nl,nlc->...nc", z, p["weight"])
        pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)


def categorical_guide(p, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.OneHotCategorical(logits=p["logits"]))


def categorical_states(p):
    log_q = p["logits"].log_softmax(-1)
    log_px = dist.Normal(p["weight"], 0.7).log_prob(X).sum(-1)
    return log_q.exp(), p["prior_logits"].log_softmax(-1) + log_px - log_q


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


MIXED = values(seed=8, prior_logit=1, jump=1, shift=1, logit=1, slope=1, loc=1, raw=1)


def mixed_model(p, x):
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(logits=p["prior_logit"][:, 0]))
        y = pyro.sample("y", dist.Normal(p["jump"][:, 0] * s, 1.0))
        pyro.sample("x", dist.Normal(y.tanh() + p["shift"][:, 0] * s, 0.5), obs=x[:, 0])


def switch_first(p, x):
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Bernoulli(logits=p["logit"][:, 0]))
        pyro.sample("y", dist.Normal(p["loc"][:, 0] + p["slope"][:, 0] * s, softplus(p["raw"][:, 0])))


def normal_first(p, x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(p["loc"][:, 0], softplus(p["raw"][:, 0])))
        pyro.sample("s", dist.Bernoulli(logits=p["logit"][:, 0] + 2 * p["slope"][:, 0] * y))


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
    found = gradients(Bound(iwae, k, estimator=rws), categorical_model, categorical_guide, CATEGORICAL, rows=4000)
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


# PIWAE


@pytest.mark.parametrize("program", PROGRAMS)
def test_piwae_is_iwae_for_the_model_and_miwae_for_the_guide(program):
    """On the same noise, to 1e-12: M = 3 groups of K = 4."""
    rows = {"rows": 50}
    mixed = gradients(Bound(piwae, 4, num_groups=3), *PROGRAMS[program], **rows)
    model = gradients(Bound(iwae, 12), *PROGRAMS[program], **rows)
    guide = gradients(Bound(miwae, 4, num_groups=3), *PROGRAMS[program], **rows)
    for name in mixed:
        want, other = (guide, model) if name in ENCODER else (model, guide)
        torch.testing.assert_close(mixed[name], want[name], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(mixed[name], other[name])


# the exact posterior as guide: no noise is left


class Exact:
    """The linear-Gaussian model with its exact posterior as the guide's parameters, one site or two."""

    def __init__(self):
        self.truth = LinearGaussian()
        self.x = self.truth.x[:20]
        q = self.truth.exact(self.x)
        l11 = q.cov[0, 0].sqrt()
        slope = q.cov[0, 1] / q.cov[0, 0]
        rest = (q.cov[1, 1] - slope * q.cov[0, 1]).sqrt()
        self.parameters = [t.clone().requires_grad_() for t in (q.loc, torch.linalg.cholesky(q.cov), slope, l11, rest)]

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1, z2 = (pyro.sample(n, dist.Normal(torch.zeros((), **F64), 1.0)) for n in ("z1", "z2"))
            pyro.sample("x", self.truth.likelihood(torch.stack([z1, z2], -1)), obs=x)

    def guide(self, x):
        loc, _, slope, l11, rest = self.parameters
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(loc[:, 0], l11))
            pyro.sample("z2", dist.Normal(loc[:, 1] + slope * (z1 - loc[:, 0]), rest))

    def joint_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(self.parameters[0], scale_tril=self.parameters[1]))

    def largest(self, objective, sites):
        model, guide = (self.model, self.guide) if sites == 2 else (self.truth.model, self.joint_guide)
        loss = objective.differentiable_loss(model, guide, self.x)
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return max(g.abs().max().item() for g in grads if g is not None)


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("name", ["iwae", "renyi", "ciwae", "tvo", "miwae", "piwae", "elbo"])
def test_nothing_is_left_at_the_exact_posterior(name, sites):
    bound, groups = BOUNDS[name]
    exact = Exact()
    for estimator in (stl, dreg):
        assert exact.largest(Bound(bound, 4, num_groups=groups, estimator=estimator), sites) < 1e-8
    assert exact.largest(Bound(bound, 4, num_groups=groups), sites) > 0.1


def test_nothing_is_left_of_gdreg():
    exact = Exact()
    assert exact.largest(Bound(iwae, 4, estimator=gdreg), 1) < 1e-8


# signal to noise (Rainforth et al., 2018)


def snr(rows):
    """|mean| / standard deviation, averaged over coordinates."""
    return (rows.mean(0).abs() / rows.std(0)).mean().item()


def near_the_posterior():
    """One row of the linear-Gaussian model, and a guide that is half a standard deviation off."""
    truth = LinearGaussian()
    q = truth.exact(truth.x[:1])
    scale = torch.linalg.cholesky(q.cov)
    parameters = {"loc": q.loc[0] + 0.5 * scale.diagonal(), "tril": 1.05 * scale}

    def guide(p, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(p["loc"], scale_tril=p["tril"]))

    return {"model": lambda p, x: truth.model(x), "guide": guide, "parameters": parameters, "x": truth.x[0]}


def test_dregs_signal_does_not_fall_with_k_and_iwaes_does():
    """K from 4 to 64: IWAE's encoder loses more than half (theory: a factor √16 = 4), DReG's gains at least half.

    With 10,000 draws the error of a coordinate's signal-to-noise ratio is 0.01 (IWAE's are 0.17 and 0.04).
    """
    near = near_the_posterior()
    found = {
        (e, k): snr(gradients(Bound(iwae, k, estimator=e), **near, rows=10_000)["loc"])
        for e in (pathwise, dreg)
        for k in (4, 64)
    }
    assert found[pathwise, 64] < 0.5 * found[pathwise, 4]
    assert found[dreg, 64] > 1.5 * found[dreg, 4]
    assert found[dreg, 64] > 4 * found[pathwise, 64]


# wrong variants, which the same test finds


def path_not_squared(draw, bound):
    """w̃ for the path in place of w̃²: what STL does to IWAE."""
    a = first(bound, draw.log_w)
    return bound(draw.log_w), draw.surrogate(a, a, torch.zeros_like(a))


def path_of_another_bound(draw, bound):
    """IWAE's w̃² under another bound."""
    a = first(bound, draw.log_w)
    return bound(draw.log_w), draw.surrogate(a, draw.log_w.detach().softmax(0) ** 2, torch.zeros_like(a))


def score_by_its_own_path(draw, bound):
    """log q is held at each site's own value, and not at those that later sites were given."""
    a, run = first(bound, draw.log_w), draw.first
    own = sum(site["fn"].log_prob(site["value"].detach()) for site in run.q.values())
    return bound(draw.log_w), (a * (draw.log_w + own)).sum(0)


def baseline_of_its_own_particle(draw, bound):
    """VIMCO with the mean of all particles in the baseline: it depends on what it is a baseline for."""
    log_w, log_q = draw.log_w.detach(), draw.terms.posterior["z"]
    signal = bound(log_w) - log_w.mean(0) - 0.5 * log_w
    return bound(draw.log_w), draw.surrogate(first(bound, draw.log_w)) + (signal * log_q).sum(0)


def prior_without_the_likelihood(draw, bound):
    """GDReG's path through the prior, but for the likelihood's part of it."""
    a, run = first(bound, draw.log_w), draw.first
    value, surrogate = gdreg.function(draw, bound)
    z, base = run.values["z"], run.p["z"]["fn"].base_dist
    gradient = torch.autograd.grad((a * run.terms.reconstruction).sum() / 1, z, retain_graph=True)[0]
    noise = ((z - base.loc) / base.scale).detach()
    return value, surrogate - (gradient * (base.loc + base.scale * noise)).sum((0, -1))


def wrong(function, **options):
    return Estimate(function.__name__, function, **options)


@pytest.mark.parametrize(
    ("function", "bound", "program"),
    [
        (path_not_squared, iwae, "one"),
        (path_not_squared, iwae, "two"),
        (path_of_another_bound, renyi(0.5), "one"),
        (path_of_another_bound, ciwae(0.3), "two"),
        (prior_without_the_likelihood, iwae, "one"),
    ],
)
def test_wrong_estimators_are_rejected(function, bound, program):
    assert compare(bound, wrong(function, weighable=True), program)[0] > 10


def test_stl_is_biased_where_it_says_so():
    assert compare(iwae, stl, "one")[0] > 10


def test_a_score_that_ignores_how_sites_hang_together_is_found():
    """Under the ELBO its mean is right, and it does not stick the landing."""
    objective = Bound(elbo, 4, estimator=wrong(score_by_its_own_path))
    exact = Exact()
    assert exact.largest(objective, 1) < 1e-8
    assert exact.largest(objective, 2) > 0.1


def test_a_baseline_of_its_own_particle_is_rejected():
    truth = exact_gradient(categorical_states, CATEGORICAL, iwae, 3)
    objective = Bound(iwae, 3, estimator=wrong(baseline_of_its_own_particle, needs_path=False))
    found = gradients(objective, categorical_model, categorical_guide, CATEGORICAL, rows=20_000)
    assert t_values(found["logits"], truth["logits"]).abs().max() > 10


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


def trained(objective, enumerated, steps=500):
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


def loss_of(objective, model=categorical_model, guide=categorical_guide, parameters=CATEGORICAL):
    return gradients(objective, model, guide, parameters, rows=4)


@pytest.mark.parametrize("estimator", [pathwise, stl, dreg, gdreg])
def test_a_site_without_a_path_is_named_with_what_can_treat_it(estimator):
    with pytest.raises(ProgramError, match=r"'z'.*OneHotCategorical.*(?s:vimco.*rws.*TraceEnum_ELBO)"):
        loss_of(Bound(iwae, 4, estimator=estimator))


def test_the_one_site_without_a_path_is_named():
    with pytest.raises(ProgramError, match="site 's'"):
        loss_of(Bound(iwae, 4), mixed_model, normal_first, MIXED)


def test_vimco_wants_two_particles():
    with pytest.raises(UsageError, match="at least 2, got 1"):
        loss_of(Bound(iwae, 1, estimator=vimco))
    with pytest.raises(UsageError, match="at least 2, got 1"):
        loss_of(Bound(miwae, 1, num_groups=3, estimator=vimco))


@pytest.mark.parametrize("estimator", [dreg, gdreg])
def test_dreg_refuses_the_jackknife(estimator):
    with pytest.raises(UsageError, match=r"jackknife\(order=1\).*pathwise"):
        loss_of(Bound(jackknife(1), 4, estimator=estimator), one_model, one_guide, ONE)


def test_gdreg_says_what_it_cannot_treat():
    def mixture_prior(p):
        return priors.Mixture(2, components=3).double()()

    with pytest.raises(ProgramError, match=r"'z'.*Mixture.*dreg"):
        loss_of(Bound(iwae, 4, estimator=gdreg), partial(one_model, prior=mixture_prior), one_guide, ONE)
    with pytest.raises(ProgramError, match=r"'z1', 'z2'.*dreg"):
        loss_of(Bound(iwae, 4, estimator=gdreg), two_model, two_guide, TWO)


# extremes


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
        for seed in range(120):
            torch.manual_seed(seed)
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
            grads = torch.autograd.grad(loss, encoder, allow_unused=True)
            out.append(torch.cat([g.flatten() for g in grads if g is not None]))
        return torch.stack(out)

    assert (
        t_values(draws(dreg), draws(pathwise)).abs().max() < 4.5
    )  # some hundred coordinates, 120 draws: t, not normal


def test_a_bernoulli_vae_of_the_library():
    """dreg and pathwise of one network VAE in float32: the same mean over 200 draws."""
    torch.manual_seed(0)
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6, (4,)), bernoulli), Conditional(MLP(6, 2 * 2, (4,)), normal))
    x = torch.bernoulli(torch.full((16, 6), 0.4))

    def draws(estimator):
        out, objective = [], Bound(iwae, 8, estimator=estimator)
        for seed in range(200):
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
    assert not [kept for kept in gc.get_objects() if type(kept) is ParticleRun]
