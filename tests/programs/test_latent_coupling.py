"""A model that asks one number of all latents couples rows and particles, however seldom it matters: refused by site."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Bound, ais, check, elbo, log_likelihood, log_weights, quadrature
from pyro_vae.errors import ProgramError
from pyro_vae.programs import vectorize_probe
from pyro_vae.programs.problem import Problem

X = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-0.5, 0.1]])
SAID = "when a latent of another row is far away"
PRIORS = {
    "normal": (dist.Normal(0.0, 1.0), dist.Normal(0.1, 0.9)),
    "gamma": (dist.Gamma(2.0, 1.0), dist.Gamma(2.0, 1.1)),
    "counts": (dist.Poisson(2.0), dist.Poisson(2.1)),
    "classes": (
        dist.Categorical(torch.tensor([0.3, 0.3, 0.39, 0.01])),
        dist.Categorical(torch.tensor([0.3, 0.3, 0.39, 0.01])),
    ),
    "bits": (dist.Bernoulli(0.01), dist.Bernoulli(0.02)),
}


def pair(loc, family="normal"):
    prior, posterior = PRIORS[family]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            mean = loc(z).float()
            pyro.sample("x", dist.Normal(mean[..., None], 1.0).expand([*mean.shape, 2]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior)

    return model, guide


def newton(z):
    """y + y³ = z, for all latents as long as one of them has not converged."""
    y = torch.zeros_like(z)
    while ((y + y**3 - z).abs() > 1e-6 * (1 + z.abs())).any():
        y = y - (y + y**3 - z) / (1 + 3 * y**2)
    return y


def asserted(z):
    assert (z.abs() < 12).all()
    return z


def series(z):
    """log(1 + exp z), of another form where one is large: the same numbers."""
    return torch.where(z > 20, z, torch.log1p(z.clamp(max=20).exp())) if (z > 20).any() else torch.log1p(z.exp())


SCRIPT = torch.jit.CompilationUnit("def shifted(z):\n    return z + (z > 4).sum()\n")
COUPLED = {
    "a branch above": (lambda z: 2 * z if (z > 3.5).any() else z, "normal"),
    "a branch below": (lambda z: z + 1 if (z < -5).any() else z, "normal"),
    "the greatest": (lambda z: z * max(1.0, z.max().item() / 4), "normal"),
    "a list": (lambda z: z + sum(v > 4 for v in z.flatten().tolist()), "normal"),
    "numpy": (lambda z: z + float(z.numpy().max() > 4), "normal"),
    "how many there are": (lambda z: z + len((z > 4).nonzero()), "normal"),
    "a positive latent": (lambda z: z if (z < 12).all() else z + 1, "gamma"),
    "a great count": (lambda z: z if (z < 12).all() else z + 1, "counts"),
    "a rare class": (lambda z: z + 1 if (z == 3).any() else z, "classes"),
    "how many are far": (lambda z: z + (z > 4).sum(), "normal"),
    "any, in torch": (lambda z: torch.where((z > 4).any(), 2 * z, z), "normal"),
    "all, in torch": (lambda z: z + (z > 2).all(), "normal"),
    "the greatest, in torch": (lambda z: z + (z.amax() - 5).relu(), "normal"),
    "steps of a matrix": (lambda z: z + ((z > 4).float() @ torch.ones(len(z), len(z)) - (z > 4).float()), "normal"),
    "a script": (SCRIPT.shifted, "normal"),
    "the row before": (lambda z: z + (z.roll(1, -1) > 4), "normal"),
    "a rare bit": (lambda z: z - 1 if z.any() else z, "bits"),
}
OF_EACH = {
    "each by itself": lambda z: torch.where(z > 3, 2 * z, z),
    "until all converge": newton,
    "a check": asserted,
    "a form for large values": series,
    "a number of each": lambda z: z + (z[..., None] > 4).sum(-1),
    "a number that is only looked at": lambda z: (float(z.max()), z)[1],
}


@pytest.mark.parametrize("name", COUPLED)
def test_what_asks_one_number_of_all_latents_is_refused(name):
    with pytest.raises(ProgramError, match=SAID):
        log_weights(*pair(*COUPLED[name]), X)


def log_px_on_a_grid(loc):
    """log ∫ N(z; 0, 1) N(x; loc(z), I) dz, by the trapezoidal rule."""
    z = torch.linspace(-9, 9, 9001, dtype=torch.float64)
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(loc(z)[:, None, None], 1.0).log_prob(X.double()).sum(-1).T
    return (joint + (z[1] - z[0]).log()).logsumexp(-1)


@pytest.mark.parametrize("name", OF_EACH)
def test_what_is_of_each_latent_has_the_integral_of_its_row(name):
    evidence = log_likelihood(*pair(OF_EACH[name]), X, num_samples=2000, verbose=False)
    assert ((evidence.log_px - log_px_on_a_grid(OF_EACH[name])).abs() < 4 * evidence.mc_se).all()


def two_levels(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0))
            pyro.sample("x", dist.Normal(y[..., None], 1.0).expand([*y.shape, 2]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x.mean(-1), scale(z)))

    return model, guide


@pytest.mark.parametrize(
    "scale",
    [
        lambda z: 2.0 if (z > 3.3).any() else 0.6,
        lambda z: 0.6 + (z < -4).sum(),
        lambda z: max(1.0, z.max().item() / 4),
        lambda z: torch.where((z.abs() > 4).any(), 2.0, 1.0),
    ],
    ids=["a branch", "a sum", "the greatest", "in torch"],
)
def test_a_guide_that_asks_one_number_of_all_latents_is_refused(scale):
    """Its ELBO would be another one for each number of rows and particles that are run together."""
    with pytest.raises(ProgramError, match=f"of the guide.*{SAID}"):
        log_weights(*two_levels(scale), X)


def test_a_guide_that_decides_for_each_latent_is_taken():
    evidence = log_likelihood(*two_levels(lambda z: torch.where(z > 1, 2.0, 1.5)), X, num_samples=4000, verbose=False)
    exact = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 2).log_prob(X)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.mc_se).all()


@pytest.mark.parametrize("dim, mode", [(-1, "plate"), (1, "rows")])
def test_a_step_over_a_dimension_counted_from_the_left_is_not_run_under_a_plate_of_particles(dim, mode):
    """It agrees there at all draws but those above 4: the rows, not the latents of a row, would be asked."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + (z > 4).any(dim, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

    assert Problem.of(model, guide, X, seed=0).vectorizing.model == mode


