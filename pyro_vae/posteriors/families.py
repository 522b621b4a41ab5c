"""Posterior families for a whole latent vector: features -> q(z | x)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_vae.distributions.conditional import Family
from pyro_vae.distributions.correlated_normal import ScaledLowRankNormal, ScaledMultivariateNormal
from pyro_vae.distributions.features import check_sizes, made_by, positive, softclip, widths
from pyro_vae.distributions.mixtures import MixtureNormal
from pyro_vae.distributions.one_hot import LinearOneHot, StraightThroughOneHot
from pyro_vae.distributions.simplex import SoftmaxNormal
from pyro_vae.distributions.sphere import PowerSpherical
from pyro_vae.distributions.wide import in_float64
from pyro_vae.errors import ShapeError


def low_rank_normal(rank: int) -> Family:
    r"""N(loc, S (I + U U') S), S = diag(scale), U of shape ``(d, rank)``; d (2 + rank) features for d latents.

    Features are loc (d), raw scale (d) and U (d · rank, row by row), each entry of U kept within ±10 smoothly. Support R^d,
    reparameterised. Scales are relative, so that the factorisation stays sound in float32 whatever the features.

    Example:
        >>> low_rank_normal(2)(torch.zeros(5, 16)).event_shape
        torch.Size([4])
    """
    check_sizes(1, rank=rank)
    name = f"low_rank_normal({rank})"

    def family(h: Tensor) -> ScaledLowRankNormal:
        d = widths(h, 2 + rank, 0, name)
        loc, raw, u = h.split([d, d, d * rank], -1)
        return ScaledLowRankNormal(loc, positive(raw), softclip(u).unflatten(-1, (d, rank)))

    return made_by(low_rank_normal, (rank,), in_float64(family))


def full_normal(dim: int) -> Family:
    r"""N(loc, L L'), L = S (I + T), S = diag(scale), T strictly lower; d + d (d + 1) / 2 features for d latents.

    Features are loc (d), raw scale (d) and T (d (d − 1) / 2, row by row), each entry of T kept within ±10 smoothly.
    Support R^d, reparameterised. Finite in float32 for up to 16 latents whatever the features; precise while T is moderate
    (the condition number of L can grow as (1 + |T|)^d: draws are in float32, densities in float64), beyond which float64 or
    :func:`low_rank_normal` serve.

    Example:
        >>> full_normal(4)(torch.zeros(5, 4 + 10)).event_shape
        torch.Size([4])
    """
    check_sizes(1, dim=dim)
    name = f"full_normal({dim})"
    total = dim + dim * (dim + 1) // 2

    def family(h: Tensor) -> ScaledMultivariateNormal:
        if h.shape[-1] != total:
            raise ShapeError(f"{name} takes {total} features, got {h.shape[-1]}. Change what the network puts out.")
        loc, raw, below = h.split([dim, dim, total - 2 * dim], -1)
        row, column = torch.tril_indices(dim, dim, -1, device=h.device)
        unit = torch.eye(dim, dtype=h.dtype, device=h.device).expand(*h.shape[:-1], dim, dim).clone()
        unit[..., row, column] = softclip(below)
        return ScaledMultivariateNormal(loc, positive(raw), unit)

    return made_by(full_normal, (dim,), in_float64(family))


def mixture_normal(components: int) -> Family:
    r"""Σ_k π_k N(loc_k, diag(scale_k²)); K (1 + 2 d) features for d latents: logits (K), locs (K · d), raw scales (K · d).

    Support R^d, reparameterised (implicitly: a short loop over coordinates). Components start apart only as far as the
    network's biases put them.

    References:
        Implicit Reparameterization Gradients (Figurnov, Mohamed & Mnih, 2018), https://arxiv.org/abs/1805.08498

    Example:
        >>> mixture_normal(3)(torch.zeros(5, 3 * (1 + 2 * 4))).event_shape
        torch.Size([4])
    """
    check_sizes(1, components=components)
    name = f"mixture_normal({components})"

    def family(h: Tensor) -> MixtureNormal:
        d = widths(h, 2 * components, components, name)
        logits, loc, raw = h.split([components, components * d, components * d], -1)
        loc, raw = loc.unflatten(-1, (components, d)), raw.unflatten(-1, (components, d))
        return MixtureNormal(
            dist.Categorical(logits=logits.log_softmax(-1)), dist.Normal(loc, positive(raw)).to_event(1)
        )

    return made_by(mixture_normal, (components,), family)


def one_hot_categorical(h: Tensor) -> LinearOneHot:
    r"""q(z = e_k) = softmax(h)_k over one-hot vectors; K features for K categories.

    Not reparameterised: Trace_ELBO uses the score function (unbiased, noisy), TraceEnum_ELBO can sum over z instead.

    Example:
        >>> one_hot_categorical(torch.zeros(5, 4)).sample().sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """
    return LinearOneHot(logits=h.log_softmax(-1))


def one_hot_categorical_st(h: Tensor) -> StraightThroughOneHot:
    r"""q(z = e_k) = softmax(h)_k with straight-through draws: dz/dh = d softmax(h)/dh, biased but of low variance.

    Pair it with the prior ``OneHot``, whose log density has a gradient in z.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons (Bengio, Léonard & Courville, 2013),
        https://arxiv.org/abs/1308.3432

    Example:
        >>> one_hot_categorical_st(torch.zeros(5, 4, requires_grad=True)).rsample().requires_grad
        True
    """
    return StraightThroughOneHot(logits=h.log_softmax(-1))


@in_float64
def logistic_normal(h: Tensor) -> SoftmaxNormal:
    r"""z = softmax(loc + scale · ε) on the simplex, ε ~ N(0, I); 2 d features (loc, raw scale) for d parts.

    Reparameterised; its density is with respect to the same measure as that of the prior ``Dirichlet``.

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017), https://arxiv.org/abs/1703.01488

    Example:
        >>> logistic_normal(torch.zeros(5, 6)).rsample().sum(-1)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000])
    """
    loc, raw = h.split(widths(h, 2, 0, "logistic_normal"), -1)
    return SoftmaxNormal(loc, positive(raw))


def power_spherical(h: Tensor) -> PowerSpherical:
    r"""q(z) ∝ (1 + μ·z)^κ on the unit sphere in R^d; d + 1 features: a direction (d) for μ, and a raw κ.

    Reparameterised in every dimension; its density is with respect to the sphere's area, as that of the prior
    ``UniformSphere``. κ = log(1 + e^h) + 1e-4.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020), https://arxiv.org/abs/2006.04437

    Example:
        >>> power_spherical(torch.randn(5, 4)).event_shape
        torch.Size([3])
    """
    d = widths(h, 1, 1, "power_spherical")
    if d < 2:
        raise ShapeError(f"power_spherical takes d + 1 features for a sphere in R^d, d at least 2; got {h.shape[-1]}")
    direction, raw = h.split([d, 1], -1)
    first = torch.zeros_like(direction)
    first[..., 0] = 1e-6  # a direction even where all features are 0
    return PowerSpherical(normalize(direction + first, dim=-1), positive(raw.squeeze(-1)))
