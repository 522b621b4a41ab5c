"""Every cell of the registry: a (prior, likelihood, posterior) that is allowed trains and scores, one that is not says why."""

import importlib
import inspect
import math
import pkgutil
from dataclasses import replace
from itertools import product

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_vae import check, likelihoods, log_weights, posteriors, priors
from pyro_vae.errors import UsageError
from pyro_vae.runs.config import Config
from pyro_vae.runs.custom_components import read
from pyro_vae.runs.marginal_baseline import fit_marginal, floor, marginal_features
from pyro_vae.runs.objective_registry import GRADIENTS, KLS, OBJECTIVES
from pyro_vae.runs.registry import ROLES, build, likelihood_of, names, objective_of, options_of, resolved
from tests.helpers.environment import HEAVY

NEEDED = {"total_count": 4, "num_classes": 4, "blocks": "normal:1,poisson:1,categorical:1:num-classes=4"}
SMALL = {"components": 3, "levels": 5, "hidden": "6", "context_features": 4, "transforms": 1, "steps": 2, "rank": 1}
ELEMENTS, DIM, ROWS = 3, 3, 8  # enough rows that no likelihood draws zeros alone, from which no encoder learns


def config(prior: str, likelihood: str, posterior: str) -> Config:
    """A small config of these parts, options made small, those that are needed given."""
    said = {"prior": prior, "likelihood": likelihood, "posterior": posterior}
    options = {}
    for role, name in said.items():
        known = ROLES[role][name].options
        options[f"{role}_options"] = {k: v for k, v in (SMALL | NEEDED).items() if k in known}
    if posterior == "one_hot_categorical":  # has no rsample
        options |= {"gradient": "vimco", "objective_options": {"particles": 2}}
    return resolved(Config(data="x.csv", latent_dim=DIM, hidden=(5,), activation="tanh", **said, **options))


def allowed(prior: str, posterior: str) -> bool:
    """Whether two parts live on the same space, and neither is made of the other."""
    p, q = priors.PRIORS[prior], posteriors.POSTERIORS[posterior]
    return p.support in ("any", q.support) and not ("posterior" in p.needs and "prior" in q.needs)


PAIRS = list(product(names("prior"), names("posterior")))


def partners(role: str, name: str) -> int:
    """Count the cells that a prior or posterior is allowed in."""
    return sum(pair[role == "posterior"] == name for pair in PAIRS if allowed(*pair))


@pytest.mark.parametrize(("prior", "posterior"), [pair for pair in PAIRS if allowed(*pair)])
def test_allowed_cells_train_and_score(prior, posterior, device):
    """One step of stock SVI with a finite gradient at every parameter, and finite log weights, under every fifth likelihood.

    Under every third where a part has few partners. Which ones goes around with the cells, so that each part of real latents
    meets them all; the long form has every cell. The checks of programs, which take half of a cell's time, are made once for
    each prior and posterior, and under a VampPrior for each likelihood.
    """
    turn = names("prior").index(prior) + names("posterior").index(posterior)
    every = 5 if min(partners("prior", prior), partners("posterior", posterior)) > 5 else 3
    chosen = names("likelihood") if HEAVY else names("likelihood")[turn % every :: every]
    for likelihood in chosen:
        pyro.clear_param_store()
        torch.manual_seed(1)
        vae = build(config(prior, likelihood, posterior), (ELEMENTS,))
        with torch.no_grad():  # on the CPU: other rows may have a gradient that happens to be zero
            z = vae.prior().expand((ROWS,)).sample()
            x = vae.likelihood(z).sample().float().to(device)
        vae.to(device)
        cell = f"{prior}, {likelihood}, {posterior}"
        if HEAVY or prior == "vamp" or likelihood == chosen[0]:
            report = check(vae.model, vae.guide, x)
            discrete = [f for f in report.findings if f.kind == "discrete"]
            assert report.ok and len(report.findings) == len(discrete) == (posterior == "one_hot_categorical"), (
                f"{cell}: {report}"
            )
        svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
        assert torch.isfinite(torch.tensor(svi.step(x))), cell
        Trace_ELBO().loss_and_grads(vae.model, vae.guide, x)
        bad = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert bad == [], f"{cell}: no finite gradient at {bad}"
        with torch.no_grad():
            log_w = log_weights(vae.model, vae.guide, x, num_particles=2)
        assert log_w.shape == (2, ROWS) and log_w.isfinite().all(), cell


@pytest.mark.parametrize(("prior", "posterior"), [pair for pair in PAIRS if not allowed(*pair)])
def test_refused_cells_name_both_parts_and_why(prior, posterior):
    with pytest.raises(UsageError) as caught:
        build(config(prior, "bernoulli", posterior), (ELEMENTS,))
    said = str(caught.value)
    assert f"prior {prior!r}" in said and f"posterior {posterior!r}" in said


