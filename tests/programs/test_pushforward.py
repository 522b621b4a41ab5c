"""Guides that draw an auxiliary site and a Delta of it: AutoNormal and EasyGuide against guides written by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_vae import Bound, ais, check, defensive, elbo, fit, iwae, latents, log_likelihood, log_weights
from pyro_vae.common.random import seeded
from pyro_vae.errors import NoWeightError, ProgramError
from pyro_vae.evidence.annealing.densities import Densities
from pyro_vae.programs.problem import Problem

X = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def with_prior(prior, to_x=lambda z: z):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(to_x(z), 1.0), obs=x)

    return model


def by_hand(u, moved=lambda u: u):
    """The density of T(u), from u's."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", moved(u(x)))

    return guide


def set_to(guide, loc, scale):
    guide.locs.z, guide.scales.z = loc, scale
    return guide


TRANSFORMS = dist.transforms
PRIORS = {  # prior, z to the mean of x, q(u), T of the density of u
    "real": (dist.Normal(0.0, 1.0), lambda z: z, lambda d: d),
    "positive": (
        dist.Gamma(2.0, 1.0),
        lambda z: z,
        lambda d: dist.TransformedDistribution(d, [TRANSFORMS.ExpTransform()]),
    ),
    "unit interval": (
        dist.Beta(2.0, 2.0),
        lambda z: z,
        lambda d: dist.TransformedDistribution(d, [TRANSFORMS.SigmoidTransform()]),
    ),
    "interval": (
        dist.Uniform(-1.0, 3.0),
        lambda z: z,
        lambda d: dist.TransformedDistribution(
            d, [TRANSFORMS.SigmoidTransform(), TRANSFORMS.AffineTransform(-1.0, 4.0)]
        ),
    ),
}
EVERY = pytest.mark.parametrize(("prior", "to_x", "moved"), PRIORS.values(), ids=PRIORS)


def normal_pair(prior, to_x):
    model = with_prior(prior, to_x)
    guide = AutoNormal(model)
    guide(X)
    loc, scale = X / 2, torch.linspace(0.4, 0.9, 4)
    return model, set_to(guide, loc.clone(), scale.clone()), lambda x: dist.Normal(loc, scale)


def densities(model, guide):
    """What AIS from the guide walks on: log densities and their gradients, all in one tensor."""
    problem = Problem.of(model, guide, X, seed=0)
    with problem.quiet(0):
        walk = Densities(problem, "guide")
        point = walk(walk.draw(3))
    return torch.cat([point.start, point.ratio, point.d_start[..., 0], point.d_ratio[..., 0]])


def test_the_exact_posterior_as_autonormal_weighs_the_evidence():
    model = with_prior(dist.Normal(0.0, 1.0))
    guide = AutoNormal(model)
    guide(X)
    set_to(guide, X / 2, torch.full((4,), 0.5**0.5))
    exact = dist.Normal(0.0, 2**0.5).log_prob(X)
    assert (log_weights(model, guide, X, num_particles=7) - exact).abs().max() < 1e-10
    assert (log_likelihood(model, guide, X, num_samples=20, verbose=False).log_px - exact).abs().max() < 1e-10


@EVERY
def test_autonormal_is_the_guide_written_by_hand(prior, to_x, moved):
    """On the same random stream, every number is the same: weights, a mixture with the prior, AIS from the guide, gaps."""
    model, auto, u = normal_pair(prior, to_x)
    plain = by_hand(u, moved)
    numbers = [
        lambda g: log_weights(model, g, X, num_particles=3),
        lambda g: log_likelihood(model, g, X, num_samples=30, verbose=False).log_px,
        lambda g: log_likelihood(model, g, X, num_samples=30, proposal=defensive(0.3), verbose=False).log_px,
        lambda g: densities(model, g),
        lambda g: Bound(iwae, 4).per_row(model, g, X),
    ]
    for number in numbers:
        got = []
        for guide in (auto, plain):
            with seeded(0):
                got.append(number(guide))
        assert torch.allclose(*got, atol=1e-9), (got[0] - got[1]).abs().max()


