"""Exact oracles against each other, scikit-learn, scipy and brute force; honest errors; refusals; and broken variants."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.zuko import ZukoToPyro
from scipy import stats
from torch import nn

from pyro_vae import MLP, VAE, Conditional, Evidence, StandardNormal, ais, bernoulli, check, normal
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.exact import enumeration, joint, trapezoid
from pyro_vae.evidence.exact.choose import exact as by_an_oracle
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.priors.flow import FlowPrior
from pyro_vae.programs.measure import measure_of
from pyro_vae.programs.support import check_support
from pyro_vae.runs import marginal_baseline

log_likelihood = partial(noisy_log_likelihood, verbose=False)
nan = math.nan


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_model(dims, noise=0.3, columns=4):
    """z ~ N(0, I), x ~ N(z A, noise^2): the model, and x drawn from it."""
    a = draws(dims, columns)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(a.new_zeros(dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ a, noise).to_event(1), obs=x)

    return model, draws(5, dims, seed=1) @ a + noise * draws(5, columns, seed=2)


def close(got, wanted, atol=1e-8):
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=torch.float64), rtol=0, atol=atol)


def fails(check):
    """That a check finds what was broken."""
    with pytest.raises(AssertionError):
        check()


# against each other, and against scikit-learn and scipy


def test_linear_gaussian_is_sklearns(lg):
    exact = linear_gaussian(lg.model, lg.mean_field_guide, lg.x)
    close(exact.log_px, lg.log_px(lg.x).cpu(), 1e-10)
    assert exact.error.eq(0).all() and not len(exact.flagged) and exact.measure == "continuous"
    fails(lambda: close(linear_gaussian(lg.model, None, lg.x + 0.01).log_px, lg.log_px(lg.x).cpu(), 1e-10))


@pytest.mark.parametrize("share", [True, False])
def test_quadrature_is_sklearns_on_one_grid_or_many(lg, share):
    found = quadrature(lg.vae().model, lg.vae().guide, lg.x, share=share, tol=1e-9)
    close(found.log_px, lg.log_px(lg.x).cpu())
    assert found.error.max() < 1e-7 and ("one grid" in found.how) == share


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.5, 0.02])
def test_quadrature_is_the_closed_form(dims, noise):
    model, x = linear_model(dims, noise)
    exact, found = linear_gaussian(model, None, x), quadrature(model, None, x, tol=1e-9 if dims < 3 else 1e-4)
    close(found.log_px, exact.log_px)
    assert not len(found.flagged) and found.method == f"quadrature in {dims} dimensions"


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.5), x.new_tensor(0.7)))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def lognormal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal((x + 1).log(), 0.5))


def test_gamma_poisson_is_scipys():
    x = torch.arange(12.0, dtype=torch.float64)
    check = partial(close, wanted=stats.nbinom.logpmf(x.numpy(), 2.5, 0.7 / 1.7))
    found = quadrature(gamma_poisson, lognormal_guide, x, tol=1e-9)
    check(found.log_px)
    assert found.measure == "counts"


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.5), (0.5, 0.5)])
def test_beta_binomial_is_scipys(a, b):
    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("x", dist.Binomial(10, p), obs=x)

    x = torch.arange(11.0, dtype=torch.float64)
    close(quadrature(model, None, x, tol=1e-9).log_px, stats.betabinom.logpmf(x.numpy(), 10, a, b), 1e-7)


def test_dirichlet_multinomial_is_scipys():
    """A simplex of 3 has 2 dimensions."""
    alpha = torch.tensor([1.5, 2.0, 0.8], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(6, p, validate_args=False), obs=x)

    x = torch.tensor([[6.0, 0, 0], [2, 2, 2], [0, 1, 5]], dtype=torch.float64)
    wanted = stats.dirichlet_multinomial.logpmf(x.long().numpy(), alpha.numpy(), 6)
    close(quadrature(model, None, x, tol=1e-8).log_px, wanted, 1e-7)


def test_a_mixture_prior_with_a_linear_decoder_is_a_mixture_of_gaussians():
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    loc, scale = 4 * draws(3, 2), draws(3, 2, seed=1).exp() * 0.3
    a, x = draws(2, 4, seed=2), 3 * draws(7, 4, seed=3)
    prior = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ a, 0.5).to_event(1), obs=x)

    cov = a.T @ torch.diag_embed(scale**2) @ a + 0.25 * torch.eye(4)
    each = dist.MultivariateNormal(loc @ a, cov)
    close(
        quadrature(model, None, x, tol=1e-9).log_px, dist.MixtureSameFamily(dist.Categorical(weights), each).log_prob(x)
    )


def discrete(x):
    """3 bits, a class that depends on them, and a column of x for each."""
    with pyro.plate("data", len(x)):
        bits = pyro.sample("bits", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])).to_event(1))
        logits = bits @ torch.tensor([[1.0, 0, -1, 2], [0, 1, 1, -1], [-2, 0, 1, 0]])
        one = pyro.sample("class", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
        loc = torch.cat([bits, one @ torch.tensor([[0.0], [1], [3], [7]])], -1)
        pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)


def by_hand(x):
    total = []
    for code in itertools.product([0.0, 1.0], repeat=3):
        bits = torch.tensor(code)
        p = torch.tensor([0.2, 0.5, 0.7])
        logits = bits @ torch.tensor([[1.0, 0, -1, 2], [0, 1, 1, -1], [-2, 0, 1, 0]])
        for k, step in enumerate((0.0, 1.0, 3.0, 7.0)):
            prior = (p * bits + (1 - p) * (1 - bits)).log().sum() + logits.log_softmax(-1)[k]
            loc = torch.cat([bits, torch.tensor([step])])
            total.append(prior + dist.Normal(loc, 0.8).log_prob(x).sum(-1))
    return torch.stack(total).double().logsumexp(0)


@pytest.mark.parametrize("rows", [1, 6])
def test_enumeration_is_brute_force(rows):
    x = 2 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    found = enumerate_latents(discrete, None, x)
    close(found.log_px, by_hand(x), 2e-5)  # float32
    assert found.method == "enumeration" and found.how == "32 codes of 'bits', 'class'"
    close(enumerate_latents(discrete, None, x, chunk_size=1).log_px, found.log_px, 1e-6)


def test_enumeration_of_codes_in_an_inner_plate():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
            pyro.sample("x", dist.Normal(4.0 * z, 1.0), obs=x)

    x = 3 * draws(5, 3)
    each = torch.stack([math.log(p) + dist.Normal(m, 1.0).log_prob(x) for p, m in ((0.3, 0.0), (0.7, 4.0))])
    found = enumerate_latents(model, None, x)
    close(found.log_px, each.logsumexp(0).sum(-1), 1e-10)
    assert found.how.startswith("8 codes")


# structure: contexts, several sites, missing data, sharing


def conditional(x, c):
    """p(z | c) and p(x | z, c) both move with c."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1 + c.abs()))
        pyro.sample("x", dist.Normal(2 * z + c, 0.5 + c.abs()), obs=x)


