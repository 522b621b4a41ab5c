"""Programs with classes whose log p(x), log p(x, y) and p(y | x) are known: linear-Gaussian ones, a class beside them.

`Mixed`: y ~ Categorical(π), z | y ~ N(μ_y, 1), x | z ~ N(A z, σ²).  `Labelled`: z ~ N(0, 1), x | z, y ~ N(A z + B_y, σ²).
"""

import torch
from pyro import distributions as dist
from torch import nn

from pyro_vae import GMVAE, SemiSupervised, StandardNormal

WEIGHTS = torch.tensor([0.2, 0.5, 0.3])
CENTRES = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
A = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.6]])
B = torch.tensor([[1.5, 0.0, 0.0], [0.0, -1.5, 0.0], [0.0, 0.5, 1.5]])  # by class
SIGMA = 0.7


class Fixed(nn.Module):
    """p(y), with given probabilities."""

    def __init__(self, probs):
        super().__init__()
        self.register_buffer("logits", probs.log())

    def forward(self):
        return dist.Categorical(logits=self.logits)


class Affine(nn.Module):
    """N(Σ_i W_i parent_i, scale), the matrices and scale given; not trained."""

    def __init__(self, matrices, scale):
        super().__init__()
        for i, matrix in enumerate(matrices):
            self.register_buffer(f"w{i}", matrix)
        self.scale = scale

    def forward(self, *parents):
        loc = sum(parent @ getattr(self, f"w{i}") for i, parent in enumerate(parents))
        return dist.Normal(loc, torch.full_like(loc, self.scale)).to_event(1)


def mixed(posterior=None):
    """The mixture, as our class; the guide is wider than the posterior."""
    wide = Affine([torch.linalg.pinv(A).T], 1.2)
    return GMVAE(Fixed(WEIGHTS), Affine([CENTRES], 1.0), Affine([A.T], SIGMA), posterior or wide)


def log_joint_mixed(x):
    """log p(x, y) of each class, ``(N, 3)``."""
    cov = (A @ A.T + SIGMA**2 * torch.eye(3)).to(x)
    at = [dist.MultivariateNormal((A @ centre).to(x), cov).log_prob(x) for centre in CENTRES]
    return torch.stack(at, -1) + WEIGHTS.to(x).log()


def log_joint_labelled(x):
    """log p(x, y) of each class, ``(N, 3)``."""
    cov = (A @ A.T + SIGMA**2 * torch.eye(3)).to(x)
    return torch.stack([dist.MultivariateNormal(b.to(x), cov).log_prob(x) for b in B], -1) + WEIGHTS.to(x).log()


def exact_parts():
    """q(y | x) and q(z | x, y), which are p(y | x) and p(z | x, y) of the labelled model: both are linear in x and y."""
    cov = A @ A.T + SIGMA**2 * torch.eye(3)
    precision = torch.linalg.inv(cov)
    gain = A.T @ precision  # E[z | x, y] = gain (x − B_y)
    scale = torch.linalg.cholesky(torch.eye(2) - gain @ A)
    linear, bias = precision @ B.T, -0.5 * torch.einsum("cd,de,ce->c", B, precision, B) + WEIGHTS.log()
    classifier = lambda x: dist.Categorical(logits=x @ linear + bias)  # noqa: E731
    posterior = lambda x, y: dist.MultivariateNormal((x - y @ B) @ gain.T, scale_tril=scale)  # noqa: E731
    return classifier, posterior


def labelled(classifier=None, posterior=None):
    """The labelled model, as our class; its guide is exact unless given."""
    exact = exact_parts()
    likelihood = Affine([A.T, B], SIGMA)
    return SemiSupervised(Fixed(WEIGHTS), StandardNormal(2), likelihood, classifier or exact[0], posterior or exact[1])


def rows(n, seed=0):
    """x and y of the labelled model; every second label is missing."""
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(WEIGHTS, n, True, generator=g)
    x = torch.randn(n, 2, generator=g) @ A.T + B[y] + SIGMA * torch.randn(n, 3, generator=g)
    return x, torch.where(torch.arange(n) % 2 == 0, y, -1), y


def rows_mixed(n, seed=0):
    """x of the mixture."""
    g = torch.Generator().manual_seed(seed)
    z = CENTRES[torch.multinomial(WEIGHTS, n, True, generator=g)] + torch.randn(n, 2, generator=g)
    return z @ A.T + SIGMA * torch.randn(n, 3, generator=g)
