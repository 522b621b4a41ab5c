"""Two modalities of which everything is known: linear-Gaussian blocks of one latent vector, in float64.

    z ~ N(0, I),  a | z ~ N(m_a + z A, diag(s_a²)),  b | z ~ N(m_b + z B, diag(s_b²)).

Each column reads one coordinate of z, so that p(x_m | z) is in z a diagonal Gaussian up to a constant: the product of experts
is the exact posterior of every subset of the entries.
"""

import pyro.distributions as dist
import torch

from pyro_vae import MixtureOfExperts, MixtureOfProducts, MultimodalVAE, ProductOfExperts, SkipMissing
from tests.helpers.missing import NormalWithGaps, nan
from tests.helpers.oracles import draws


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


class Block:
    """One modality, ``z @ weight + shift + noise``."""

    def __init__(self, weight, shift, scale):
        self.weight, self.shift, self.scale = tensor(*weight), tensor(*shift), tensor(*scale)

    def likelihood(self, z):
        return dist.Normal(z @ self.weight + self.shift, self.scale).to_event(1)

    def information(self, x):
        """Precision and precision times loc of what the entries present say of z."""
        weights = self.weight**2 / self.scale**2 * (~x.isnan()).double().unsqueeze(-2)  # (N, D, d)
        residual = (x - self.shift).nan_to_num().unsqueeze(-2) / torch.where(self.weight == 0, 1.0, self.weight)
        return weights.sum(-1), (weights * residual).sum(-1)


class Expert:
    """N(loc, 1 / precision) in z of p(x_m | z), of which entries may be missing; of the posterior p(z | x_m), if `alone`."""

    def __init__(self, block, off=0.0, wider=1.0, alone=False):
        self.block, self.off, self.wider, self.alone = block, off, wider, alone

    def __call__(self, x):
        precision, shifted = self.block.information(x)
        precision = precision + (1.0 if self.alone else 1e-12)  # of a row whose entries say nothing of a coordinate
        return dist.Normal(shifted / precision + self.off, self.wider * precision**-0.5).to_event(1)


class TwoBlocks(NormalWithGaps):
    """The oracle, with 2 latents and 3 + 2 columns; rows with both, one, the other, some entries, and nothing.

    `slope` scales what b tells of z.
    """

    def __init__(self, rows=12, slope=1.0):
        self.a = Block([[1.0, 0.0, -0.7], [0.0, 0.8, 0.0]], [0.3, -0.2, 0.1], [0.5, 0.6, 0.9])
        self.b = Block([[0.9 * slope, 0.0], [0.0, -1.1 * slope]], [0.0, 0.4], [0.7, 0.4])
        z = draws(rows, 2, seed=1)
        self.x = self.a.likelihood(z).mean + self.a.scale * draws(rows, 3, seed=2)
        self.y = self.b.likelihood(z).mean + self.b.scale * draws(rows, 2, seed=3)
        weight = torch.cat([self.a.weight, self.b.weight], 1)
        self.mean = torch.cat([self.a.shift, self.b.shift])
        self.cov = weight.T @ weight + torch.cat([self.a.scale, self.b.scale]).square().diag()

    @property
    def gaps(self):
        """x and y with something missing: y of row 1, x of row 2, single entries of rows 3 and 4, all of row 5."""
        x, y = self.x.clone(), self.y.clone()
        y[1] = x[2] = x[5] = y[5] = nan
        x[3, 1] = x[4, :2] = y[4, 0] = nan
        return x, y

    def prior(self):
        return dist.Normal(tensor(0, 0), tensor(1, 1)).to_event(1)

    def experts(self, off=0.0, wider=1.0, alone=False):
        return {"a": Expert(self.a, off, wider, alone), "b": Expert(self.b, -off, wider, alone)}

    def vae(self, posterior=None):
        likelihoods = {"a": SkipMissing(self.a.likelihood), "b": SkipMissing(self.b.likelihood)}
        return MultimodalVAE(self.prior, likelihoods, posterior or self.product())

    def product(self, off=0.0, wider=1.0):
        return ProductOfExperts(self.prior, self.experts(off, wider))

    def mixture(self):
        return MixtureOfExperts(self.prior, self.experts(alone=True))

    def products(self, off=0.0):
        return MixtureOfProducts(self.prior, self.experts(off))

    def log_px(self, x, y):
        """log p of what each row has."""
        return super().log_px(torch.cat([x, y], 1))