@pytest.mark.parametrize("oracle", [linear_gaussian, quadrature])
@pytest.mark.parametrize("rows", [1, 6, 70])
def test_a_context_has_its_own_prior_and_likelihood_in_each_row(oracle, rows):
    x, c = 3 * draws(rows), draws(rows, seed=1)
    wanted = dist.Normal(3 * c, (4 * (1 + c.abs()) ** 2 + (0.5 + c.abs()) ** 2).sqrt()).log_prob(x)
    found = oracle(conditional, None, x, c, tol=1e-9)
    close(found.log_px, wanted)
    assert "one grid" not in found.how


def two_levels(x):
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(x.new_tensor(0.5), 1.5))
        low = pyro.sample("low", dist.Normal(torch.stack([top, -top], -1), x.new_tensor([0.5, 1.0])).to_event(1))
        pyro.sample("x", dist.Normal(low.sum(-1) + 0.1 * top, 0.4), obs=x[..., 0])
        pyro.sample("y", dist.Normal(low[..., 0], 0.3), obs=x[..., 1])


def test_several_sites_observed_and_latent():
    """x = low0 + low1 + top / 10 and y = low0 as sums of independent normals."""
    t, e0, e1 = 1.5**2, 0.25, 1.0
    cov = torch.tensor([[0.01 * t + e0 + e1 + 0.16, 0.1 * t + e0], [0.1 * t + e0, t + e0 + 0.09]], dtype=torch.float64)
    x = 2 * draws(6, 2)
    wanted = dist.MultivariateNormal(torch.tensor([0.05, 0.5], dtype=torch.float64), cov).log_prob(x)
    close(linear_gaussian(two_levels, None, x).log_px, wanted, 1e-10)
    close(quadrature(two_levels, None, x[:3], tol=1e-8).log_px, wanted[:3])


