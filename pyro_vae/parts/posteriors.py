r"""Posteriors q(z | x): families for a whole latent vector, used as ``Conditional(net, family)``, and their registry.

A family here takes the features of one row, ``(*batch, features)``, and returns a distribution over z of event shape
``(d,)``. (Elementwise families, such as ``normal``, are in :mod:`pyro_vae.parts.families`.)

    >>> from pyro_vae import Conditional, MLP
    >>> q = Conditional(MLP(784, 16 * (2 + 3)), low_rank_normal(3))(torch.zeros(5, 784))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([16]))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import normalize, softplus

from pyro_vae.common.spec import Spec
from pyro_vae.errors import ShapeError

from .conditional import Conditional, Family
from .families import MIN_SCALE, normal
from .flows import FlowPosterior
from .priors import LinearOneHot, at_least
from .semi_amortized import SemiAmortized
from .sphere import PowerSpherical

__all__ = [
    "POSTERIORS",
    "FlowPosterior",
    "SemiAmortized",
    "full_normal",
    "logistic_normal",
    "low_rank_normal",
    "mixture_normal",
    "one_hot_categorical",
    "one_hot_categorical_st",
    "power_spherical",
]  # fmt: skip

BOUND = 10.0  # of off-diagonal features, so that float32 can still factor and solve


def softclip(h: Tensor, bound: float = BOUND) -> Tensor:
    """h / (1 + |h| / bound): the identity near 0, within ±bound."""
    return h / (1 + h.abs() / bound)


def positive(h: Tensor) -> Tensor:
    return softplus(h) + MIN_SCALE


def named(family: Callable[[Tensor], Any], name: str) -> Family:
    family.__name__ = name
    return family


def widths(h: Tensor, per_dim: int, extra: int, family: str) -> int:
    """Return d, where h has per_dim · d + extra features."""
    d, rest = divmod(h.shape[-1] - extra, per_dim)
    if d < 1 or rest:
        raise ShapeError(
            f"{family} takes {per_dim} features for each latent{f' and {extra} more' if extra else ''}, "
            f"got {h.shape[-1]} features. Change the width that the network puts out."
        )
    return d


def low_rank_normal(rank: int) -> Family:
    r"""N(loc, S (I + U U') S), S = diag(scale), U of shape ``(d, rank)``; d (2 + rank) features for d latents.

    Features are loc (d), raw scale (d) and U (d · rank, row by row), each entry of U kept within ±10 smoothly. Support R^d,
    reparameterised. Scales are relative, so that the factorisation stays sound in float32 whatever the features.

    Example:
        >>> low_rank_normal(2)(torch.zeros(5, 16)).event_shape
        torch.Size([4])
    """
    at_least(1, rank=rank)
    name = f"low_rank_normal({rank})"

    def family(h: Tensor) -> dist.LowRankMultivariateNormal:
        d = widths(h, 2 + rank, 0, name)
        loc, raw, u = h.split([d, d, d * rank], -1)
        scale = positive(raw)
        factor = scale.unsqueeze(-1) * softclip(u).unflatten(-1, (d, rank))
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())

    return named(family, name)


def full_normal(dim: int) -> Family:
    r"""N(loc, L L'), L = S (I + T), S = diag(scale), T strictly lower; d + d (d + 1) / 2 features for d latents.

    Features are loc (d), raw scale (d) and T (d (d − 1) / 2, row by row), each entry of T kept within ±10 smoothly.
    Support R^d, reparameterised. Finite in float32 for up to 16 latents whatever the features; precise while T is moderate
    (the condition number of L can grow as (1 + |T|)^d), beyond which float64 or :func:`low_rank_normal` serve.

    Example:
        >>> full_normal(4)(torch.zeros(5, 4 + 10)).event_shape
        torch.Size([4])
    """
    at_least(1, dim=dim)
    name = f"full_normal({dim})"
    total = dim + dim * (dim + 1) // 2

    def family(h: Tensor) -> dist.MultivariateNormal:
        if h.shape[-1] != total:
            raise ShapeError(f"{name} takes {total} features, got {h.shape[-1]}. Change what the network puts out.")
        loc, raw, below = h.split([dim, dim, total - 2 * dim], -1)
        row, column = torch.tril_indices(dim, dim, -1, device=h.device)
        unit = torch.eye(dim, dtype=h.dtype, device=h.device).expand(*h.shape[:-1], dim, dim).clone()
        unit[..., row, column] = softclip(below)
        return dist.MultivariateNormal(loc, scale_tril=positive(raw).unsqueeze(-1) * unit)

    return named(family, name)


class MixtureNormal(dist.MixtureSameFamily):
    r"""Σ_k π_k N(z; loc_k, diag(scale_k²)), with reparameterised draws.

    A draw z carries dz/dθ = −(∂F/∂z)^{-1} ∂F/∂θ, F the coordinates' conditional distribution functions F_i(z_i | z_<i):
    exact for the weights too, one coordinate after the other.

    References:
        Implicit Reparameterization Gradients (Figurnov, Mohamed & Mnih, 2018), https://arxiv.org/abs/1805.08498
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            z = super().sample(Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        base = self.component_distribution.base_dist
        log_w, draws = self.mixture_distribution.logits, []
        for i in range(z.shape[-1]):
            component = dist.Normal(base.loc[..., i], base.scale[..., i], validate_args=False)
            w = log_w.softmax(-1)
            t = (z[..., i : i + 1] - component.loc) / component.scale / 2**0.5
            below, above = torch.special.erfc(-t) / 2, -torch.special.erfc(t) / 2  # equal but for the constant 1
            upper = (w * below).sum(-1, keepdim=True) > 0.5  # the tail that is small keeps its digits
            cdf = (w * torch.where(upper, above, below)).sum(-1)
            density = (w / component.scale * torch.exp(-t.square()) / (2 * math.pi) ** 0.5).sum(-1)
            # its value is 0, its gradient ∂F/∂θ over the density; √tiny keeps 1 / density and its square finite
            step = (cdf - cdf.detach()) / density.detach().clamp(min=torch.finfo(z.dtype).tiny ** 0.5)
            draws.append(z[..., i] - step)
            log_w = log_w + component.log_prob(draws[-1].unsqueeze(-1))
        return torch.stack(draws, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return super().sample(Size(sample_shape))


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
    at_least(1, components=components)
    name = f"mixture_normal({components})"

    def family(h: Tensor) -> MixtureNormal:
        d = widths(h, 2 * components, components, name)
        logits, loc, raw = h.split([components, components * d, components * d], -1)
        loc, raw = loc.unflatten(-1, (components, d)), raw.unflatten(-1, (components, d))
        return MixtureNormal(dist.Categorical(logits=logits), dist.Normal(loc, positive(raw)).to_event(1))

    return named(family, name)


def one_hot_categorical(h: Tensor) -> LinearOneHot:
    r"""q(z = e_k) = softmax(h)_k over one-hot vectors; K features for K categories.

    Not reparameterised: Trace_ELBO uses the score function (unbiased, noisy), TraceEnum_ELBO can sum over z instead.

    Example:
        >>> one_hot_categorical(torch.zeros(5, 4)).sample().sum(-1)
        tensor([1., 1., 1., 1., 1.])
    """
    return LinearOneHot(logits=h)


class StraightThroughOneHot(dist.OneHotCategoricalStraightThrough):
    r"""One-hot draws whose gradient is that of the probabilities; log q(z) = Σ_k z_k log q_k passes it on."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


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
    return StraightThroughOneHot(logits=h)


class SoftmaxNormal(TorchDistribution):
    r"""The distribution of softmax(loc + scale · ε), ε ~ N(0, I): a logistic normal, symmetric in the parts of the simplex.

    With w_i = 1/scale_i², r_i = log z_i − loc_i and r̄ its w-weighted mean, with respect to the first d − 1 coordinates,

        log q(z) = −½ Σ w_i (r_i − r̄)² − Σ log scale_i − ½ log Σ w_i − (d − 1)/2 log 2π − Σ log z_i.

    Parts below 1e-19 (in float64 1e-154) are drawn and scored as if they were that, so that log z and its gradient are finite.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.simplex
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SoftmaxNormal:
        shape = Size(batch_shape) + self.event_shape
        new = type(self)(self.loc.expand(shape), self.scale.expand(shape), False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        h = self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return h.softmax(-1).clamp(min=torch.finfo(h.dtype).tiny ** 0.5)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_z = value.clamp(min=torch.finfo(value.dtype).tiny ** 0.5).log()
        r = log_z - (self.loc - self.loc.mean(-1, keepdim=True))
        log_w = -2 * self.scale.log()
        off = r - (log_w.softmax(-1) * r).sum(-1, keepdim=True)
        d = self.event_shape[0]
        return (
            -0.5 * (off / self.scale).square().sum(-1)
            - self.scale.log().sum(-1)
            - 0.5 * log_w.logsumexp(-1)
            - (d - 1) / 2 * math.log(2 * math.pi)
            - log_z.sum(-1)
        )


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


Encoder = Callable[[int], Callable[..., Tensor]]


def _normal(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(2 * dim), normal)


def _low_rank(encoder: Encoder, dim: int, rank: int = 2) -> Conditional:
    return Conditional(encoder(dim * (2 + rank)), low_rank_normal(rank))


def _full(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim + dim * (dim + 1) // 2), full_normal(dim))


def _mixture(encoder: Encoder, dim: int, components: int = 5) -> Conditional:
    return Conditional(encoder(components * (1 + 2 * dim)), mixture_normal(components))


def _flow(
    encoder: Encoder,
    dim: int,
    kind: str = "iaf",
    transforms: int = 3,
    context_features: int = 64,
    hidden: Sequence[int] = (64, 64),
) -> FlowPosterior:
    return FlowPosterior(encoder(context_features), dim, kind, transforms, context_features, hidden)


def _one_hot(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim), one_hot_categorical)


def _one_hot_st(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim), one_hot_categorical_st)


def _logistic(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(2 * dim), logistic_normal)


def _spherical(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim + 1), power_spherical)


def _semi_amortized(
    encoder: Encoder, dim: int, *, likelihood: Any, prior: Any, steps: int = 5, lr: float = 0.1
) -> SemiAmortized:
    return SemiAmortized(_normal(encoder, dim), likelihood, prior, steps, lr)


POSTERIORS: dict[str, Spec] = {
    "normal": Spec(
        make=_normal, support="real", formula="N(loc, diag(scale²))",
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
    ),
    "low_rank_normal": Spec(
        make=_low_rank, support="real", formula="N(loc, S (I + U U') S)",
        reference="Rezende, Mohamed & Wierstra, 2014, https://arxiv.org/abs/1401.4082",
    ),
    "full_normal": Spec(make=_full, support="real", formula="N(loc, L L')"),
    "mixture_normal": Spec(
        make=_mixture, support="real", formula="Σ π_k N(loc_k, diag(scale_k²))",
        reference="Figurnov, Mohamed & Mnih, 2018, https://arxiv.org/abs/1805.08498",
    ),
    "flow": Spec(
        make=_flow, support="real", formula="N(f_h(z); 0, I) |det ∂f_h/∂z|",
        reference="Kingma et al., 2016, https://arxiv.org/abs/1606.04934",
    ),
    "one_hot_categorical": Spec(make=_one_hot, support="one-hot", formula="softmax(h)_k", reparameterised=False),
    "one_hot_categorical_st": Spec(
        make=_one_hot_st, support="one-hot", formula="softmax(h)_k",
        reference="Bengio, Léonard & Courville, 2013, https://arxiv.org/abs/1308.3432",
    ),
    "logistic_normal": Spec(
        make=_logistic, support="simplex", formula="softmax(loc + scale ε)",
        reference="Srivastava & Sutton, 2017, https://arxiv.org/abs/1703.01488",
    ),
    "power_spherical": Spec(
        make=_spherical, support="sphere", formula="C(κ) (1 + μ·z)^κ",
        reference="De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437",
    ),
    "semi_amortized": Spec(
        make=_semi_amortized, support="real", formula="N(loc, diag(scale²)), refined by gradient steps on the ELBO",
        needs=("likelihood", "prior"),
        reference="Kim, Wiseman, Miller, Sontag & Rush, 2018, https://arxiv.org/abs/1802.02550",
    ),
}  # fmt: skip