@EVERY
@pytest.mark.parametrize("rows_apart", [True, False], ids=["vectorised", "one by one"])
def test_the_loss_and_its_gradient_are_those_of_trace_elbo(prior, to_x, moved, rows_apart):
    model, auto, _ = normal_pair(prior, to_x)
    gradients = []
    for objective in (Trace_ELBO(), Bound(elbo, vectorize_particles=rows_apart)):
        auto.zero_grad()
        if isinstance(objective, Bound):
            objective.problem(model, auto, (X,), {})
        with seeded(3):
            loss = objective.differentiable_loss(model, auto, X)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in auto.parameters())])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_simplex_and_two_latents_in_a_list():
    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1) + w[..., 0], 1.0), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["z", "x"]), init_scale=1.0))
    guide.append(AutoNormal(poutine.block(model, hide=["w", "x"]), init_scale=1.0))
    estimate = log_likelihood(model, guide, X, num_samples=20_000, verbose=False)
    prior = log_likelihood(model, by_prior, X, num_samples=20_000, verbose=False)
    assert ((estimate.log_px - prior.log_px).abs() < 4 * (estimate.mc_se**2 + prior.mc_se**2).sqrt()).all()


def by_prior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def easy(model, u, name="z"):
    @easy_guide(model)
    def guide(self, x):
        with self.plate("data", len(x)):
            self.group(match=name).sample("zs", u(x))

    return guide


@pytest.mark.parametrize("rows", [X, X[:1]], ids=["four rows", "one row"])
def test_an_amortised_easy_guide_serves_any_rows(rows):
    """Its auxiliary site is a vector of one number, its latent a number: the shapes are brought together."""
    model = with_prior(dist.Gamma(2.0, 1.0))
    guide = easy(model, lambda x: dist.Normal(x[..., None] / 2, 0.7).to_event(1))
    plain = by_hand(lambda x: dist.LogNormal(x / 2, 0.7))
    results = [log_likelihood(model, g, rows, num_samples=40, verbose=False).log_px for g in (guide, plain)]
    assert torch.allclose(*results, atol=1e-9)
    results = [
        log_likelihood(model, g, torch.cat([X] * 40), num_samples=5, verbose=False).log_px for g in (guide, plain)
    ]
    assert torch.allclose(*results, atol=1e-9)  # blocks of rows


