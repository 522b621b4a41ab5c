"""Binarization: grey values in [0, 1] as the probabilities of binary ones, x_bin ~ Bernoulli(x)."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import SupportError

from .arrays import format_rows


@suggest_keywords
def binarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """x_bin ~ Bernoulli(x), element by element: zeros and ones of x's shape and dtype.

    Drawn once, it makes a data set (static binarization); drawn anew each epoch, it makes the training set the
    distribution itself (dynamic). Numbers under one are not comparable with numbers under the other. A one where
    u < x, u uniform on multiples of 2⁻²⁴ (2⁻⁵³ in float64): on a CPU faster than ``torch.bernoulli``.

    Args:
        x: grey values in [0, 1], of any shape; unchecked here (see :func:`check_grey`), as it runs for every batch. NaN stays
            NaN.
        generator: on x's device; None draws from torch's global one.

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008),
        https://doi.org/10.1145/1390156.1390266
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> binarize(torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([[0., 1., 1.]])
    """
    u = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32)).uniform_(generator=generator)
    return torch.sub(x, u, out=u).ceil_().add_(0.0).to(x.dtype)  # x − u is in (−1, 1]; adding 0 makes −0 a zero


def static_binarization(x: Tensor, seed: int) -> Tensor:
    """x_bin ~ Bernoulli(x), once, from a private generator: the same for the same seed and device.

    Raises:
        SupportError: a value outside [0, 1].

    Example:
        >>> x = torch.full((5, 64), 0.5)
        >>> torch.equal(static_binarization(x, seed=0), static_binarization(x, seed=0))
        True
    """
    return binarize(check_grey(x), torch.Generator(x.device).manual_seed(seed))


def check_grey(x: Tensor, name: str = "x") -> Tensor:
    """Return x if every value lies in [0, 1]; raise a SupportError that names the rows outside (or NaN) otherwise."""
    bad = ~((x >= 0) & (x <= 1))
    if is_doubtful(bad.any()):
        raise SupportError(
            f"{name} has values outside [0, 1] in {format_rows(torch.atleast_1d(bad))}; its values lie in "
            f"[{x.min().item():g}, {x.max().item():g}]. Binarization takes each value for a probability: "
            "divide 0..255 pixels by 255."
        )
    return x
