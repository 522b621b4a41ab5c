"""Likelihood families over 0/1, classes and counts. Layout of features and floors: see :mod:`.registry`."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.distributions.bernoulli import Bernoulli
from pyro_vae.distributions.conditional import Family
from pyro_vae.distributions.counts import DiscretizedLogistic, Multinomial, ZeroInflated
from pyro_vae.distributions.features import at_least, made_by, parts, positive
from pyro_vae.distributions.mixtures import MixtureSameFamily
from pyro_vae.distributions.wide import beyond_half, in_float64


@beyond_half
def bernoulli(h: Tensor) -> Bernoulli:
    r"""p(y = 1) = 1 / (1 + e^{-h}), for y in {0, 1}; d features for d elements.

    Grey values between 0 and 1 are outside its support: binarize them, or choose another family.

    Example:
        >>> bernoulli(torch.zeros(4)).mean[0]
        tensor(0.5000)
    """
    return Bernoulli(logits=h)


def binomial(total_count: int) -> Family:
    r"""p(y) = C(n, y) s(h)^y (1 - s(h))^{n - y}, counts y in 0..n, s the logistic function; d features for d elements.

    Args:
        total_count: n, the same for every element.

    Example:
        >>> binomial(16)(torch.zeros(64)).mean[0]
        tensor(8.)
    """
    at_least(1, total_count, "total_count")
    return made_by(binomial, (total_count,), in_float64(lambda h: dist.Binomial(total_count, logits=h)))


def categorical(num_classes: int) -> Family:
    r"""p(y = c) = e^{h_c} / Σ_k e^{h_k}, for classes y in 0..C − 1; C d features for d elements.

    Feature c d + i is class c of element i: all elements' class 0 first, as `chunk(C, -1)` has it. A class has no mean.

    Args:
        num_classes: C, the same for every element.

    Example:
        >>> h = torch.tensor([0.0, 9.0, 9.0, 0.0])   # class 0 of both elements, then class 1 of both
        >>> categorical(2)(h).probs.argmax(-1)
        tensor([1, 0])
    """
    at_least(2, num_classes, "num_classes")
    name = f"categorical({num_classes})"

    def family(h: Tensor) -> dist.Categorical:
        logits = parts(h, num_classes, name)
        logits = logits - logits.detach().amax(0)  # the constructor's h − log Σ e^h is rounded as the largest h is
        return dist.Categorical(logits=logits.movedim(0, -1))

    return made_by(categorical, (num_classes,), beyond_half(family))


@in_float64
def poisson(h: Tensor) -> dist.Poisson:
    r"""p(y) = λ^y e^{−λ} / y!, for counts y ≥ 0 and λ = log(1 + e^h) + 1e-4; d features for d elements.

    Example:
        >>> poisson(torch.tensor([3.0])).mean
        tensor([3.0487])
    """
    return dist.Poisson(positive(h))


def _negative_binomial(mean: Tensor, size: Tensor) -> dist.NegativeBinomial:
    mean, size = positive(mean), positive(size)
    return dist.NegativeBinomial(size, logits=mean.log() - size.log())


@in_float64
def negative_binomial(h: Tensor) -> dist.NegativeBinomial:
    r"""p(y) = Γ(y + r) / (Γ(r) y!) (r / (r + μ))^r (μ / (r + μ))^y, counts y ≥ 0; 2 features an element.

    The halves of h give the mean μ and r, each as log(1 + e^·) + 1e-4; the variance is μ + μ² / r.

    Example:
        >>> negative_binomial(torch.zeros(3, 8)).batch_shape
        torch.Size([3, 4])
    """
    return _negative_binomial(*parts(h, 2, "negative_binomial"))


@in_float64
def zero_inflated_poisson(h: Tensor) -> ZeroInflated:
    r"""p(y) = g [y = 0] + (1 − g) Poisson(y; λ), counts y ≥ 0; 2 features an element.

    The halves of h give λ = log(1 + e^·) + 1e-4 and the log-odds of g.

    References:
        Zero-Inflated Poisson Regression (Lambert, 1992), https://doi.org/10.2307/1269547

    Example:
        >>> zero_inflated_poisson(torch.zeros(3, 8)).batch_shape
        torch.Size([3, 4])
    """
    rate, gate = parts(h, 2, "zero_inflated_poisson")
    return ZeroInflated(dist.Poisson(positive(rate)), gate)


@in_float64
def zero_inflated_negative_binomial(h: Tensor) -> ZeroInflated:
    r"""p(y) = g [y = 0] + (1 − g) NB(y; μ, r), counts y ≥ 0; 3 features an element.

    The thirds of h give μ and r, as for negative_binomial, and the log-odds of g.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez, Regier, Cole, Jordan & Yosef, 2018),
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> zero_inflated_negative_binomial(torch.zeros(3, 12)).batch_shape
        torch.Size([3, 4])
    """
    mean, size, gate = parts(h, 3, "zero_inflated_negative_binomial")
    return ZeroInflated(_negative_binomial(mean, size), gate)


def _discretized(levels: int, loc: Tensor, scale: Tensor) -> DiscretizedLogistic:
    """Convert loc and scale from PixelCNN++'s units, in which the levels span −1..1, to counts."""
    half = (levels - 1) / 2
    return DiscretizedLogistic(half * (1 + loc), half * positive(scale), levels)


