"""Posteriors row by row, whose KL and gradients are laid open."""

import pyro
import pyro.distributions as dist
import torch

from pyro_vae import Bound, elbo
from pyro_vae.programs.vectorize_probe import ProbedOnce

DOUBLE = torch.float64


def close(a, b, atol=1e-10):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-10, check_device=False)


class Rows:
    """z_n ~ N(loc_n, diag(scale_n²)) for each row: parameters laid open; p(z) = N(0, I), x ~ N(Σ_d z_d, 1)."""

    def __init__(self, loc, scale):
        self.loc = torch.tensor(loc, dtype=DOUBLE).requires_grad_()
        self.scale = torch.tensor(scale, dtype=DOUBLE).requires_grad_()
        self.x = torch.linspace(-1, 1, len(loc), dtype=DOUBLE)
        self.probed = ProbedOnce()  # for objectives that are many

    def prior(self):
        zero = torch.zeros(self.loc.shape[-1], dtype=DOUBLE)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))

    @property
    def kl(self):
        """KL of each row and unit, (N, D), by hand."""
        return 0.5 * (self.scale**2 + self.loc**2 - 1) - self.scale.log()

    def per_row(self, objective, seed=3):
        torch.manual_seed(seed)
        with self.probed:
            return objective.per_row(self.model, self.guide, self.x)

    def draw(self, particles=1, bound=elbo, seed=3, **options):
        torch.manual_seed(seed)
        objective = Bound(bound, particles, **options)
        with self.probed:
            return objective.draw(self.model, self.guide, (self.x,), {})

    def gradients(self, objective, pair=None, seed=3):
        self.loc.grad = self.scale.grad = None
        torch.manual_seed(seed)
        loss = objective.loss_and_grads(*(pair or (self.model, self.guide)), self.x)
        return loss, self.loc.grad, self.scale.grad


def gaussian_rows(n=6, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(n, d, generator=g).tolist(), (0.3 + torch.rand(n, d, generator=g)).tolist())
