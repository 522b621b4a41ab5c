"""Exact oracles of programs under masks: a masked latent is not there, a masked observation adds nothing."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.errors import ProgramError
from pyro_vae.evidence.exact.choose import exact
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.joint import Shared
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature

N = 20
X = torch.linspace(-2, 2, N, dtype=torch.float64)
HAS = torch.arange(N) % 3 > 0  # rows 0, 3, 6, … lack the latent
PROBS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def close(found, wanted, atol=1e-10):
    torch.testing.assert_close(found.log_px, wanted, rtol=0, atol=atol)


def masked_by_handler(name, fn, mask):
    with poutine.mask(mask=mask):
        return pyro.sample(name, fn)


def masked_by_distribution(name, fn, mask):
    return pyro.sample(name, fn.mask(mask))


hows = pytest.mark.parametrize("masked", [masked_by_handler, masked_by_distribution], ids=["handler", "distribution"])


# enumeration


def mixture(masked, read):
    """x ~ N(z, 1) where there is a z among 0, 1, 2, else N(−1, 1), unless `read` lets z in."""

    def model(x, has):
        with pyro.plate("data", len(x)):
            z = masked("z", dist.Categorical(PROBS.to(x)), has > 0).to(x)
            loc = z if read else torch.where(has > 0, z, -torch.ones_like(x))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


@hows
def test_masked_codes_weigh_one_together(masked, device):
    log_mixture = (PROBS.log() + dist.Normal(torch.arange(3.0).double(), 1.0).log_prob(X[:, None])).logsumexp(1)
    wanted = torch.where(HAS, log_mixture, dist.Normal(-1.0, 1.0).log_prob(X))
    rows = X.to(device), HAS.to(device)
    close(enumerate_latents(mixture(masked, False), None, *rows), wanted)
    close(exact(mixture(masked, False), None, *rows), wanted)


@hows
def test_masked_codes_that_are_read_are_refused(masked):
    with pytest.raises(ProgramError, match=r"site 'x' of the model reads the value of 'z' in rows \[0, 3, 6, 9, 12\]"):
        enumerate_latents(mixture(masked, True), None, X, HAS)


def test_each_element_of_a_site_has_its_own_mask():
    """Two coins in one site, of which a row has the first, or both."""
    has = torch.stack([torch.ones(N) > 0, HAS], 1)

    def model(x, has):
        has = has > 0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor([0.3, 0.6])).expand([len(x), 2]).mask(has).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] + torch.where(has[:, 1], 2 * z[..., 1], 0.0), 1.0), obs=x)

    def of(*terms):
        return torch.stack([math.log(w) + dist.Normal(m, 1.0).log_prob(X) for w, m in terms]).logsumexp(0)

    both = of((0.7 * 0.4, 0.0), (0.3 * 0.4, 1.0), (0.7 * 0.6, 2.0), (0.3 * 0.6, 3.0))
    close(enumerate_latents(model, None, X, has), torch.where(HAS, both, of((0.7, 0.0), (0.3, 1.0))))


def test_one_hot_vectors_in_an_inner_plate():
    """Steps z_t among 3 one-hot vectors, of which a row has 0, 1 or 2; the steps' x_t ~ N(code, 1)."""
    lengths = torch.arange(N) % 3
    both = torch.stack([X, X + 1], 1)

    def model(x, lengths):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("steps", 2, dim=-2):
            has = torch.arange(2)[:, None] < lengths
            z = pyro.sample("z", dist.OneHotCategorical(PROBS).mask(has))
            pyro.sample("x", dist.Normal(z @ torch.arange(3.0).double(), 1.0).mask(has), obs=x.T)

    each = (PROBS.log() + dist.Normal(torch.arange(3.0).double(), 1.0).log_prob(both[..., None])).logsumexp(-1)
    close(
        enumerate_latents(model, None, both, lengths), torch.where(torch.arange(2) < lengths[:, None], each, 0.0).sum(1)
    )


