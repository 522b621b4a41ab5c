"""log p(x) where supports differ or depend on latents, and where parameters are invalid: right, or refused by name."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import ais, convergence, defensive, gaps, log_likelihood, log_weights, posterior_predictive_check
from pyro_vae.errors import ProgramError, SupportError, UnreliableError
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.quadrature import quadrature

D = torch.float64
X = torch.tensor([-0.5, 0.3, 1.0], dtype=D)


def pair(prior, guide_of_x, likelihood=lambda z: dist.Normal(z, 1.0)):
    """x | z under a plate, with a prior and a guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide_of_x(x))

    return model, guide


def number(value):
    return torch.tensor(value, dtype=D)


def normal(loc, scale):
    return lambda x: dist.Normal(0 * x + loc, x.new_tensor(scale))


WIDE = {  # a prior, and a guide that draws outside its support
    "exponential": (lambda: dist.Exponential(number(1.0)), normal(0.5, 1.0)),
    "kumaraswamy": (lambda: dist.Kumaraswamy(number(2.0), number(2.0)), normal(0.5, 0.3)),
    "gamma": (lambda: dist.Gamma(number(2.0), number(1.0)), normal(1.5, 1.0)),
    "inverse-gamma": (lambda: dist.InverseGamma(number(3.0), number(2.0)), normal(1.0, 1.0)),
}


@pytest.mark.parametrize(("prior", "guide"), WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("proposal", [defensive(0.0), defensive(0.5)], ids=["guide", "defensive"])
def test_a_guide_wider_than_the_prior_is_weighed_rightly(prior, guide, proposal):
    model, guide = pair(prior, guide)
    exact = quadrature(model, None, X).log_px
    evidence = log_likelihood(model, guide, X, num_samples=4000, proposal=proposal, verbose=False)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.mc_se).all()


SMALL = {  # a prior, and a guide that leaves out some of its support
    "exponential": (lambda: dist.Normal(number(0.0), 1.0), lambda x: dist.Exponential(1 + 0 * x)),
    "uniform": (lambda: dist.Normal(number(0.0), 1.0), lambda x: dist.Uniform(-1 + 0 * x, 1.0)),
    "beta": (lambda: dist.Gamma(number(2.0), number(1.0)), lambda x: dist.Beta(2 + 0 * x, 2.0)),
    "binomial": (lambda: dist.Poisson(number(2.0)), lambda x: dist.Binomial(3, 0.5 + 0 * x)),
    "categorical": (
        lambda: dist.Categorical(torch.ones(3, dtype=D)),
        lambda x: dist.Categorical(logits=torch.tensor([0.0, 0.0, -math.inf], dtype=D).expand(len(x), 3)),
    ),
}


@pytest.mark.parametrize(("prior", "guide"), SMALL.values(), ids=SMALL)
def test_a_guide_that_leaves_out_some_of_the_prior_is_refused(prior, guide):
    model, guide = pair(prior, guide)
    with pytest.raises(ProgramError, match=r"site 'z': the guide never draws .* row \d.*defensive\(0.1\)"):
        log_likelihood(model, guide, X, num_samples=10, verbose=False)


WEIGHED = {  # what weighs the guide's draws, and the other way on that its message names
    "log_weights": (lambda model, guide: log_weights(model, guide, X, num_particles=2), "log_likelihood"),
    "gaps": (lambda model, guide: gaps(model, guide, X, steps=1, verbose=False), "log_px="),
    "posterior_predictive_check": (
        lambda model, guide: posterior_predictive_check(
            model, guide, X, statistics={"x": lambda x: x}, num_draws=2, num_particles=2
        ),
        "num_particles=None",
    ),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_whatever_weighs_its_draws_refuses_such_a_guide(name):
    """The gap of an Exponential guide came out too small by all that p(x, z) has below 0, for example."""
    use, way_on = WEIGHED[name]
    with pytest.raises(ProgramError, match=rf"site 'z': the guide never draws .* or .*{way_on}"):
        use(*pair(*SMALL["exponential"]))


def test_what_is_no_row_is_handed_on_as_it_is():
    """A table that rows look up, and a number, beside x: the guide is asked on some of the rows, and all of the table."""

    def model(x, table, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(number(1.0)))
            pyro.sample("x", dist.Normal(z + table[19 + 0 * x.long()], scale), obs=x)

    def guide(x, table, scale):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Exponential(1 + table[19 + 0 * x.long()] * 0 + 0 * x))

    assert log_weights(model, guide, X, torch.ones(20, dtype=D), 2.0, num_particles=2).shape == (2, 3)


