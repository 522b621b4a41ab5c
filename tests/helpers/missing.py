"""Data with gaps, and a linear-Gaussian model of it whose marginals and conditionals are exact."""

import math

import pyro.distributions as dist
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal
from pyro_vae.models.missing import SkipMissing, WithMask
from tests.helpers.exact import LinearGaussian

nan = math.nan


def with_gaps(x, share=0.3, seed=0):
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return x.masked_fill(gaps.to(x.device), nan)


class NormalWithGaps:
    """Rows of N(mean, cov) of which some entries are missing; `mean` and `cov` are a subclass's."""

    def log_px(self, x):
        """log N(x_obs; mean_obs, cov_obs), row by row."""
        rows = []
        for row in x:
            o = ~row.isnan()
            p = dist.MultivariateNormal(self.mean[o], self.cov[o][:, o]) if o.any() else None
            rows.append(p.log_prob(row[o]) if p else row.new_zeros(()))
        return torch.stack(rows)

    def conditional(self, row):
        """Mean and covariance of x_mis | x_obs."""
        m, o = row.isnan(), ~row.isnan()
        gain = self.cov[m][:, o] @ self.cov[o][:, o].inverse()
        return self.mean[m] + gain @ (row[o] - self.mean[o]), self.cov[m][:, m] - gain @ self.cov[o][:, m]


class Gappy(NormalWithGaps, LinearGaussian):
    """The linear-Gaussian oracle with missing entries: marginal, posterior and conditional of each row in closed form."""

    def __init__(self, device="cpu"):
        super().__init__(device=device)
        self.gaps = with_gaps(self.x)
        self.gaps[7] = nan

    def exact(self, x):
        """q(z | x_obs) = N(loc_n, cov_n): the columns that are missing carry no precision."""
        weight = (~x.isnan()).to(x) / self.noise
        precision = torch.eye(2).to(x) + torch.einsum("id,nd,jd->nij", self.a, weight, self.a)
        loc = (weight * (x - self.mean).nan_to_num()) @ self.a.T
        return dist.MultivariateNormal(torch.linalg.solve(precision, loc), precision_matrix=precision)

    def wide(self, x):
        """Off by half a standard deviation and twice the variance: weights of finite variance that matter."""
        q = self.exact(x)
        return dist.MultivariateNormal(q.loc + q.stddev / 2, covariance_matrix=2 * q.covariance_matrix)

    def vae(self, posterior):
        return VAE(self.prior, SkipMissing(self.likelihood), posterior)

    @property
    def cov(self):
        return self.a.T @ self.a + self.noise.diag()


def vae_of(family=bernoulli, width=6, features=1, hidden=(8,)):
    decoder = Conditional(MLP(2, features * width, hidden), family)
    return VAE(StandardNormal(2), SkipMissing(decoder), Conditional(WithMask(MLP(2 * width, 4, hidden), 0.5), normal))