def test_latents_in_an_inner_plate():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = draws(4, 2)
    wanted = dist.Normal(x.new_zeros(()), 1.25**0.5).log_prob(x).sum(-1)
    close(linear_gaussian(model, None, x).log_px, wanted)
    close(quadrature(model, None, x, tol=1e-9).log_px, wanted)


def test_a_full_covariance_in_prior_and_likelihood():
    cov, noise = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(x.new_ones(2), cov))
            pyro.sample("x", dist.MultivariateNormal(z, noise), obs=x)

    x = draws(5, 2)
    wanted = dist.MultivariateNormal(x.new_ones(2), cov + noise).log_prob(x)
    close(linear_gaussian(model, None, x).log_px, wanted)
    close(quadrature(model, None, x, tol=1e-9).log_px, wanted)


def test_what_is_missing_is_marginalised(lg):
    vae = lg.vae()
    gappy = VAE(vae.prior, SkipMissing(vae.likelihood), lambda x: vae.posterior(x.nan_to_num()))
    x = lg.x[:6].clone()
    x[0, 1] = x[1, 0] = x[1, 4] = x[2] = nan
    cov = lg.a.T @ lg.a + lg.noise.diag()
    wanted = torch.zeros(6, dtype=torch.float64)
    for n, row in enumerate(x):
        if (seen := ~row.isnan()).any():
            wanted[n] = dist.MultivariateNormal(lg.mean[seen], cov[seen][:, seen]).log_prob(row[seen])
    close(linear_gaussian(gappy.model, gappy.guide, x).log_px, wanted)
    for share in (True, False):
        close(quadrature(gappy.model, gappy.guide, x, tol=1e-9, share=share).log_px, wanted)


class Curved(nn.Module):
    """A small smooth decoder, in float64."""

    def __init__(self, family=bernoulli, columns=6, width=1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, width * columns)).double()
        for p in self.net.parameters():
            p.data.mul_(2.5)
        self.family = family

    def forward(self, z):
        d = self.family(self.net(z))
        return d.to_event(1 - d.event_dim)


def curved(**kwargs):
    prior = StandardNormal(2).double()
    vae = VAE(prior, Curved(**kwargs), Conditional(MLP(6, 4, (8,)), normal).double())
    torch.manual_seed(1)
    return vae, vae.likelihood(prior().sample((5,))).sample().double()


def mixed_levels():
    """Bernoulli data with gaps: three values."""
    vae, x = curved()
    x[0, 1] = x[3, 2] = nan
    return VAE(vae.prior, SkipMissing(vae.likelihood), Conditional(WithMask(MLP(12, 4)), normal).double()), x


@pytest.mark.parametrize("pair", [curved, partial(curved, family=normal, width=2), mixed_levels])
def test_one_grid_and_many_agree_and_so_do_looking_up_and_scoring(pair, monkeypatch):
    vae, x = pair()
    alone = quadrature(vae.model, vae.guide, x, tol=1e-6, share=False)
    together = quadrature(vae.model, vae.guide, x, tol=1e-6, share=True)
    assert "one grid for all rows" in together.how
    close(together.log_px, alone.log_px, 1e-6)
    monkeypatch.setattr(joint, "LEVELS", 0)
    close(quadrature(vae.model, vae.guide, x, tol=1e-6, share=True).log_px, alone.log_px, 1e-6)


def test_the_shared_decoder_runs_once_at_each_grid_point(monkeypatch):
    monkeypatch.setattr(trapezoid, "ROUNDS", 0)  # of looking where to lay the grid
    vae, x = curved()
    seen = []
    vae.likelihood.register_forward_hook(lambda module, args, out: seen.append(math.prod(args[0].shape[:-1])))
    found = quadrature(vae.model, vae.guide, x.repeat(10, 1), tol=0.1, points=121**2)
    assert found.how == "one grid for all rows" and len(found) == 50
    rows_and_probes = sum(seen) - 121**2  # the support of x, where draws lie, and whether the program can be shared
    assert 0 < rows_and_probes < 40_000  # where each row has its own, there are 50 times 121**2