def test_what_does_not_weigh_them_takes_it():
    model, guide = pair(*SMALL["exponential"])
    check = posterior_predictive_check(model, guide, X, statistics={"x": lambda x: x}, num_draws=2)
    log_px = dist.Normal(0.0, 2**0.5).log_prob(X)
    split = gaps(model, guide, X, log_px=log_px, steps=1, num_samples=2000, verbose=False)
    z = dist.Exponential(number(1.0)).sample((2000, 1))
    elbo = (dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X) + z).mean(0)  # − log q is z
    assert check.num_draws == 2 and (split.elbo - elbo).abs().max() < 0.3


@pytest.mark.parametrize(("prior", "guide"), list(SMALL.values())[:3], ids=list(SMALL)[:3])
def test_a_defensive_mixture_reaches_what_the_guide_leaves_out(prior, guide):
    model, guide = pair(prior, guide)
    exact = quadrature(model, None, X).log_px
    evidence = log_likelihood(model, guide, X, num_samples=4000, proposal=defensive(0.3), verbose=False)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.mc_se).all()


def test_annealing_from_such_guides_is_refused():
    for prior, guide in (SMALL["uniform"], (lambda: dist.Uniform(number(0.0), number(1.0)), normal(0.5, 0.5))):
        with pytest.raises(ProgramError, match="site 'z'"):
            ais(*pair(prior, guide), X, start="guide", num_temperatures=2, verbose=False)


@pytest.mark.parametrize("samples", [(10, 1000), (50, 1000)], ids=["first-10", "first-50"])
def test_the_first_particles_of_a_defensive_mixture_are_a_mixture(samples):
    """Exact posterior in 8 dimensions: with the prior's particles last, the first K would come out log 2 too high."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8, dtype=D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.09, (0.09 / 1.09) ** 0.5).to_event(1))

    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=D)
    first = convergence(model, guide, x, samples=samples, proposal=defensive(0.5), verbose=False)[0]
    exact = dist.Normal(0.0, 1.09**0.5).log_prob(x).sum(-1)
    assert ((first.log_px - exact).abs() < 0.1).all()


def n_mixture(x):
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Categorical(torch.ones(11, dtype=D)))
        pyro.sample("x", dist.Binomial(n.to(D), number(0.4)), obs=x)


def n_guide(x):
    with pyro.plate("data", len(x)):
        logits = torch.where(torch.arange(11) >= x[..., None], 0.0, -math.inf).to(D)
        pyro.sample("n", dist.Categorical(logits=logits))


def test_an_n_mixture_is_enumerated_and_sampled():
    x = torch.tensor([0.0, 3.0, 8.0, 10.0], dtype=D)
    terms = [[math.comb(n, int(k)) * 0.4**k * 0.6 ** (n - k) for n in range(11) if n >= k] for k in x.tolist()]
    exact = torch.tensor([math.log(sum(row) / 11) for row in terms], dtype=D)
    assert torch.allclose(enumerate_latents(n_mixture, None, x).log_px, exact, atol=1e-9)
    evidence = log_likelihood(n_mixture, n_guide, x, num_samples=4000, verbose=False)
    assert ((evidence.log_px - exact).abs() <= 4 * evidence.mc_se + 1e-9).all()


def tank(x):
    with pyro.plate("data", len(x)):
        m = pyro.sample("m", dist.Pareto(x.new_tensor(1.0), 3.0))
        pyro.sample("x", dist.Uniform(torch.zeros_like(m), m), obs=x)


def tank_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("m", dist.Pareto(x.clamp_min(1.0), 4.0))


def test_the_german_tank_problem_is_right_by_every_method():
    """The exact posterior lives on a part of the prior's support: it is no guide to refuse."""
    x = torch.tensor([0.3, 2.0, 40.0], dtype=D)
    exact = math.log(3 / 4) - 4 * x.clamp_min(1.0).log()
    grid = quadrature(tank, None, x)
    assert ((grid.log_px - exact).abs() <= grid.mc_se).all()
    assert torch.allclose(log_likelihood(tank, tank_guide, x, num_samples=10, verbose=False).log_px, exact)
    annealed = ais(tank, tank_guide, x, start="guide", num_temperatures=3, leapfrog_steps=2, verbose=False)
    assert torch.allclose(annealed.log_px, exact)


def window(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Uniform(z - 1, z + 1), obs=x)


def window_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.7))


def exact_window(x):
    n = torch.distributions.Normal(torch.zeros((), dtype=D), 1.0)
    return ((n.cdf(x + 1) - n.cdf(x - 1)) / 2).log()


