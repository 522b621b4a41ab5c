"""Latents whose two densities are against one measure are weighed; others are refused by site, where a weight is asked for."""

import gc

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    Bound,
    ais,
    bdmc,
    check,
    elbo,
    fit,
    gaps,
    latents,
    linear_gaussian,
    log_likelihood,
    log_weights,
    quadrature,
    simulate,
)
from pyro_vae.errors import NoWeightError
from pyro_vae.objectives.particles import ParticleRun
from pyro_vae.programs.one_measure import latent_measure, one_measure

X = torch.tensor([0.0, 1.0, 2.0])


def pair(prior, posterior, event=0):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            mean = z.flatten(-event).sum(-1) if event else z
            pyro.sample("x", dist.Normal(mean.float(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior)

    return model, guide


HALF, THREE = torch.tensor(0.5), torch.ones(3)
NORMAL, NORMALS = dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1)
REFUSED = {
    "a point": (NORMAL, dist.Delta(HALF), 0, "guide draws it from a Delta, a single point"),
    "a point with a density": (NORMAL, dist.Delta(HALF, log_density=-1.0), 0, "Delta"),
    "points in an event": (NORMALS, dist.Delta(torch.zeros(3), event_dim=1), 1, "Delta"),
    "a point as the prior": (dist.Delta(HALF), NORMAL, 0, "model draws it from a Delta"),
    "a mixture of points": (
        NORMAL,
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Delta(torch.tensor([0.0, 1.0]))),
        0,
        "Delta",
    ),
    "a masked point": (NORMAL, dist.Delta(HALF).mask(True), 0, "Delta"),
    "straight through": (
        dist.Bernoulli(0.5),
        dist.RelaxedBernoulliStraightThrough(HALF, probs=HALF),
        0,
        "RelaxedBernoulliStraightThrough, whose draws are rounded",
    ),
    "straight through in both": (
        dist.RelaxedBernoulliStraightThrough(HALF, probs=HALF),
        dist.RelaxedBernoulliStraightThrough(HALF, probs=HALF),
        0,
        "rounded",
    ),
    "one-hot straight through": (
        dist.OneHotCategorical(THREE),
        dist.RelaxedOneHotCategoricalStraightThrough(HALF, probs=THREE),
        1,
        "rounded",
    ),
    "relaxed against discrete": (
        dist.Bernoulli(0.5),
        dist.RelaxedBernoulli(HALF, probs=HALF),
        0,
        "whole numbers.*real numbers",
    ),
    "continuous against counts": (dist.Poisson(3.0), dist.Gamma(2.0, 1.0), 0, "whole numbers.*real numbers"),
    "simplex against one-hot": (dist.OneHotCategorical(THREE), dist.Dirichlet(THREE), 1, "one-hot vectors.*sum to 1"),
    "bits against one-hot": (
        dist.OneHotCategorical(THREE),
        dist.Bernoulli(HALF).expand([3]).to_event(1),
        1,
        "one-hot.*whole",
    ),
    "sphere against space": (dist.ProjectedNormal(THREE), NORMALS, 1, "length 1.*real numbers"),
    "simplex against space": (dist.Dirichlet(THREE), NORMALS, 1, "sum to 1.*real numbers"),
    "an angle against the line": (dist.VonMises(0.0, 1.0), NORMAL, 0, "angles.*real numbers"),
    "improper": (dist.ImproperUniform(dist.constraints.real, (), ()), NORMAL, 0, "no normalised density"),
}
RIGHT = {
    "real": (NORMAL, dist.StudentT(5.0), 0),
    "positive": (dist.Gamma(2.0, 1.0), dist.LogNormal(0.0, 1.0), 0),
    "mixture": (NORMAL, dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 2.0)), 0),
    "simplex": (dist.Dirichlet(THREE), dist.LogisticNormal(torch.zeros(2), torch.ones(2)), 1),
    "relaxed simplex": (dist.Dirichlet(THREE), dist.RelaxedOneHotCategorical(HALF, probs=THREE), 1),
    "straight-through draws of one-hot vectors": (
        dist.OneHotCategorical(THREE),
        dist.OneHotCategoricalStraightThrough(THREE),
        1,
    ),
    "counts": (dist.Poisson(3.0), dist.NegativeBinomial(3.0, HALF), 0),
    "an angle in bounds": (dist.Uniform(-3.14159, 3.14159), dist.VonMises(0.0, 1.0), 0),
}


