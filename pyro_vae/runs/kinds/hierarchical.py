"""p(z_L) ⋯ p(z_1 | z_2) p(x | z_1): several levels of latents."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pyro_vae.distributions.conditional import Conditional
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.models.hierarchical import BottomUp, HierarchicalVAE, SkipUp, TopDown
from pyro_vae.priors.simple import StandardNormal

from .kind import ModelKind
from .parts import ModelParts

MOST = 32  # levels: a config that is read shall not say how long that takes
GUIDES = ("top_down", "bottom_up", "skip_up")


def make_hierarchical(
    parts: ModelParts, levels: int = 2, guide: str = "top_down", dims: tuple[int, ...] = ()
) -> HierarchicalVAE:
    """Make a hierarchy: z_1 of latent_dim dimensions and half as many at each level above, or of these."""
    if guide not in GUIDES:
        raise UsageError(f"--model.guide is one of {', '.join(GUIDES)}, got {guide!r}")
    widths = widths_of(parts.config.latent_dim, levels, dims)
    likelihood = parts.likelihood(widths[0])
    priors: list[Any] = [Conditional(parts.network(above, 2 * width), normal) for width, above in pairwise(widths)]
    posterior = {"top_down": top_down, "bottom_up": bottom_up, "skip_up": skip_up}[guide](parts, widths)
    parts.start(likelihood)
    return HierarchicalVAE([*priors, StandardNormal(widths[-1])], likelihood, posterior)


def widths_of(latent_dim: int, levels: int, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return the dimensions of z_1, …, z_L.

    Example:
        >>> widths_of(16, 3, ()), widths_of(16, 2, (9, 5))
        ((16, 8, 4), (9, 5))
    """
    if not 1 <= levels <= MOST or (dims and len(dims) != levels) or not all(isinstance(d, int) and d > 0 for d in dims):
        raise UsageError(
            f"--model.levels {levels} with --model.dims {','.join(map(str, dims)) or '(none)'}: wanted 1 to {MOST} levels, "
            "and whole numbers above 0, one for each level, z1 first, as in --model.levels 2 --model.dims 16,8"
        )
    return dims or tuple(max(1, latent_dim // 2**level) for level in range(levels))


def top_down(parts: ModelParts, widths: tuple[int, ...]) -> TopDown:
    """q(z_L | x), q(z_l | x, z_{l+1})."""
    above = [(width,) for width in widths[1:]] + [()]
    return TopDown(*(Conditional(parts.see(2 * w, *a), normal) for w, a in zip(widths, above, strict=True)))


def bottom_up(parts: ModelParts, widths: tuple[int, ...]) -> BottomUp:
    """q(z_1 | x), q(z_l | z_{l−1})."""
    first = parts.see(2 * widths[0])
    rest = [parts.network(below, 2 * w) for below, w in pairwise(widths)]
    return BottomUp(*(Conditional(network, normal) for network in (first, *rest)))


def skip_up(parts: ModelParts, widths: tuple[int, ...]) -> SkipUp:
    """q(z_1 | x), q(z_l | x, z_1 … z_{l−1})."""
    return SkipUp(*(Conditional(parts.see(2 * w, *widths[:level]), normal) for level, w in enumerate(widths)))


KIND = ModelKind(
    make=make_hierarchical, formula="p(z_L) Π p(z_l|z_{l+1}) p(x|z_1); q(z_1 … z_L|x)", support="any x",
    reference="Rezende, Mohamed & Wierstra, 2014, https://arxiv.org/abs/1401.4082",
)  # fmt: skip
