"""Exact log p(x) of contexts, several sites and missing data, on grids that rows share."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, normal
from pyro_vae.evidence.exact import joint, trapezoid
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.models.missing import SkipMissing, WithMask
from tests.helpers.oracles import close, curved, draws

nan = math.nan


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
    found = quadrature(vae.model, vae.guide, x.repeat(10, 1), tol=0.1)
    assert found.how.startswith("one grid for all rows") and len(found) == 50
    # the support of x, draws, the shared grid, maxima, and each row's own lattice
    assert trapezoid.SURVEY[2] ** 2 < sum(seen) < 121**2 + 40_000  # 50 grids of one row's own take 50 times 49**2
    seen.clear()
    quadrature(vae.model, vae.guide, x.repeat(10, 1), tol=0.1, share=False)
    assert sum(seen) > 50 * trapezoid.SURVEY[2] ** 2


def test_what_depends_on_x_is_not_shared():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.abs(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = draws(5)
    found = quadrature(model, None, x, tol=1e-9, share=True)
    assert found.how == "a grid for each row"
    close(found.log_px, dist.Normal(x.abs(), 2**0.5).log_prob(x))