def discretized_logistic(levels: int = 256) -> Family:
    r"""p(y) = F(y + ½) − F(y − ½), counts y in 0..L − 1, F a logistic cdf; 0 and L − 1 take the tails. 2 features an element.

    The halves of h give loc and scale = log(1 + e^·) + 1e-4 in units in which y = 0 is −1 and y = L − 1 is 1.

    Args:
        levels: L, 256 for eight-bit images.

    References:
        PixelCNN++ (Salimans, Karpathy, Chen & Kingma, 2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> discretized_logistic(17)(torch.zeros(2)).mean
        tensor([8.])
    """
    at_least(2, levels, "levels")
    name = f"discretized_logistic({levels})"
    return made_by(discretized_logistic, (levels,), in_float64(lambda h: _discretized(levels, *parts(h, 2, name))))


def discretized_logistic_mixture(levels: int = 256, components: int = 5) -> Family:
    r"""p(y) = Σ_k π_k DiscretizedLogistic(y; loc_k, scale_k), counts y in 0..L − 1; 3 K features an element.

    h holds K logits of π, then K locs, then K scales (as for discretized_logistic), each of these as d features in a row:
    feature (j K + k) d + i is part j of component k of element i.

    Args:
        levels: L.
        components: K.

    References:
        PixelCNN++ (Salimans, Karpathy, Chen & Kingma, 2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> discretized_logistic_mixture(256, components=5)(torch.zeros(3, 15 * 4)).batch_shape
        torch.Size([3, 4])
    """
    at_least(2, levels, "levels")
    at_least(1, components, "components")
    name = f"discretized_logistic_mixture({levels}, {components})"

    def family(h: Tensor) -> MixtureSameFamily:
        logits, loc, scale = torch.chunk(parts(h, 3 * components, name).movedim(0, -1), 3, -1)
        return MixtureSameFamily(dist.Categorical(logits=logits), _discretized(levels, loc, scale))

    return made_by(discretized_logistic_mixture, (levels, components), in_float64(family))


def multinomial(total_count: int) -> Family:
    r"""p(y) = n! Π_i π_i^{y_i} / y_i!, π = softmax(h): d counts that sum to n, one y (event dim 1); d features.

    Args:
        total_count: n, the same for every row.

    Example:
        >>> d = multinomial(10)(torch.zeros(3, 5))
        >>> d.batch_shape, d.event_shape
        (torch.Size([3]), torch.Size([5]))
    """
    at_least(1, total_count, "total_count")
    return made_by(multinomial, (total_count,), in_float64(lambda h: Multinomial(total_count, logits=h)))
