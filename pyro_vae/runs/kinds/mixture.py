"""p(y) p(z | y) p(x | z): a mixture of classes over the latents, the class summed out."""

from __future__ import annotations

from pyro_vae.distributions.conditional import Conditional
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.models.classes import Classes
from pyro_vae.models.mixture import GMVAE

from .kind import ModelKind
from .parts import ModelParts


def make_mixture(parts: ModelParts, classes: int = 10, learned: bool = False) -> GMVAE:
    """Make a GMVAE of so many classes, their weights learned or all alike."""
    dim = parts.config.latent_dim
    likelihood = parts.likelihood(dim)
    weights = Classes(classes, learned)
    components = Conditional(parts.network(classes, 2 * dim), normal)
    posterior = Conditional(parts.see(2 * dim), normal)
    parts.start(likelihood)
    return GMVAE(weights, components, likelihood, posterior)


KIND = ModelKind(
    make=make_mixture, objectives=("elbo", "iwae", "miwae", "piwae", "ciwae", "renyi", "tvo", "jackknife"),
    formula="p(y) p(z|y) p(x|z); q(z|x)", support="any x",
    reference="Jiang, Zheng, Tan, Tang & Zhou, 2017, https://arxiv.org/abs/1611.05148",
)  # fmt: skip