def test_a_latent_that_masks_another_one():
    """z2 is there where z1 is 1: three codes, of probabilities 0.4, 0.6 · 0.3 and 0.6 · 0.7."""

    def model(x):
        with pyro.plate("data", len(x)):
            there = pyro.sample("z1", dist.Bernoulli(x.new_tensor(0.6)))
            with poutine.mask(mask=there > 0):
                z2 = pyro.sample("z2", dist.Bernoulli(x.new_tensor(0.7)))
            pyro.sample("x", dist.Normal(there * (1 + 2 * z2), 1.0), obs=x)

    terms = ((0.4, 0.0), (0.6 * 0.3, 1.0), (0.6 * 0.7, 3.0))
    wanted = torch.stack([math.log(w) + dist.Normal(m, 1.0).log_prob(X) for w, m in terms]).logsumexp(0)
    close(enumerate_latents(model, None, X), wanted)


@hows
def test_an_observation_that_one_code_masks(masked, monkeypatch):
    """Codes 0 and 2 see x, code 1 does not: looked up by levels of x, its mask was left out."""
    monkeypatch.setattr("pyro_vae.evidence.exact.enumeration.PROBES", 2)  # none sees code 1, as of many codes

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(PROBS))
            fn = dist.Bernoulli(0.2 + 0.3 * z.to(x))
            if masked is masked_by_handler:
                with poutine.mask(mask=z != 1):
                    pyro.sample("x", fn, obs=x)
            else:
                pyro.sample("x", fn.mask(z != 1), obs=x)

    x = (X > 0).double()
    p = 0.2 * 0.2 + 0.5 * 0.8
    close(enumerate_latents(model, None, x), torch.where(x > 0, p, 0.7 - p).double().add(0.3).log(), 1e-7)