def test_a_support_of_each_row_is_its_own():
    """AutoNormal of all rows knows each row's bounds; an amortised guide would take the first row's, and is refused."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x - 1, x + 2))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    auto = AutoNormal(model, init_scale=1.0)
    got = log_likelihood(model, auto, X, num_samples=20_000, verbose=False)
    exact = ((dist.Normal(0.0, 1.0).cdf(torch.tensor(2.0)) - dist.Normal(0.0, 1.0).cdf(torch.tensor(-1.0))) / 3).log()
    assert ((got.log_px - exact).abs() < 4 * got.mc_se).all()
    amortised = easy(model, lambda x: dist.Normal(x[..., None] / 2, 0.7).to_event(1))
    with pytest.raises(NoWeightError, match=r"'z'.*one support of all rows"):
        log_weights(model, amortised, X)


# rows of its own


def test_other_rows_than_its_own_are_refused():
    model, auto, _ = normal_pair(*PRIORS["positive"][:2])
    message = r"plate 'data' has 4 rows of its own.*asked for 3.*Pass exactly these 4 rows"
    for run in (log_likelihood, latents, check_evidence):
        with pytest.raises(NoWeightError, match=message):
            run(model, auto, X[:3])
    with pytest.raises(NoWeightError, match=r"4 rows of its own.*asked for 8"):
        log_likelihood(model, auto, torch.cat([X, X]))


def check_evidence(model, guide, x):
    return ais(model, guide, x, start="guide", num_temperatures=2, num_chains=2, verbose=False)


def test_a_hand_written_guide_with_parameters_of_its_rows():
    model, loc = with_prior(dist.Normal(0.0, 1.0)), X / 2

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    def sized(x):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    exact = dist.Normal(0.0, 2**0.5).log_prob(X)
    for local in (guide, sized):
        assert (log_likelihood(model, local, X, num_samples=5, verbose=False).log_px - exact).abs().max() < 1e-10


def test_a_guide_that_is_not_set_up_gets_all_its_rows():
    model = with_prior(dist.Normal(0.0, 1.0))
    auto = AutoNormal(model)
    log_likelihood(model, auto, X, num_samples=5, verbose=False)
    assert auto.locs.z.shape == (4,)


def test_fit_logs_the_elbo_of_autonormal():
    model = with_prior(dist.Normal(0.0, 1.0))
    auto = AutoNormal(model)
    assert str(check(model, auto, X)) == "✓ nothing found"
    auto(X)  # what a check sets up, it undoes
    set_to(auto, X / 2, torch.full((4,), 0.5**0.5))
    still = lambda p: torch.optim.SGD(p, lr=1e-9)  # noqa: E731
    run = fit((model, auto), X, epochs=1, batch_size=4, verbose=False, optimizer=still)
    exact = dist.Normal(0.0, 2**0.5).log_prob(X).mean().item()
    assert run.history[-1]["elbo"] == pytest.approx(exact, abs=1e-6) and run.history[-1]["kl"] is not None


# refused, with the words that fit


def refused(model, guide, words, x=X):
    with pytest.raises(ProgramError, match=words):
        log_weights(model, guide, x)


REAL = with_prior(dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_one_vector_for_all_rows(kind):
    refused(
        REAL, kind(REAL), rf"'z'.*'_{kind.__name__}_latent', one vector of 4 numbers for all rows.*AutoNormal\(model\)"
    )


def test_points():
    refused(REAL, AutoDelta(REAL), r"'z'.*Delta, a single point.*MAP")

    @easy_guide(REAL)
    def guide(self, x):
        with self.plate("data", len(x)):
            self.map_estimate("z")

    refused(REAL, guide, r"'z'.*Delta, a single point.*MAP")


def test_a_group_of_two_latents():
    """Two latents out of a vector that is not normal."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("z_a", dist.Normal(0.0, 1.0))
            b = pyro.sample("z_b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    guide = easy(model, lambda x: dist.Laplace(torch.zeros(2), 1.0).to_event(1).expand([len(x)]), "z_.*")
    refused(model, guide, r"'z_a'.*'zs', a vector of 2 numbers for more than this latent.*auxiliary site of its own")


def delta(value, density, event=0):
    """A guide that draws u, and z as a Delta of it with some log_density."""

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(value(u), log_density=density(u)))

    return guide


POSITIVE = with_prior(dist.Gamma(2.0, 1.0))
FORGOTTEN = {
    "no log density": (POSITIVE, delta(torch.exp, torch.zeros_like)),
    "a wrong sign": (POSITIVE, delta(torch.exp, lambda u: u)),
    "another map": (POSITIVE, delta(torch.nn.functional.softplus, lambda u: -torch.nn.functional.logsigmoid(u))),
    "not one to one": (REAL, delta(torch.abs, torch.zeros_like)),
    "of nothing": (REAL, delta(torch.zeros_like, torch.zeros_like)),
}


@pytest.mark.parametrize(("model", "guide"), FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_delta_that_is_no_known_bijection(model, guide):
    refused(model, guide, r"'z'.*Delta beside the auxiliary 'u'.*biject_to\(support\)\(u\)")


def test_the_right_log_density_is_taken():
    """The positive control of the refusals: exp, with −u."""
    guide, plain = delta(torch.exp, lambda u: -u), by_hand(lambda x: dist.LogNormal(x, 1.0))
    results = []
    for g in (guide, plain):
        with seeded(0):
            results.append(log_weights(POSITIVE, g, X, num_particles=3))
    assert torch.allclose(*results)


def test_the_latent_at_other_values_has_the_auxiliary_that_belongs_to_it():
    """A later latent that depends on u sees T⁻¹(z) where z is replayed, not a fresh draw."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u))
            pyro.sample("w", dist.Normal(u, 1.0))

    problem = Problem.on(model, guide, X)
    z, w = torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.zeros(4)
    sites = problem.sites(problem.guide, 1, {"z": z[None], "w": w[None]})
    expected = dist.LogNormal(X, 1.0).log_prob(z) + dist.Normal(z.log(), 1.0).log_prob(w)
    assert torch.allclose(problem.log_prob(sites), expected)