@pytest.mark.parametrize(("prior", "posterior", "event", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_weight_is_refused_by_site(prior, posterior, event, words):
    with pytest.raises(NoWeightError, match=rf"'z'.*{words}"):
        log_weights(*pair(prior, posterior, event), X)


IMPROPER = {
    "flat": dist.ImproperUniform(dist.constraints.real, (), ()),
    "positive": dist.ImproperUniform(dist.constraints.positive, (), ()),
    "an event": dist.ImproperUniform(dist.constraints.real_vector, (), (3,)),
    "masked": dist.ImproperUniform(dist.constraints.real, (), ()).mask(True),
}
ASKED = {
    "log_likelihood": lambda model, guide: log_likelihood(model, guide, X, num_samples=5, verbose=False),
    "gaps": lambda model, guide: gaps(model, guide, X, verbose=False),
    "ais": lambda model, guide: ais(model, guide, X, num_temperatures=2, verbose=False),
    "bdmc": lambda model, guide: bdmc(model, guide, X, num_temperatures=2, verbose=False),
    "simulate": lambda model, guide: simulate(model, X),
    "quadrature": lambda model, guide: quadrature(model, None, X),
    "linear_gaussian": lambda model, guide: linear_gaussian(model, None, X),
}


@pytest.mark.parametrize("improper", IMPROPER)
@pytest.mark.parametrize("function", ASKED)
def test_an_improper_prior_is_refused_by_site_and_not_by_pyro(function, improper):
    """It has no density and no draws: each function that draws of the prior ended in Pyro's NotImplementedError."""
    posterior = NORMALS if improper == "an event" else NORMAL
    programs = pair(IMPROPER[improper], posterior, int(improper == "an event"))
    with pytest.raises(NoWeightError, match=r"'z'.*ImproperUniform, which is no normalised density"):
        ASKED[function](*programs)


def test_an_improper_posterior_is_refused_by_site():
    with pytest.raises(NoWeightError, match=r"'z'.*ImproperUniform, which is no normalised density"):
        fit(pair(NORMAL, IMPROPER["flat"]), X, epochs=1, verbose=False)


def test_a_distribution_of_ones_own_without_draws_says_so_itself():
    class Silent(dist.Normal):
        has_rsample = False

        def sample(self, *args):
            raise NotImplementedError("to be written")

        __call__ = rsample = sample

    with pytest.raises(NotImplementedError, match="to be written"):
        log_weights(*pair(NORMAL, Silent(0.0, 1.0)), X)


@pytest.mark.parametrize(("prior", "posterior", "event"), RIGHT.values(), ids=RIGHT)
def test_what_is_against_one_measure_is_weighed(prior, posterior, event):
    assert log_weights(*pair(prior, posterior, event), X, num_particles=4).shape == (4, 3)


def test_simplex_densities_are_against_one_measure():
    """E_q[p / q] = 1 over the simplex, within 4 standard errors, for both families that stand in for a Dirichlet."""
    torch.manual_seed(0)
    p = dist.Dirichlet(2 * THREE)
    for q in (
        dist.LogisticNormal(torch.zeros(2), torch.ones(2)),
        dist.RelaxedOneHotCategorical(torch.tensor(1.0), probs=THREE),
    ):
        z = q.sample((20_000,)).clamp(1e-6)
        ratio = (p.log_prob(z / z.sum(-1, keepdim=True)) - q.log_prob(z)).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 20_000**0.5


def test_every_number_is_refused_and_the_prior_alone_goes_on():
    model, point = pair(NORMAL, dist.Delta(HALF))
    for number in (
        lambda: log_likelihood(model, point, X, verbose=False),
        lambda: ais(model, point, X, start="guide", num_temperatures=2, num_chains=2, verbose=False),
        lambda: latents(model, point, X),
        lambda: Bound(elbo).per_row(model, point, X),
    ):
        with pytest.raises(NoWeightError, match=r"'z'.*Delta, a single point"):
            number()
    assert len(ais(model, point, X, start="prior", num_temperatures=2, num_chains=2, verbose=False).log_px) == 3
    assert [(f.kind, f.level) for f in check(model, point, X).findings] == [("weight", "warning")]


@pytest.mark.parametrize("objective", [None, Bound(elbo)], ids=["Trace_ELBO", "Bound"])
def test_a_point_trains_and_no_elbo_is_logged(objective):
    """MAP: z goes to the mode x / 2 of p(x, z), and nothing that is written down calls the loss an ELBO."""
    pyro.clear_param_store()
    model, _ = pair(NORMAL, NORMAL)
    at = torch.nn.Parameter(torch.zeros(3))

    class Point(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.at = at

        def forward(self, x):
            pyro.module("point", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.at))

    optimizer = lambda p: torch.optim.SGD(p, lr=0.3)  # noqa: E731
    run = fit((model, Point()), X, epochs=30, batch_size=3, objective=objective, optimizer=optimizer, verbose=False)
    assert run.history[-1]["elbo"] is None and "'z'" in run.history[-1]["no_elbo"]
    assert "no ELBO is logged" in run.warnings[0]
    assert (at - X / 2).abs().max() < 0.05


def test_a_refusal_holds_no_frame_of_the_training_that_met_it():
    """Kept with its traceback, the error would keep each step's particles alive as long as the objective is."""
    model, point = pair(NORMAL, dist.Delta(torch.zeros(3, requires_grad=True)))
    objective = Bound(elbo)
    for _ in range(3):
        objective.loss_and_grads(model, point, X)
    gc.collect()
    assert not [run for run in gc.get_objects() if type(run) is ParticleRun and run.problem.model is model]


def test_names():
    assert latent_measure(dist.Normal(torch.zeros(3), 1.0).to_event(1).mask(False)) == "real numbers"
    assert one_measure(dist.LKJCholesky(3), dist.LKJCholesky(3))