def test_every_public_prior_is_in_the_table():
    """A module class of a file of priors/ that is missing from PRIORS fails here."""
    files = [
        importlib.import_module(f"{priors.__name__}.{file.name}") for file in pkgutil.iter_modules(priors.__path__)
    ]
    classes = {c for m in files for c in vars(m).values() if inspect.isclass(c)}
    ours = {c for c in classes if issubclass(c, torch.nn.Module) and c.__module__.startswith("pyro_vae.priors.")}
    of_priors = {c for c in ours if not c.__subclasses__()}
    made = {type(build(config(name, "bernoulli", first_fit(name)), (ELEMENTS,)).prior) for name in names("prior")}
    assert of_priors == made


def first_fit(prior: str) -> str:
    return next(q for q in names("posterior") if allowed(prior, q))


def test_every_public_family_is_in_the_table():
    exported = {n for n in likelihoods.__all__ if callable(getattr(likelihoods, n)) and n != "fitting"}
    assert exported <= set(likelihoods.FAMILIES)


@pytest.mark.parametrize("likelihood", names("likelihood"))
def test_the_marginal_beats_no_fit_at_all(likelihood):
    """The floor of independent elements is finite and, on the rows it was fitted to, no worse than features of zero."""
    torch.manual_seed(0)
    c = config("standard_normal", likelihood, "normal")
    family, features = likelihood_of(c, ELEMENTS)
    h = torch.randn(features).expand(200, -1)
    with torch.no_grad():
        x = family(h).sample().float()
    px = floor(likelihood, family, features, x, x)
    d = family(torch.zeros(features))
    with torch.no_grad():
        unfit = d.to_event(1 - d.event_dim).log_prob(x).double()
    assert px.shape == (200,) and px.isfinite().all() and px.mean() >= unfit.mean()


def test_closed_form_and_gradient_marginals_agree():
    x = torch.bernoulli(torch.tensor([0.2, 0.7]).expand(400, 2))
    closed = marginal_features("bernoulli", likelihoods.bernoulli, 2, x)
    fitted, _ = fit_marginal(likelihoods.bernoulli, 2, x)
    torch.testing.assert_close(fitted, closed, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("value", "default", "wanted"),
    [
        ("5", 3, 5),
        ("0.5", 1.0, 0.5),
        ("2", 1.0, 2.0),
        ("True", False, True),
        ("maf", "nsf", "maf"),
        ("4,5", (1,), (4, 5)),
    ],
)
def test_options_are_read_by_their_defaults(value, default, wanted):
    made = read("it", value, default)
    assert made == wanted and type(made) is type(wanted)


@pytest.mark.parametrize(("value", "default"), [("x", 3), ("0.5", 3), ("true", 3), ("3", True), ("[1]", 2.0)])
def test_options_that_cannot_be_read_are_refused(value, default):
    with pytest.raises(UsageError, match="it"):
        read("it", value, default)


def test_what_the_data_says_is_no_option():
    with pytest.raises(UsageError, match="no option 'initial'"):
        options_of("prior", "vamp", {"initial": "3"})


def enumerated_elbo(vae, x):
    """Σ_k q(e_k | x) (log p(x | e_k) + log p(e_k) − log q(e_k | x)) of each row."""
    z = torch.eye(DIM)
    log_p = torch.stack([vae.likelihood(e).log_prob(x) for e in z], -1) + vae.prior().log_prob(z)
    log_q = torch.stack([vae.posterior(x).log_prob(e) for e in z], -1)
    return (log_q.exp() * (log_p - log_q)).sum(-1)


def test_trace_enum_is_the_sum_over_every_value_of_z():
    """The loss and its gradient, without noise; two particles of it are the same number."""
    torch.manual_seed(1)
    x = torch.bernoulli(torch.full((ROWS, ELEMENTS), 0.5))
    for particles in (1, 2):
        options = {"objective_options": {"particles": particles}, "gradient": "pathwise"}
        c = resolved(replace(config("one_hot", "bernoulli", "one_hot_categorical"), objective="trace_enum", **options))
        vae, objective = build(c, (ELEMENTS,)), objective_of(c, ROWS)
        exact = enumerated_elbo(vae, x).sum()
        wanted = torch.autograd.grad(exact, list(vae.parameters()))
        loss = objective.elbo.loss_and_grads(*objective.pair(vae), x)
        assert loss == pytest.approx(-exact.item(), abs=1e-5)
        for p, grad in zip(vae.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, -grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prior", ["one_hot", "vamp"])
def test_every_enumerated_cell_is_that_sum_under_every_likelihood(prior):
    for likelihood in names("likelihood"):
        torch.manual_seed(1)
        one = {"objective": "trace_enum", "gradient": "pathwise", "objective_options": {}}
        c = resolved(replace(config(prior, likelihood, "one_hot_categorical"), **one))
        vae, objective = build(c, (ELEMENTS,)), objective_of(c, ROWS)
        with torch.no_grad():
            x = vae.likelihood(vae.prior().expand((ROWS,)).sample()).sample().float()
        loss = objective.elbo.loss_and_grads(*objective.pair(vae), x)
        assert loss == pytest.approx(-enumerated_elbo(vae, x).sum().item(), rel=1e-4, abs=1e-4), likelihood
        assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters()), likelihood


