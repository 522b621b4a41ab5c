"""Names to parts: a closed table, the only way from a config to a model. A config never names an import path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_vae.errors import UsageError
from pyro_vae.models.vae import VAE
from pyro_vae.parts.conditional import Conditional, Family
from pyro_vae.parts.families import MIN_SCALE, bernoulli, binomial, normal
from pyro_vae.parts.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.parts.priors import StandardNormal

from .config import Config


@dataclass(frozen=True)
class Likelihood:
    """A family, the features it takes for each element, and those that fit the data with no latent at all."""

    family: Family
    width: int
    marginal: Callable[[Tensor], Tensor]


def success_logits(total_count: int) -> Callable[[Tensor], Tensor]:
    """logit of each column's success rate, with half a success and half a failure added (Jeffreys' prior)."""

    def marginal(x: Tensor) -> Tensor:
        x = x.double()
        rate = (x.sum(0) + 0.5) / (len(x) * total_count + 1)
        return rate.logit().float()

    return marginal


def normal_moments(x: Tensor) -> Tensor:
    """Each column's mean, and its standard deviation (1e-3 at least) as the family's feature."""
    x = x.double()
    spread = (x.std(0, correction=0) - MIN_SCALE).clamp_min(1e-3)
    return torch.cat([x.mean(0), spread.expm1().log()]).float()


def likelihood_of(config: Config) -> Likelihood:
    """The likelihood that a resolved config names."""
    table = {
        "bernoulli": Likelihood(bernoulli, 1, success_logits(1)),
        "binomial": Likelihood(binomial(config.total_count), 1, success_logits(config.total_count)),
        "normal": Likelihood(normal, 2, normal_moments),
    }
    return table[config.likelihood]


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "silu": nn.SiLU}
PRIORS: dict[str, Callable[[Config], nn.Module]] = {"standard_normal": lambda config: StandardNormal(config.latent_dim)}
POSTERIORS: dict[str, tuple[Family, int]] = {"normal": (normal, 2)}


def build(config: Config, shape: tuple[int, ...], x: Tensor | None = None) -> VAE:
    """The VAE of a resolved config, for data of that shape.

    Args:
        config: with no "auto" left.
        shape: of one row: (d,) or (channels, height, width).
        x: training rows; their marginal starts the decoder's output bias, so that training begins at the floor.

    Raises:
        UsageError: a network that this shape has no use for.
    """
    likelihood = likelihood_of(config)
    family, width = POSTERIORS[config.posterior]
    encoder, decoder = networks(config, shape, width * config.latent_dim, likelihood.width)
    vae = VAE(
        prior=PRIORS[config.prior](config),
        likelihood=Conditional(decoder, likelihood.family),
        posterior=Conditional(encoder, family),
    )
    for layer in (m for m in vae.modules() if isinstance(m, nn.Linear)):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    if x is not None and isinstance(decoder, MLP):
        with torch.no_grad():
            list(decoder.parameters())[-1].copy_(likelihood.marginal(x))
    return vae


def networks(config: Config, shape: tuple[int, ...], encoded: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder: `encoded` features out of the one, `width` features an element out of the other."""
    if config.network == "mlp":
        activation, size = ACTIVATIONS[config.activation], math.prod(shape)
        encoder = MLP(size, encoded, config.hidden, activation)
        return encoder, MLP(config.latent_dim, width * size, config.hidden[::-1], activation)
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise UsageError(
            f"network conv takes images whose height and width are multiples of 4, not data of shape {shape}"
        )
    channels, height, wide = shape
    return ConvEncoder(encoded, shape=(channels, height, wide)), ConvDecoder(
        config.latent_dim, shape=(width * channels, height, wide)
    )


def floor(config: Config, train: Tensor, x: Tensor) -> Tensor:
    """Exact log p(x) of each row under independent elements fitted to the training rows: the floor a VAE must clear.

    Example:
        >>> from pyro_vae.runs.config import Config
        >>> from pyro_vae.runs.registry import floor
        >>> floor(Config(likelihood="bernoulli"), torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0]]))   # log 1/2
        tensor([-0.6931], dtype=torch.float64)
    """
    likelihood = likelihood_of(config)
    return likelihood.family(likelihood.marginal(train).double()).log_prob(x.double()).sum(-1)