def test_what_depends_on_x_is_not_shared():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.abs(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = draws(5)
    found = quadrature(model, None, x, tol=1e-9, share=True)
    assert found.how == "a grid for each row"
    close(found.log_px, dist.Normal(x.abs(), 2**0.5).log_prob(x))


# errors


def test_a_curved_decoder_agrees_with_importance_sampling_within_4_standard_errors():
    vae, x = curved()
    exact = quadrature(vae.model, vae.guide, x)
    sampled = log_likelihood(vae.model, vae.guide, x, num_samples=20000)
    assert ((sampled.log_px - exact.log_px).abs() < 4 * sampled.mc_se).all()
    assert not ((sampled.log_px - exact.log_px - 0.5).abs() < 4 * sampled.mc_se).all()


def kinked(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Laplace(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.relu().sum(-1), 0.7), obs=x)


def test_errors_are_honest():
    """The true error, against a finer grid, is below 3 times the reported one; on a coarse grid, rows are flagged."""
    vae, x = curved()
    for pair in ((vae.model, vae.guide, x), (kinked, None, 3 * draws(4))):
        true = quadrature(*pair, tol=1e-8, points=241**2)
        for points in (31**2, 61**2):
            found = quadrature(*pair, tol=1e-8, points=points)
            assert ((found.log_px - true.log_px).abs() <= 3 * found.error + true.error).all()
    assert len(found.flagged) == len(found) and found.error.max() < 1


def cut_at_the_mode(monkeypatch, x):
    """A first grid that ends where the posterior has its maximum."""
    a = draws(1, 4)
    monkeypatch.setattr(
        trapezoid.Rule, "widen", lambda self, f, box, rows: trapezoid.Box(box.lower, (x @ a.T / a.square().sum())[rows])
    )


def test_a_first_grid_that_cuts_the_mass_is_grown(monkeypatch):
    model, x = linear_model(1)
    exact = linear_gaussian(model, None, x).log_px
    cut_at_the_mode(monkeypatch, x)
    found = quadrature(model, None, x)
    assert not len(found.flagged) and ((found.log_px - exact).abs() <= found.error).all()


def test_mass_that_is_cut_is_found_out(monkeypatch):
    """The test above sees it where the grid grows away from it."""
    model, x = linear_model(1)
    exact = linear_gaussian(model, None, x).log_px
    cut_at_the_mode(monkeypatch, x)
    both = trapezoid.Rule.around
    monkeypatch.setattr(trapezoid.Rule, "around", lambda self, row, digits: both(self, row, digits - 1))
    found = quadrature(model, None, x)
    assert not ((found.log_px - exact).abs() <= found.error).any()


@pytest.mark.parametrize(("share", "width"), [(True, 0.02), (False, 0.1)])
def test_every_one_of_several_narrow_modes_is_counted(share, width):
    """x = z² + noise has a mode in each quadrant, and log p(x) = Σ_d log ∫ N(x_d; z², width²) N(z; 0, 1) dz."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), width).to_event(1), obs=x)

    x = torch.tensor([[1.0, 2.0], [4.0, 0.5]], dtype=torch.float64)
    z = torch.linspace(-9, 9, 1_000_001, dtype=torch.float64).unsqueeze(-1)
    each = dist.Normal(z.square(), width).log_prob(x.view(1, -1)) + dist.Normal(0.0, 1.0).log_prob(z)
    wanted = (each.logsumexp(0) + math.log(z[1] - z[0])).view(2, 2).sum(-1)
    close(quadrature(model, None, x, tol=1e-8, share=share).log_px, wanted, 1e-7)


def test_a_narrow_posterior_far_from_the_prior_is_found():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1e-4).to_event(1), obs=x)

    x = torch.tensor([[0.0, 0.1], [9.0, -12.3]], dtype=torch.float64)
    close(
        quadrature(model, None, x, tol=1e-7).log_px,
        dist.Normal(x.new_zeros(()), (1 + 1e-8) ** 0.5).log_prob(x).sum(-1),
        1e-6,
    )


def test_single_precision_says_how_far_it_goes():
    model, x = linear_model(2)
    weight = draws(2, 4).float()

    def single(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 0.3).to_event(1), obs=x)

    exact = linear_gaussian(model, None, x)
    for found in (quadrature(single, None, x.float()), linear_gaussian(single, None, x.float())):
        assert found.log_px.dtype == torch.float64 and not len(found.flagged)
        close(found.log_px, exact.log_px, 1e-4)


# what is refused


def latent(d):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", d)
            value = z if z.dim() == x.dim() else z.sum(-1)
            pyro.sample("x", dist.Normal(value, 1.0), obs=x)

    return model


def mixed(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def mixed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(0.5 + 0 * x))
        pyro.sample("z", dist.Normal(x / 2, 1.5))


def factored(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("penalty", -z.square())


def dependent_values(x):
    """Values 0 … n of a Binomial whose n was drawn: they are not the same for all codes."""
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Categorical(torch.tensor([0.0, 0.5, 0.5])))
        z = pyro.sample("z", dist.Categorical(torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.5, 0.25]])[n]))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)


@pytest.mark.parametrize(
    ("oracle", "model", "said"),
    [
        (quadrature, mixed, "'k' is discrete"),
        (enumerate_latents, mixed, "'z' is continuous"),
        (linear_gaussian, mixed, "'k' is a Bernoulli"),
        (quadrature, factored, "'penalty'"),
        (linear_gaussian, factored, "'penalty'"),
        (quadrature, latent(dist.Normal(torch.zeros(4), 1.0).to_event(1)), "4 dimensions.*'z' 4"),
        (quadrature, latent(dist.VonMises(0.0, 1.0)), "'z' is a VonMises"),
        (quadrature, latent(dist.Delta(torch.tensor(0.0))), "'z' is a Delta"),
        (enumerate_latents, latent(dist.Poisson(2.0)), "'z'.*Poisson.*no list of values"),
        (enumerate_latents, latent(dist.Bernoulli(torch.full((17,), 0.5)).to_event(1)), "131072 codes.*'z' 131072"),
        (linear_gaussian, latent(dist.Laplace(0.0, 1.0)), "'z' is a Laplace"),
        (linear_gaussian, latent(dist.LogNormal(0.0, 1.0)), "'z' is a"),
    ],
)
def test_what_an_oracle_cannot_treat_is_refused_by_site(oracle, model, said):
    with pytest.raises(ProgramError, match=said):
        oracle(model, None, torch.zeros(3))


@pytest.mark.parametrize(
    ("mean", "scale", "said"),
    [
        (lambda z: z + 1e-3 * z**2, lambda z: 1.0, "'x': its mean is not affine"),
        (lambda z: nn.functional.softplus(z), lambda z: 1.0, "'x': its mean is not affine"),
        (lambda z: z, lambda z: 1 + z**2, "'x': its covariance varies"),
    ],
)
def test_linear_gaussian_refuses_what_is_nearly_so(mean, scale, said):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean(z), scale(z)), obs=x)

    with pytest.raises(ProgramError, match=said):
        linear_gaussian(model, None, torch.zeros(3))


def test_linear_gaussian_refuses_parameters_that_move_with_x():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.mean(), 1.0))
            pyro.sample("x", dist.Normal(z + x, 1.0), obs=x)

    with pytest.raises(ProgramError, match="is not that of its sites"):
        linear_gaussian(model, None, torch.tensor([0.0, 1.0]))


def test_dependent_supports_are_summed_and_lost_mass_is_refused(monkeypatch):
    assert len(enumerate_latents(dependent_values, None, torch.zeros(3))) == 3
    whole = enumeration.listed
    monkeypatch.setattr(enumeration, "listed", lambda name, fn: whole(name, fn)[:-1])
    with pytest.raises(ProgramError, match="add up to"):
        enumerate_latents(dependent_values, None, torch.zeros(3))


def test_options_that_make_no_sense_are_refused():
    for wrong in ({"tol": 0}, {"points": 10}, {"chunk_size": 0}):
        with pytest.raises(UsageError):
            quadrature(gamma_poisson, None, torch.ones(2), **wrong)


# what is left as it was, and what is handed back


def test_nothing_is_changed():
    vae, x = curved()
    vae.train()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    kept, state = x.clone(), torch.random.get_rng_state()
    first = quadrature(vae.model, vae.guide, x)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(kept, x)
    assert all(m.training for m in vae.modules()) and torch.distributions.Distribution._validate_args
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    torch.rand(3)
    assert torch.equal(first.log_px, quadrature(vae.model, vae.guide, x).log_px)


def test_the_first_that_applies_is_taken(lg):
    assert by_an_oracle(lg.model, lg.exact_guide, lg.x).method == "linear-Gaussian closed form"
    assert by_an_oracle(discrete, None, torch.zeros(2, 4)).method == "enumeration"
    assert by_an_oracle(gamma_poisson, None, torch.ones(2)).method == "quadrature in 1 dimensions"
    with pytest.raises(ProgramError) as caught:
        by_an_oracle(mixed, None, torch.zeros(2))
    assert all(f"{name}: site" in str(caught.value) for name in ("linear_gaussian", "enumerate_latents", "quadrature"))


def test_auto_is_an_oracle_where_one_applies_and_sampling_where_none_does(monkeypatch):
    x = torch.tensor([0.0, 1.0, 5.0])
    found = log_likelihood(gamma_poisson, lognormal_guide, x, method="auto", num_samples=50)
    assert isinstance(found, Exact) and "quadrature in 1 dimensions" in str(found)
    close(found.log_px, stats.nbinom.logpmf(x.numpy(), 2.5, 0.7 / 1.7), 1e-5)
    sampled = log_likelihood(mixed, mixed_guide, torch.zeros(2), method="auto", num_samples=50)
    assert isinstance(sampled, Evidence) and sampled.num_samples == 50 and "importance sampling" in str(sampled)
    monkeypatch.setattr(trapezoid.Rule, "rough", lambda self, log_px, error: torch.ones_like(error, dtype=torch.bool))
    rough = log_likelihood(gamma_poisson, lognormal_guide, x, method="auto", num_samples=50)
    assert isinstance(rough, Evidence)  # a flagged oracle is none


class Silent(dist.TorchDistribution):
    """A distribution of the user's own that does not say its support: N(0, I) in `width` dimensions."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, batch=(), width=2):
        super().__init__(torch.Size(batch), torch.Size([width] if width else []), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Silent(batch_shape, *(self.event_shape or [0]))

    def rsample(self, sample_shape=()):
        return torch.randn(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value):
        terms = dist.Normal(0.0, 1.0).log_prob(value)
        return terms.sum(-1) if self.event_shape else terms


def bare_flow():
    torch.manual_seed(0)
    return ZukoToPyro(FlowPrior(2).flow())


def of_latent(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    return model, guide


def test_a_bare_flow_lies_where_its_base_does():
    """zuko says no support of a flow; the grid agrees with sampling, within 5 Monte Carlo standard errors."""
    (model, guide), x = of_latent(bare_flow()), torch.tensor([0.3, -1.0])
    sampled = log_likelihood(model, guide, x, num_samples=20_000, verbose=False)
    auto = log_likelihood(model, guide, x, method="auto")
    assert isinstance(auto, Exact) and (auto.error < 1e-3).all()
    assert ((auto.log_px - sampled.log_px).abs() < 5 * sampled.mc_se).all()


@pytest.mark.parametrize("prior", [Silent, lambda: Silent().mask(True)], ids=["own", "masked"])
def test_a_latent_that_does_not_say_its_support(prior):
    """The automatic method samples, to the same bits as if it had been told to; each oracle names the site."""
    (model, guide), x = of_latent(prior()), torch.tensor([0.3, -1.0])
    auto = log_likelihood(model, guide, x, method="auto", num_samples=50)
    assert isinstance(auto, Evidence) and "importance sampling" in str(auto)
    assert torch.equal(auto.log_px, log_likelihood(model, guide, x, num_samples=50).log_px)
    for oracle in (linear_gaussian, enumerate_latents, quadrature):
        with pytest.raises(ProgramError, match="site 'z'"):
            oracle(model, guide, x)
    for oracle in (enumerate_latents, quadrature):
        with pytest.raises(ProgramError, match=r"site 'z': .* does not say what its support is"):
            oracle(model, guide, x)
    with pytest.raises(ProgramError, match=r"no oracle applies.*quadrature: site 'z'"):
        noisy_log_likelihood(model, guide, x, method="exact")


def test_ais_names_a_latent_of_ones_own_that_does_not_say_its_support():
    with pytest.raises(ProgramError, match="site 'z'"):
        ais(*of_latent(Silent()), torch.tensor([0.3]), num_temperatures=2, verbose=False)


def test_an_observed_site_that_does_not_say_its_support_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", Silent((len(x),)), obs=x + 0 * z)

    guide, x = of_latent(Silent())[1], torch.zeros(3, 2)
    for refused in (
        lambda: noisy_log_likelihood(model, guide, x, num_samples=3, verbose=False),
        lambda: noisy_log_likelihood(model, guide, x, method="auto", num_samples=3, verbose=False),
        lambda: quadrature(model, guide, x),
        lambda: measure_of(model, guide, x),
        lambda: check_support(model, guide, x),
    ):
        with pytest.raises(ProgramError, match="site 'x': Silent does not say what its support is"):
            refused()
    assert check(model, guide, x).ok  # says nothing of what it cannot know


def test_missing_values_of_a_distribution_that_does_not_say_its_support():
    with pytest.raises(ProgramError, match="a Silent does not say what its support is, and so not what may stand"):
        Observed(Silent((3,), 0)).log_prob(torch.tensor([0.0, nan, 1.0]))
    with pytest.raises(ProgramError, match="site 'x': Silent does not say"):
        marginal_baseline.fit_marginal(lambda h: Silent((len(h),), 0), 3, torch.zeros(4, 3))


def test_a_method_that_is_none_and_parts_of_what_may_be_exact():
    x = torch.ones(2)
    with pytest.raises(UsageError, match="importance, exact, auto, got 'annealing'"):
        log_likelihood(gamma_poisson, lognormal_guide, x, method="annealing")
    with pytest.raises(UsageError, match="particles= runs a part"):
        log_likelihood(gamma_poisson, lognormal_guide, x, method="auto", particles=range(64))
    with pytest.raises(ProgramError, match="no oracle applies"):
        noisy_log_likelihood(mixed, mixed_guide, x, method="exact")


def test_a_result_says_what_it_is():
    exact = Exact(
        torch.tensor([-1.0, -3.0]),
        torch.tensor([0.0, 1e-5]),
        torch.tensor([True, False]),
        "a method",
        "counts",
        "a way",
    )
    s = exact.summary()
    assert (s["log_px"], s["log_px_data_se"], s["rows_flagged"]) == pytest.approx((-2.0, 1.0, 1))
    assert (s["log_px_mc_se"], s["largest_error"]) == pytest.approx((5e-6, 1e-5))
    assert "a method" in str(exact) and "counts" in str(exact) and "1 flagged" in str(exact)
    assert exact.flagged.tolist() == [1] and exact.bits_per_dim(2).tolist() == pytest.approx([0.7213475, 2.1640426])
    again = Exact.from_csv(exact.rows_csv(), method="a method", measure="counts", how="a way")
    assert str(again) == str(exact) and torch.equal(again.error, exact.error.double())


# broken variants are found


def gamma_poisson_check():
    test_gamma_poisson_is_scipys()


def test_a_missing_jacobian_is_found(monkeypatch):
    add_up = joint.Joint.add_up
    monkeypatch.setattr(joint.Joint, "add_up", lambda self, terms, log_det: add_up(self, terms, {}))
    fails(gamma_poisson_check)


def test_grid_weights_that_are_off_are_found(monkeypatch):
    monkeypatch.setattr(trapezoid.Lattice, "log_cell", property(lambda self: (1.01 * self.step).log().sum(-1)))
    fails(gamma_poisson_check)


def test_a_halving_that_is_forgotten_is_found(monkeypatch):
    monkeypatch.setattr(trapezoid.Lattice, "halved", lambda self: self)
    fails(lambda: test_quadrature_is_the_closed_form(2, 0.02))


def test_an_unfair_prior_of_codes_is_found(monkeypatch):
    monkeypatch.setattr(joint.Joint, "add_up", lambda self, terms, log_det: next(iter(terms.values())).double())
    with pytest.raises((AssertionError, ProgramError, RuntimeError)):
        test_enumeration_is_brute_force(6)


def test_one_rows_prior_for_all_is_found(monkeypatch):
    """Without the comparison row by row, a program that moves with the context would be shared."""
    monkeypatch.setattr(torch, "allclose", lambda *args, **kwargs: True)
    fails(lambda: test_a_context_has_its_own_prior_and_likelihood_in_each_row(quadrature, 70))
