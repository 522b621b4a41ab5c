"""Gaussian pairs whose log p(x), ELBO and posterior are known, and guides that are wrong on purpose; thirty too narrow."""

import math

import pyro
import pyro.distributions as dist
import torch

from tests.helpers.conjugate import GammaPoisson

D = torch.float64


class Gaussian:
    """z ~ N(0, I) in `dims`, x ~ N(z, I): the posterior is N(x / 2, I / 2). A guide with `widths` times its scale, `shift` off.

    `widths` is a number, or one for each dimension; `shift` is in posterior standard deviations, in every dimension.
    """

    def __init__(self, dims=2, widths=1.3, shift=0.0):
        self.dims, self.widths = dims, torch.as_tensor(widths, dtype=D).expand(dims)
        self.shift = shift

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.shift * 0.5**0.5, self.widths * 0.5**0.5).to_event(1))

    def rows(self, count, seed):
        return 2**0.5 * torch.randn(count, self.dims, dtype=D, generator=torch.Generator().manual_seed(seed))

    def log_px(self, x):
        return dist.Normal(x.new_zeros(()), 2**0.5).log_prob(x).sum(-1)

    @property
    def kl(self):
        """KL(q ‖ p(z | x)), of every row."""
        w = self.widths
        return (0.5 * (w.square() + self.shift**2 - 1) - w.log()).sum()

    @property
    def mean_log_px(self):
        """E log p(x) over rows that the model draws."""
        return -0.5 * self.dims * math.log(4 * math.pi * math.e)


class NarrowCounts(GammaPoisson):
    """z ~ Gamma(2, 1/2), x ~ Poisson(z), and a lognormal guide with `width` times the posterior's scale, nearly."""

    def __init__(self, width):
        self.width = width

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(((x + 2) / 1.5).log(), self.width * (x + 2).rsqrt()))

    def rows(self, count, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return super().rows(count)


def some_narrow(dims, narrow, width):
    """`narrow` of so many dimensions are too narrow, the others right."""
    return Gaussian(dims, torch.tensor([width] * narrow + [1.0] * (dims - narrow), dtype=D))


NARROW = {
    **{f"{d} dims, scale x {w}": Gaussian(d, w) for d in (1, 2, 5, 10, 20) for w in (0.4, 0.5, 0.6, 0.7)},
    **{f"2 of 10 dims, scale x {w}": some_narrow(10, 2, w) for w in (0.4, 0.5, 0.6)},
    **{f"1 of 20 dims, scale x {w}": some_narrow(20, 1, w) for w in (0.4, 0.5)},
    **{f"{d} dims, scale x 0.6, 0.5 off": Gaussian(d, 0.6, 0.5) for d in (1, 3)},
    **{f"counts, scale x {w}": NarrowCounts(w) for w in (0.3, 0.4, 0.5)},
}
A_LITTLE = {f"{d} dims, scale x {w}": Gaussian(d, w) for d in (1, 2, 5, 10) for w in (0.8, 0.85)}  # k = 1 - w² < 1/2
WIDE = {
    "5 dims, exact": Gaussian(5, 1.0),
    "2 dims, scale x 0.9": Gaussian(2, 0.9),
    "2 dims, scale x 1.3": Gaussian(2, 1.3),
    "10 dims, scale x 1.2": Gaussian(10, 1.2),
    "20 dims, scale x 0.95": Gaussian(20, 0.95),
    "5 dims, 0.3 off": Gaussian(5, 1.0, 0.3),
    "counts, scale x 1.2": NarrowCounts(1.2),
}
assert len(NARROW) == 30
