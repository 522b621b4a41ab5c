"""A hierarchy whose log p(x) and posteriors are known: two levels, linear-Gaussian, in float64.

    z2 ~ N(0, I),  z1 | z2 ~ N(b + z2 B, diag(s1²)),  x | z1 ~ N(a + z1 A, diag(s0²)),

so (z2, z1, x) is Gaussian, and so are p(x), p(z2 | x), p(z1 | z2, x), p(z1 | x) and p(z2 | z1): the exact posterior, drawn from
the top down or from the bottom up.
"""

import pyro.distributions as dist
import torch

from pyro_vae import BottomUp, HierarchicalVAE, TopDown
from tests.helpers.oracles import draws


class TwoLevels:
    """The oracle, with 2 + 2 latents and 4 columns; `x` are rows of its own."""

    def __init__(self, rows=12):
        self.down, self.out = 0.8 * draws(2, 2), draws(2, 4, seed=1)
        self.b, self.a = draws(2, seed=2), draws(4, seed=3)
        self.s1, self.s0 = torch.tensor([0.6, 0.9]).double(), torch.tensor([0.5, 0.7, 0.4, 0.8]).double()
        cov_1 = self.down.T @ self.down + self.s1.square().diag()
        across = self.down @ self.out  # Cov(z2, x)
        cov_x = self.out.T @ cov_1 @ self.out + self.s0.square().diag()
        self.mean = torch.cat([torch.zeros(2).double(), self.b, self.a + self.b @ self.out])
        self.cov = torch.cat(
            [
                torch.cat([torch.eye(2).double(), self.down, across], 1),
                torch.cat([self.down.T, cov_1, cov_1 @ self.out], 1),
                torch.cat([across.T, self.out.T @ cov_1, cov_x], 1),
            ]
        )
        z = draws(rows, 2, seed=4) @ self.down + self.b + self.s1 * draws(rows, 2, seed=5)
        self.x = self.a + z @ self.out + self.s0 * draws(rows, 4, seed=6)

    # roles

    def top(self):
        return dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)

    def middle(self, z2):
        return dist.Normal(self.b + z2 @ self.down, self.s1).to_event(1)

    def likelihood(self, z1):
        return dist.Normal(self.a + z1 @ self.out, self.s0).to_event(1)

    # Gaussian conditionals; z2 are the coordinates 0, 1, z1 2, 3, and x those from 4

    Z2, Z1, X = (0, 1), (2, 3), (4, 5, 6, 7)

    def given(self, of, *pairs):
        """p(of | values at coordinates): loc of each row, and one covariance."""
        coordinates = [i for where, _ in pairs for i in where]
        values = torch.cat(match(pairs), -1)
        gain = torch.linalg.solve(self.cov[coordinates][:, coordinates], self.cov[coordinates][:, list(of)])
        cov = self.cov[list(of)][:, list(of)] - self.cov[list(of)][:, coordinates] @ gain
        return self.mean[list(of)] + (values - self.mean[coordinates]) @ gain, (cov + cov.T) / 2

    def log_px(self, x):
        where = list(self.X)
        return dist.MultivariateNormal(self.mean[where], self.cov[where][:, where]).log_prob(x)

    # guides: exact, and with means that are off and scales that are wrong by a factor

    def top_down(self, off=0.0, scale=1.0):
        return TopDown(
            lambda x, z2: spread(*self.given(self.Z1, (self.Z2, z2), (self.X, x)), off, scale),
            lambda x: spread(*self.given(self.Z2, (self.X, x)), off, scale),
        )

    def bottom_up(self, off=0.0, scale=1.0):
        return BottomUp(
            lambda x: spread(*self.given(self.Z1, (self.X, x)), off, scale),
            lambda z1: spread(*self.given(self.Z2, (self.Z1, z1)), off, scale),
        )

    def vae(self, posterior):
        return HierarchicalVAE([self.middle, self.top], self.likelihood, posterior)

    def kl_of(self, off, scale):
        """KL(q ‖ p(z | x)) of :meth:`top_down`: that of z2, and that of z1 given z2, the same for every z2 and x."""
        return sum(kl_to(cov, off, scale) for cov in (self.given(self.Z2, (self.X, self.x))[1], self.cov_1()))

    def cov_1(self):
        return self.given(self.Z1, (self.Z2, self.x[:, :2]), (self.X, self.x))[1]


def match(pairs):
    """The values of all pairs, with one batch shape."""
    batch = torch.broadcast_shapes(*(v.shape[:-1] for _, v in pairs))
    return [v.expand(*batch, v.shape[-1]) for _, v in pairs]


def spread(loc, cov, off, scale):
    return dist.MultivariateNormal(loc + off, scale_tril=scale * torch.linalg.cholesky(cov))


def kl_to(cov, off, scale):
    """KL(N(m + off, scale² cov) ‖ N(m, cov))."""
    d = len(cov)
    shift = torch.full((d,), float(off)).double()
    quadratic = shift @ torch.linalg.solve(cov, shift)
    return 0.5 * (d * scale**2 + quadratic - d - 2 * d * torch.tensor(scale).double().log())