def test_trace_enum_refuses_pathwise_draws_which_pyro_would_not_weigh():
    """A straight-through posterior's sum would be over values of weight 1: larger than the ELBO by about their number."""
    c = config("one_hot", "bernoulli", "one_hot_categorical_st")
    torch.manual_seed(1)
    vae, x = build(c, (ELEMENTS,)), torch.ones(ROWS, ELEMENTS)
    c = replace(c, objective="trace_enum")
    objective = objective_of(c, ROWS)
    unweighted = objective.elbo.loss(*objective.pair(vae), x)
    assert unweighted > -2 * enumerated_elbo(vae, x).sum().item()
    with pytest.raises(
        UsageError, match=r"draws of posterior 'one_hot_categorical_st' are pathwise.*'one_hot_categorical'"
    ):
        resolved(c)


def steps_with(objective, gradient, kl):
    """One loss of these names, and the gradients it leaves; None where the names are refused."""
    torch.manual_seed(1)
    posterior = {"trace_enum": "one_hot_categorical"}.get(objective, "normal")
    c = config("one_hot" if objective == "trace_enum" else "standard_normal", "bernoulli", posterior)
    few = {k: 3 for k in ("particles", "groups") if k in OBJECTIVES[objective].options}
    try:
        c = resolved(replace(c, objective=objective, gradient=gradient, kl=kl, objective_options=few, kl_options={}))
    except UsageError:
        return None
    vae, made = build(c, (ELEMENTS,)), objective_of(c, 50)
    loss = made.elbo.loss_and_grads(*made.pair(vae), torch.bernoulli(torch.full((ROWS, ELEMENTS), 0.5)))
    return float(loss), [p.grad for p in vae.parameters()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_gradients_and_kls_go_together_or_say_why(objective):
    """Every allowed cell has a finite loss and a finite gradient at every parameter; the refused ones are those expected."""
    for gradient, kl in product(GRADIENTS, KLS):
        closed = objective in ("mean_field_elbo", "trace_enum") and gradient != "pathwise"
        added = kl not in ("plain", "beta") and objective not in ("elbo", "mean_field_elbo")
        smooth = objective == "jackknife" and gradient in ("dreg", "gdreg")
        pathless = gradient == "rws" and kl not in ("plain", "beta")  # detached draws: a term has no gradient
        made = steps_with(objective, gradient, kl)
        assert (made is None) == (closed or added or smooth or pathless), (gradient, kl)
        if made is not None:
            loss, grads = made
            assert math.isfinite(loss) and all(g is not None and g.isfinite().all() for g in grads), (gradient, kl)


def test_an_options_default_is_recorded_and_its_value_reaches_the_objective():
    c = Config(
        objective="renyi", objective_options={"alpha": "0.3"}, kl="beta", kl_options={"beta": "2", "schedule": "linear"}
    )
    c = resolved(c)
    assert c.objective_options == {"particles": 5, "alpha": 0.3}
    assert c.kl_options == {"beta": 2.0, "schedule": "linear", "warmup": 0.25, "cycles": 4}
    made = objective_of(c, 100)
    assert repr(made.elbo) == "Bound(renyi(alpha=0.3), num_particles=5, estimator=pathwise)"
    made.scheduled[0].at(0.125)
    assert made.kl.handler.value == 1.0
    assert objective_of(resolved(Config(kl="tc")), 100).elbo.terms[0].dataset_size == 100


def test_old_and_unknown_keys_are_refused_by_name():
    with pytest.raises(UsageError, match="unknown config key 'num_particles'"):
        Config.from_dict({"num_particles": 4})
    with pytest.raises(UsageError, match="no kl 'bta'; did you mean 'beta'"):
        resolved(Config(kl="bta"))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_the_floor_of_normal_elements_holds_at_any_scale(scale):
    """A softplus' inverse by log(e^s - 1) is infinite from 710 on."""
    x = scale * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    px = floor("normal", likelihoods.normal, 6, x, x)
    exact = torch.distributions.Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum(1)
    assert torch.allclose(px, exact.double(), atol=2e-3)


@pytest.mark.parametrize("mean", [3.0, 40.0, 1e3])
def test_the_floor_of_counts_holds_at_any_scale(mean):
    """Three hundred short steps from 0 do not reach a rate of 40: a floor 60 nats too low is cleared by any model."""
    x = torch.poisson(torch.full((200, 3), mean), generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Poisson(x.double().mean(0)).log_prob(x.double()).sum(1)
    assert floor("poisson", likelihoods.poisson, 3, x, x).mean().item() == pytest.approx(exact.mean().item(), abs=0.01)
