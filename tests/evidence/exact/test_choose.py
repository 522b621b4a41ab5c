"""Which exact method applies, what is refused by site, and what is handed back."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.zuko import ZukoToPyro
from scipy import stats
from torch import nn

from pyro_vae import Evidence, ais, check
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import OracleWarning, ProgramError, UsageError
from pyro_vae.evidence.exact import enumeration, trapezoid
from pyro_vae.evidence.exact.choose import exact as by_an_oracle
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.joint import Joint
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.priors.flow import FlowPrior
from pyro_vae.programs.measure import measure_of
from pyro_vae.programs.support import check_support
from pyro_vae.runs import marginal_baseline
from tests.helpers.environment import HEAVY
from tests.helpers.oracles import close, curved, discrete, gamma_poisson, lognormal_guide

log_likelihood = partial(noisy_log_likelihood, verbose=False)
nan = math.nan


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


def counted(x):
    """As `mixed`, its discrete site without a list of values."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Poisson(1.0))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def mixed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(0.5 + 0 * x))
        pyro.sample("z", dist.Normal(x / 2, 1.5))


def counted_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(1.0 + 0 * x))
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
        (quadrature, counted, "'k' is discrete"),
        (enumerate_latents, mixed, "'z' is continuous"),
        (linear_gaussian, mixed, "'k' is a Bernoulli"),
        (quadrature, factored, "'penalty'"),
        (linear_gaussian, factored, "'penalty'"),
        (quadrature, latent(dist.Normal(torch.zeros(4), 1.0).to_event(1)), "4 dimensions.*'z' 4"),
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

    with pytest.raises(ProgramError, match="another log-probability for a row when other rows"):
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
    assert by_an_oracle(mixed, None, torch.zeros(2)).method == "quadrature in 1 dimensions"
    with pytest.raises(ProgramError) as caught:
        by_an_oracle(counted, None, torch.zeros(2))
    assert all(f"{name}: site" in str(caught.value) for name in ("linear_gaussian", "enumerate_latents", "quadrature"))


def test_auto_is_an_oracle_where_one_applies_and_sampling_where_none_does(monkeypatch):
    x = torch.tensor([0.0, 1.0, 5.0])
    found = log_likelihood(gamma_poisson, lognormal_guide, x, method="auto", num_samples=50)
    assert isinstance(found, Exact) and "quadrature in 1 dimensions" in str(found)
    close(found.log_px, stats.nbinom.logpmf(x.numpy(), 2.5, 0.7 / 1.7), 1e-5)
    sampled = log_likelihood(counted, counted_guide, torch.zeros(2), method="auto", num_samples=50)
    assert isinstance(sampled, Evidence) and sampled.num_samples == 50 and "importance sampling" in str(sampled)
    monkeypatch.setattr(trapezoid.Rule, "rough", lambda self, log_px, error: torch.ones_like(error, dtype=torch.bool))
    with pytest.warns(OracleWarning, match=r"takes importance sampling: quadrature .* 3 of 3 rows \(0, 1, 2; largest"):
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
    sampled = log_likelihood(model, guide, x, num_samples=4000, verbose=False)
    auto = log_likelihood(model, guide, x, method="auto")
    assert isinstance(auto, Exact) and not len(auto.flagged)
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
    with pytest.raises(ProgramError, match="site 'x': Silent does not say what its support is"):
        check(model, guide, x).raise_if_bad()


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
        noisy_log_likelihood(counted, counted_guide, x, method="exact")


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


@pytest.mark.parametrize(
    ("prior", "likelihood", "oracle"),
    [
        (dist.Normal(0.0, 2.0), lambda z: dist.Normal(3 * z, 0.5), linear_gaussian),
        (dist.Bernoulli(0.3), lambda z: dist.Normal(3 * z, 0.5), enumerate_latents),
        (dist.Normal(0.0, 2.0), lambda z: dist.Normal(z.sin(), 0.5), quadrature),
        (dist.Gamma(2.0, 1.0), lambda z: dist.Normal(z, 0.5), quadrature),
    ][: 4 if HEAVY else 3],
    ids=["linear_gaussian", "enumeration", "quadrature of a curve", "quadrature of a positive latent"][
        : 4 if HEAVY else 3
    ],
)
def test_what_was_tried_before_is_neither_run_again_nor_seen_in_the_result(prior, likelihood, oracle, monkeypatch):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    x = torch.tensor([0.3, -1.0, 2.0])
    alone = oracle(model, None, x)
    found, whole = [], Joint.find
    monkeypatch.setattr(Joint, "find", lambda self, *args: (found.append(1), whole(self, *args))[1])
    first = by_an_oracle(model, None, x)
    assert torch.equal(first.log_px, alone.log_px) and torch.equal(first.mc_se, alone.mc_se)
    assert len(found) == 1
    oracle(model, None, x)
    assert len(found) == 2  # nothing is kept beyond the call