def test_each_function_refuses_it():
    model, guide = pair(*COUPLED["a branch above"])
    for run in (
        lambda: log_likelihood(model, guide, X, num_samples=10, verbose=False),
        lambda: Bound(elbo, 2).loss(model, guide, X),
        lambda: ais(model, guide, X, num_temperatures=2, verbose=False),
        lambda: quadrature(model, None, X),
    ):
        with pytest.raises(ProgramError, match=SAID):
            run()
    assert "rows" in {finding.kind for finding in check(model, guide, X).findings}


def test_unlooked_at_a_row_has_another_number_beside_others(monkeypatch):
    """As it was: one latent above 3, of any particle of any row, doubled the means of all."""
    monkeypatch.setattr(vectorize_probe, "why_latents_are_coupled", lambda *args: None)
    model, guide = pair(lambda z: 2 * z if (z > 3).any() else z)
    beside = log_likelihood(model, guide, X, num_samples=4000, verbose=False)
    own = log_px_on_a_grid(OF_EACH["each by itself"])
    assert ((beside.log_px - own).abs() > 5 * beside.mc_se + 0.1).any()


def of_all_rows(loc, scale=lambda z: 0.8, size=3):
    """A pair whose data plate is of a fixed size, so that it runs on all its rows only."""

    def model(x):
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))
            y = pyro.sample("y", dist.Normal(loc(z).float(), 1.0))
            pyro.sample("x", dist.Normal(y[..., None], 1.0).expand([*y.shape, 2]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))
            pyro.sample("y", dist.Normal(x.mean(-1), scale(z)))

    return model, guide


ALL_ROWS = {
    "a branch": lambda z: 2 * z if (z > 3.5).any() else z,
    "all of them": lambda z: z + (z > 2.5).all(),
    "how many are far": lambda z: z + (z < -4).sum(),
    "the greatest": lambda z: z * max(1.0, z.max().item() / 4),
}


@pytest.mark.parametrize("name", ALL_ROWS)
def test_programs_that_run_on_all_their_rows_only_are_looked_at_too(name):
    with pytest.raises(ProgramError, match=f"of the model.*{SAID}"):
        log_weights(*of_all_rows(ALL_ROWS[name]), X)
    with pytest.raises(ProgramError, match=f"of the guide.*{SAID}"):
        log_weights(*of_all_rows(lambda z: z, lambda z: 0.8 + ALL_ROWS[name](z).abs().float() / 9), X)


def test_local_parameters_do_not_hide_a_guide_that_asks_all_latents():
    def pair_of(scale):
        locs = torch.nn.Parameter(torch.zeros(3))

        def guide(x):
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(pyro.param("locs", locs), 1.0))
                pyro.sample("y", dist.Normal(x.mean(-1), scale(z)))

        return two_levels(None)[0], guide

    with pyro.get_param_store().scope(), pytest.raises(ProgramError, match=f"of the guide.*{SAID}"):
        log_weights(*pair_of(lambda z: 2.0 if (z > 3.3).any() else 0.6), X)
    with pyro.get_param_store().scope():
        log_weights(*pair_of(lambda z: torch.where(z > 3.3, 2.0, 0.6)), X)


def test_programs_on_all_their_rows_that_decide_for_each_are_taken():
    each = OF_EACH["each by itself"]
    evidence = log_likelihood(
        *of_all_rows(each, lambda z: torch.where(z > 1, 0.9, 0.8)), X, num_samples=4000, verbose=False
    )
    z = torch.linspace(-9, 9, 9001, dtype=torch.float64)
    cov = torch.eye(2) + 1
    joint = (
        dist.Normal(0.0, 1.0).log_prob(z)
        + dist.MultivariateNormal(each(z)[:, None, None].expand(-1, 1, 2), cov.double()).log_prob(X.double()).T
    )
    exact = (joint + (z[1] - z[0]).log()).logsumexp(-1)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.mc_se).all()