def test_a_context_that_only_a_code_in_the_middle_reads():
    """The first and the last code agree between rows: they are no proof that all do."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(PROBS)).to(x)
            pyro.sample("x", dist.Normal(torch.where(z == 1, c, z), 1.0), obs=x)

    c = X.flip(0)
    loc = torch.stack([0 * c, c, 0 * c + 2], 1)
    close(enumerate_latents(model, None, X, c), (PROBS.log() + dist.Normal(loc, 1.0).log_prob(X[:, None])).logsumexp(1))


def test_shared_runs_are_wrong_where_two_codes_vouch_for_all(monkeypatch):
    monkeypatch.setattr("pyro_vae.evidence.exact.joint.RowReads.derived", lambda self, values: False)
    honest = Shared.of.__func__
    monkeypatch.setattr(Shared, "of", classmethod(lambda cls, joint, probes: honest(cls, joint, probes[[0, -1]])))
    with pytest.raises(AssertionError):
        test_a_context_that_only_a_code_in_the_middle_reads()


# quadrature


def positive(masked, fn):
    """x ~ N(z, 1) where there is a z, else N(0, 1)."""

    def model(x, has):
        with pyro.plate("data", len(x)):
            z = masked("z", fn, has > 0)
            pyro.sample("x", dist.Normal(torch.where(has > 0, z, torch.zeros_like(x)), 1.0), obs=x)

    return model


@hows
@pytest.mark.parametrize("share", [True, False], ids=["shared", "by-row"])
def test_a_masked_latent_integrates_to_one(masked, share):
    wanted = torch.where(HAS, dist.Normal(0.0, 5.0**0.5).log_prob(X), dist.Normal(0.0, 1.0).log_prob(X))
    model = positive(masked, dist.Normal(torch.zeros(()).double(), 2.0))
    close(quadrature(model, None, X, HAS, share=share), wanted, 1e-4)


@hows
def test_a_masked_latent_on_a_half_line_integrates_to_one(masked):
    model = positive(masked, dist.Exponential(torch.ones(()).double()))
    found = quadrature(model, None, X[:6], HAS[:6])
    # ∫ e^(−z) N(x; z, 1) dz = e^(1/2 − x) Φ(x − 1)
    known = 0.5 - X + dist.Normal(0.0, 1.0).cdf(X - 1).log()
    close(found, torch.where(HAS, known, dist.Normal(0.0, 1.0).log_prob(X))[:6], 1e-4)
    assert found.reliable.all()


def test_masked_units_and_a_simplex():
    """A point of the simplex is there or not as a whole; the likelihood reads one of its three shares."""

    def model(x, has):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(3).double()).expand([len(x)]).mask(has > 0))
            pyro.sample("x", dist.Bernoulli(torch.where(has > 0, z[..., 0], 0.5 * torch.ones_like(x))), obs=x)

    x = (X > 0).double()
    wanted = torch.where(HAS, torch.where(x > 0, 1 / 3, 2 / 3).double(), 0.5).log()
    close(quadrature(model, None, x[:8], HAS[:8]), wanted[:8], 1e-3)


def test_units_of_one_site_have_their_own_masks():
    has = torch.stack([torch.ones(N) > 0, HAS], 1)

    def model(x, has):
        has = has > 0
        with pyro.plate("data", len(x)):
            fn = dist.LogNormal(torch.zeros(2).double(), 1.0).expand([len(x), 2])
            z = pyro.sample("z", fn.mask(has).to_event(1)).log()
            pyro.sample("x", dist.Normal(z[..., 0] + torch.where(has[:, 1], z[..., 1], 0.0), 1.0), obs=x)

    wanted = dist.Normal(0.0, torch.where(HAS, 3.0, 2.0).double().sqrt()).log_prob(X)
    close(quadrature(model, None, X[:5], has[:5]), wanted[:5], 1e-4)


@hows
def test_a_masked_latent_that_is_read_is_refused_before_any_grid(masked):
    def model(x, has):
        with pyro.plate("data", len(x)):
            z = masked("z", dist.Normal(torch.zeros_like(x), 1.0), has > 0)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for oracle in (quadrature, linear_gaussian, exact):
        with pytest.raises(ProgramError, match=r"'z'.* rows \[0, 3, 6, 9, 12\]"):
            oracle(model, None, X, HAS)


@hows
def test_a_masked_observation_adds_nothing(masked, device):
    def model(x, has):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            if masked is masked_by_handler:
                with poutine.mask(mask=has > 0):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            else:
                pyro.sample("x", dist.Normal(z, 1.0).mask(has > 0), obs=x)
            pyro.sample("y", dist.Normal(z, 2.0), obs=x + 1)

    joint = dist.MultivariateNormal(torch.zeros(2).double(), torch.tensor([[2.0, 1.0], [1.0, 5.0]]).double())
    alone = dist.Normal(0.0, torch.tensor(5.0).double().sqrt()).log_prob(X + 1)
    wanted = torch.where(HAS, joint.log_prob(torch.stack([X, X + 1], 1)), alone)
    rows = X.to(device), HAS.to(device)
    close(linear_gaussian(model, None, *rows), wanted)
    close(quadrature(model, None, *rows), wanted, 1e-4)


def test_linear_gaussian_reads_the_masks_of_single_entries(device):
    """x of 3 columns, any of which a row may lack: what is left is Gaussian with the covariance of its columns."""
    a = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]]).double()
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    has = torch.rand(N, 3, generator=torch.Generator().manual_seed(1)) > 0.4

    def model(x, has):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ a.to(x), 0.5).mask(has > 0).to_event(1), obs=x)

    cov = a.T @ a + 0.25 * torch.eye(3).double()
    wanted = torch.stack(
        [
            dist.MultivariateNormal(x.new_zeros(int(m.sum())), cov[m][:, m]).log_prob(row[m])
            if m.any()
            else x.new_zeros(())
            for row, m in zip(x, has, strict=True)
        ]
    )
    close(linear_gaussian(model, None, x.to(device), has.to(device)), wanted)


@hows
def test_a_masked_latent_leaves_the_linear_gaussian_form_of_the_others(masked, device):
    def model(x, has):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(torch.zeros_like(x), 1.0))
            z = masked("z", dist.Normal(0.5 * y, 2.0), has > 0)
            pyro.sample("x", dist.Normal(y + torch.where(has > 0, z, 0.0), 1.0), obs=x)

    wanted = dist.Normal(0.0, torch.where(HAS, 1.5**2 + 4 + 1, 2.0).double().sqrt()).log_prob(X)
    rows = X.to(device), HAS.to(device)
    close(linear_gaussian(model, None, *rows), wanted)
    assert exact(model, None, *rows).method == "linear-Gaussian closed form"


def test_without_a_density_in_its_place_a_masked_latent_is_counted_in(monkeypatch):
    """Σ over 3 codes of 1 is 3: as it was."""
    monkeypatch.setattr(
        "pyro_vae.evidence.exact.joint.log_volumes", lambda substituted, sites, plates: substituted.log_jacobians(sites)
    )
    with pytest.raises(ProgramError, match="add up to 3"):
        enumerate_latents(mixture(masked_by_handler, False), None, X, HAS)