def test_a_window_around_the_latent_is_right_by_importance_sampling_and_annealing():
    x = torch.tensor([0.0, 0.5, -1.3, 2.2], dtype=D)
    evidence = log_likelihood(window, window_guide, x, num_samples=4000, verbose=False)
    assert ((evidence.log_px - exact_window(x)).abs() < 4 * evidence.mc_se).all()
    rows = torch.full((300,), 0.5, dtype=D)
    p = ais(window, window_guide, rows, num_temperatures=3, num_chains=4, leapfrog_steps=2, verbose=False).log_px.exp()
    assert (p.mean() - exact_window(x)[1].exp()).abs() < 4 * p.std() / 300**0.5


def test_a_row_that_no_particle_explains_is_flagged():
    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 0.1))

    x = torch.tensor([0.0, 50.0], dtype=D)
    evidence = log_likelihood(window, far, x, num_samples=1000, verbose=False)
    assert evidence.log_px[1] == -math.inf and 1 in evidence.flagged and evidence.ess[1] == 0
    assert evidence.mc_se[1].isnan() and "-inf" in str(evidence)
    with pytest.raises(UnreliableError, match="no particle explains"):
        log_likelihood(window, far, x, num_samples=1000, strict=True, verbose=False)


def test_data_outside_a_fixed_support_is_still_an_error():
    model, guide = pair(lambda: dist.Normal(0.0, 1.0), normal(0.0, 1.0), lambda z: dist.Binomial(number(5.0), logits=z))
    with pytest.raises(SupportError, match="rows"):
        log_likelihood(model, guide, torch.tensor([3.0, 8.0], dtype=D), num_samples=10, verbose=False)


METHODS = {
    "importance": lambda model, guide, x: log_likelihood(model, guide, x, num_samples=100, verbose=False),
    "defensive": lambda model, guide, x: log_likelihood(
        model, guide, x, num_samples=100, proposal=defensive(0.2), verbose=False
    ),
    "quadrature": lambda model, guide, x: quadrature(model, None, x),
    "ais": lambda model, guide, x: ais(model, guide, x, num_temperatures=2, leapfrog_steps=2, verbose=False),
}
LIKELIHOODS = {
    "normal": lambda z: dist.Normal(0.0, z),
    "binomial": lambda z: dist.Binomial(5, probs=z + 0.5),
    "uniform": lambda z: dist.Uniform(0 * z, z),
    "negative-binomial": lambda z: dist.NegativeBinomial(z, logits=torch.zeros(())),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_invalid_parameters_at_some_latents_are_refused_by_every_method(method, likelihood):
    model, guide = pair(lambda: dist.Normal(number(0.0), 1.0), normal(0.0, 1.3), likelihood)
    with pytest.raises(ProgramError, match=r"site 'x' of the model: .* for rows \[0, 1\].*wanted"):
        method(model, guide, torch.tensor([0.0, 1.0], dtype=D))


def test_the_guide_is_named_where_its_parameters_are_invalid():
    model, guide = pair(lambda: dist.Normal(number(0.0), 1.0), lambda x: dist.Normal(x, x))
    with pytest.raises(ProgramError, match=r"site 'z' of the guide: Normal has scale -0.5 for rows \[0\]"):
        log_likelihood(model, guide, X, num_samples=10, verbose=False)


BROKEN = {  # where, what, the mistake, the test that shows it
    "formula-outside": (
        "pyro_vae.programs.score_sites.bounded",
        lambda fn, latent=True: False,
        lambda: test_a_guide_wider_than_the_prior_is_weighed_rightly(*WIDE["exponential"], defensive(0.0)),
    ),
    "no-parameter-checked": (
        "pyro_vae.programs.score_sites.check_site_parameters",
        lambda *args, **kwargs: None,
        lambda: test_invalid_parameters_at_some_latents_are_refused_by_every_method(
            METHODS["importance"], LIKELIHOODS["negative-binomial"]
        ),
    ),
    "reach-not-asked": (
        "pyro_vae.evidence.importance.estimator.check_reach",
        lambda *args, **kwargs: None,
        lambda: test_a_guide_that_leaves_out_some_of_the_prior_is_refused(*SMALL["uniform"]),
    ),
    "moving-support-taken-for-fixed": (
        "pyro_vae.programs.support.moves",
        lambda *args: False,
        test_an_n_mixture_is_enumerated_and_sampled,
    ),
    "prior-particles-last": (
        "pyro_vae.evidence.importance.proposals.Draws.arranged",
        lambda self, order: self,
        lambda: test_the_first_particles_of_a_defensive_mixture_are_a_mixture((50, 1000)),
    ),
}


@pytest.mark.parametrize(("where", "mistake", "shown_by"), BROKEN.values(), ids=BROKEN)
def test_each_check_is_red_without_it(monkeypatch, where, mistake, shown_by):
    shown_by()
    monkeypatch.setattr(where, mistake)
    with pytest.raises((AssertionError, SupportError, ProgramError, pytest.fail.Exception)):
        shown_by()
