"""Generalised DReG: the prior's parameters too."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

from pyro_vae import MLP, VAE, Bound, Conditional, dreg, elbo, gdreg, iwae, normal, pathwise, priors, stl, vimco
from pyro_vae.errors import ProgramError
from tests.helpers.gradient_programs import (
    BOUNDS,
    ONE,
    TWO,
    Exact,
    gradients,
    loss_of,
    one_guide,
    one_model,
    t_values,
    two_guide,
    two_model,
    worst,
)

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}


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
        for seed in range(100):
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


# the exact posterior as guide: no noise is left


def test_nothing_is_left_of_gdreg():
    exact = Exact()
    assert exact.largest(Bound(iwae, 4, estimator=gdreg), 1) < 1e-8


# errors


def test_gdreg_says_what_it_cannot_treat():
    mixture = priors.Mixture(2, components=3).double()

    def mixture_prior(p):
        return mixture()

    with pytest.raises(ProgramError, match=r"'z'.*Mixture.*dreg"):
        loss_of(Bound(iwae, 4, estimator=gdreg), partial(one_model, prior=mixture_prior), one_guide, ONE)
    with pytest.raises(ProgramError, match=r"'z1', 'z2'.*dreg"):
        loss_of(Bound(iwae, 4, estimator=gdreg), two_model, two_guide, TWO)
