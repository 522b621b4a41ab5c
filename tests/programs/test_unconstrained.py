"""Latents whose support a distribution does not say as torch has it: every method takes them alike, or refuses them alike."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import settings
from pyro.contrib.zuko import ZukoToPyro
from scipy import stats
from torch.distributions import constraints

from pyro_vae import ais, bracket, log_likelihood
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.annealing.densities import Densities
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.unconstrained import SiteLayout, SubstituteLatents, bijection, support_of

QUICK = {"num_temperatures": 15, "num_chains": 200, "leapfrog_steps": 4, "step_size": 0.5, "verbose": False}
X = torch.tensor([0.3, -0.4, 2.0], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
LOC = torch.tensor([[-1.0, 1.5], [0.5, -2.0]], dtype=torch.float64)  # (dimension, component)


def import_zuko():
    """Import zuko, and leave torch's validation as it was: importing it switches that off."""
    with settings.context(validate_distributions_torch=settings.get("validate_distributions_torch")):
        import zuko
    return zuko


def pair(latent, decode=lambda z: z.sum(-1), noise=0.7, guide=None):
    """z ~ latent(), x ~ N(decode(z), noise²)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", latent())
            pyro.sample("x", dist.Normal(decode(z), noise), obs=x)

    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", (guide or latent)())

    return model, prior


def wide(dims=2):
    return dist.Normal(torch.zeros(dims, dtype=torch.float64), 2.0).to_event(1)


def mixture(component, weights=WEIGHTS):
    return dist.MixtureSameFamily(dist.Categorical(weights), component)


def each_dimension_a_mixture():
    """A mixture in each of two dimensions, made one event."""
    return mixture(dist.Normal(LOC, 0.5), WEIGHTS.expand(2, 2)).to_event(1)


def mixtures_of_a_mixture():
    """2 components, each itself a mixture of 2 independent Normals."""
    inner = mixture(dist.Normal(LOC.expand(2, 2, 2) + torch.tensor([0.0, 3.0]).view(2, 1, 1), 0.5).to_event(1))
    return mixture(dist.MixtureSameFamily(dist.Categorical(WEIGHTS.expand(2, 2)), inner.component_distribution))


def flow():
    """One affine autoregressive step over R^2, not trained."""
    torch.manual_seed(0)
    return import_zuko().flows.MAF(2, 0, transforms=1, hidden_features=(4,)).double()


def log_px_of_mixture(terms, x, noise=0.7):
    """log Σ w N(x; m, s² + noise²) of (w, m, s)."""
    each = [math.log(w) + stats.norm.logpdf(x.numpy(), m, (s**2 + noise**2) ** 0.5) for w, m, s in terms]
    return torch.stack([torch.as_tensor(log_p) for log_p in each]).logsumexp(0)


def sum_of_two_mixtures():
    return [(a * b, LOC[0, i].item() + LOC[1, j].item(), 0.5**0.5) for i, a in W for j, b in W]


W = list(enumerate(WEIGHTS.tolist()))


def sum_of_nested():
    """Components differ by 3 in both dimensions; within, rows of LOC are components."""
    return [(a * b, LOC[j].sum().item() + 6.0 * i, 0.5**0.5) for i, a in W for j, b in W]


def within(found, exact):
    """Each row within 4 Monte Carlo standard errors, and errors that could tell."""
    assert ((found.log_px - exact).abs() < 4 * found.mc_se).all(), f"{found.log_px} {found.mc_se} {exact}"
    assert (found.mc_se < 0.3).all()


def every_method_agrees(model, guide, exact=None):
    """Quadrature is exact, `auto` is quadrature, and sampling methods agree with it within their errors."""
    by_grid = quadrature(model, guide, X)
    exact = by_grid.log_px if exact is None else exact
    torch.testing.assert_close(by_grid.log_px, exact, rtol=0, atol=2e-4)
    assert not len(by_grid.flagged)
    auto = log_likelihood(model, guide, X, method="auto", num_samples=50, verbose=False)
    assert torch.equal(auto.log_px, by_grid.log_px) and auto.method == by_grid.method
    within(log_likelihood(model, guide, X, num_samples=20_000, verbose=False), exact)
    for start in ("prior", "guide"):
        within(ais(model, guide, X, start=start, **QUICK), exact)
    both = bracket(model, guide, X, num_samples=2000, refresh=3, **QUICK)
    assert ((both.lower - exact).abs() < 4 * both.lower_se).all()
    assert ((both.upper - exact).abs() < 0.5).all()  # approximate: from where forward chains ended


@pytest.mark.parametrize(
    ("latent", "terms"),
    [(each_dimension_a_mixture, sum_of_two_mixtures), (mixtures_of_a_mixture, sum_of_nested)],
    ids=["mixture_made_an_event", "nested_mixture"],
)
def test_mixtures_are_mixtures_of_convolutions(latent, terms):
    every_method_agrees(*pair(latent, guide=wide), log_px_of_mixture(terms(), X))


def test_a_flow_of_zuko_is_over_real_vectors():
    prior = flow()
    assert support_of(ZukoToPyro(prior()).expand((3,)).mask(True)).event_dim == 1
    every_method_agrees(*pair(lambda: ZukoToPyro(prior()), guide=wide))


def test_independent_betas():
    """z1 + z2 uniform each: the triangle on [0, 2], smoothed."""
    flat = partial(dist.Beta, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    grid = torch.linspace(0, 2, 20001, dtype=torch.float64)
    density = (1 - (grid - 1).abs()) * dist.Normal(grid, 0.7).log_prob(X[:, None]).exp()
    every_method_agrees(*pair(lambda: flat().to_event(1)), torch.trapezoid(density, grid).log())


def test_what_a_flow_starts_from_is_its_support():
    """A LogNormal, as zuko writes it: a normalizing flow from the positive numbers to a Normal."""
    zuko = import_zuko()
    log = torch.distributions.transforms.ExpTransform().inv
    log.call_and_ladj = lambda x: (x.log(), -x.log())
    made = zuko.distributions.NormalizingFlow(log, torch.distributions.Normal(0.0, 1.0))
    assert bijection(ZukoToPyro(made))(torch.tensor(0.0)) == 1.0


class Own(dist.TorchDistribution):
    """N(0, I) in two dimensions, without a support."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, batch_shape=()):
        super().__init__(torch.Size(batch_shape), torch.Size([2]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(batch_shape)

    def rsample(self, sample_shape=()):
        return torch.randn(*sample_shape, *self.batch_shape, 2, dtype=torch.float64)

    def log_prob(self, z):
        return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)


class Said(Own):
    """The same, with one."""

    support = constraints.real_vector


def circular():
    """A flow on the circle, over a uniform base."""
    torch.manual_seed(0)
    return ZukoToPyro(import_zuko().flows.NCSF(2, 0, transforms=1, hidden_features=(4,)).double()())


@pytest.mark.parametrize(
    ("latent", "name"),
    [
        (Own, "Own"),
        (lambda: dist.Independent(Own((1,)), 1), "Own"),
        (lambda: ZukoToPyro(Own()), "Own"),
        (lambda: mixture(Own((2,))), "Own"),
        (lambda: Own().mask(True), "Own"),
        (lambda: dist.TransformedDistribution(Own(), []), "TransformedDistribution"),
        (circular, "NormalizingFlow"),
    ],
    ids=["own", "independent", "wrapped", "mixture", "masked", "transformed", "circular"],
)
def test_a_latent_without_a_support_is_refused_with_the_fix(latent, name):
    model, guide = pair(latent, decode=lambda z: z.reshape(*z.shape[: z.dim() - latent().event_dim], -1).sum(-1))
    for method in (quadrature, enumerate_latents, partial(ais, **QUICK)):
        with pytest.raises(
            ProgramError, match=f"site 'z': {name} does not say what its support is: give it a `support`"
        ):
            method(model, guide, X)


def test_auto_samples_what_no_oracle_takes():
    exact = dist.Normal(torch.zeros(()).double(), (2 + 0.49) ** 0.5).log_prob(X)
    model, guide = pair(Own)
    found = log_likelihood(model, guide, X, method="auto", num_samples=20_000, verbose=False)
    assert found.method == "importance sampling"
    within(found, exact)
    every_method_agrees(*pair(Said), exact)
    said_by_the_transform = dist.TransformedDistribution(Own(), [dist.transforms.AffineTransform(1.0, 2.0)])
    shifted = dist.Normal(torch.tensor(2.0).double(), (8 + 0.49) ** 0.5).log_prob(X)
    every_method_agrees(*pair(lambda: said_by_the_transform), shifted)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_uniform_components(rows):
    """Bounds that components share lose the components' dimension; bounds that differ are a union, and refused."""
    bounds = torch.tensor([[0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    x = X[:rows]
    model, guide = pair(lambda: mixture(dist.Uniform(*bounds)), decode=lambda z: z)
    exact = (stats.norm.cdf(x / 0.7) - stats.norm.cdf((x - 2) / 0.7)) / 2
    torch.testing.assert_close(quadrature(model, guide, x).log_px.exp(), torch.as_tensor(exact), rtol=1e-3, atol=1e-4)
    within(ais(model, guide, x, **QUICK), torch.as_tensor(exact).log())
    apart = torch.tensor([[0.0, 2.0], [1.0, 5.0]], dtype=torch.float64)
    model, guide = pair(lambda: mixture(dist.Uniform(*apart)), decode=lambda z: z)
    for method in (quadrature, partial(ais, **QUICK)):
        with pytest.raises(ProgramError, match="'z': the components of the mixture have different supports"):
            method(model, guide, x)


ANGLES = {  # on either side of the cut at ±π; torch says that an angle is any real number, where its density repeats
    "one": lambda: dist.VonMises(torch.tensor(3.1).double(), 4.0),
    "a mixture": lambda: mixture(dist.VonMises(torch.tensor([-3.0, 1.0]).double(), torch.tensor([5.0, 2.0]).double())),
}


@pytest.mark.parametrize("name", ANGLES)
def test_an_angle_is_integrated_over_one_turn(name):
    """By the midpoint rule, which is exact to rounding for what repeats."""
    model, guide = pair(ANGLES[name], decode=lambda z: 2 * z.cos() + z.sin())
    angle = (torch.arange(4000).double() + 0.5) / 4000 * 2 * math.pi - math.pi
    likelihood = dist.Normal(2 * angle.cos() + angle.sin(), 0.7).log_prob(X.unsqueeze(-1))
    exact = (ANGLES[name]().log_prob(angle) + likelihood).logsumexp(-1) + math.log(2 * math.pi / 4000)
    assert (quadrature(model, guide, X).log_px - exact).abs().max() < 1e-5
    annealed = ais(model, guide, X, seed=1, **QUICK)
    assert ((annealed.log_px - exact).abs() < 4 * annealed.mc_se).all() and annealed.mc_se.max() < 0.2


def test_two_angles_on_a_torus():
    def torus():
        loc, kappa = torch.tensor([0.3, -2.0]).double(), torch.tensor([2.0, 1.5]).double()
        return dist.SineBivariateVonMises(*loc, *kappa, correlation=torch.tensor(0.8).double())

    model, guide = pair(
        torus, decode=lambda z: z.cos().sum(-1), guide=lambda: dist.VonMises(X.new_zeros(2), 1.0).to_event(1)
    )
    axis = (torch.arange(300).double() + 0.5) / 300 * 2 * math.pi - math.pi
    grid = torch.cartesian_prod(axis, axis)
    each = torus().log_prob(grid) + dist.Normal(grid.cos().sum(-1), 0.7).log_prob(X.unsqueeze(-1))
    exact = each.logsumexp(-1) + 2 * math.log(2 * math.pi / 300)
    assert (quadrature(model, guide, X).log_px - exact).abs().max() < 1e-4


# layouts


def inner_plates(x):
    with pyro.plate("data", len(x), dim=-2):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(1, 3)))
        with pyro.plate("parts", 4, dim=-1):
            s = pyro.sample("s", dist.Gamma(1 + p[..., 0], 1.0))
            pyro.sample("x", dist.Normal(s, 1.0), obs=x)


def test_a_layout_there_and_back():
    """u of a trace, put back, is the trace's z; sizes are those on the real line, where a simplex of 3 has 2."""
    x = torch.zeros(5, 4)
    problem = Problem.on(inner_plates, inner_plates, x)
    density = Densities(problem, "prior")
    sites = problem.sites(inner_plates, 6)
    u = density.flat({name: sites[name] for name in ("p", "s")})
    assert u.shape == (6, 5, 2 + 4) and [layout.size for layout in density.layouts] == [2, 4]
    with SubstituteLatents.at(u, density.layouts) as placed:
        again = problem.sites(inner_plates, 6)
    for name in ("p", "s"):
        torch.testing.assert_close(again[name]["value"], sites[name]["value"], rtol=1e-4, atol=1e-5)
    assert {name: t.shape for name, t in placed.log_jacobians(again).items()} == {"p": (6, 5), "s": (6, 5)}
    plain = SiteLayout.of("p", sites["p"], problem.plates, unconstrained=False)
    assert plain.size == 3 and torch.equal(plain.arrange(plain.flatten(sites["p"]["value"])), sites["p"]["value"])
