r"""Guides that draw several latents out of one normal vector: u ~ N(m, L Lᵀ), z_i = T_i(u_i), as Pyro's AutoMultivariateNormal.

One density of all is the product of conditionals, u_i | u_<i, each normal: the latents are drawn one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from .sites import Site


class Part(Protocol):
    """A map z = T(u) of a part of the vector: a :class:`~pyro_vae.programs.pushforward.Pushforward`."""

    @property
    def latent(self) -> str: ...

    @property
    def event_shape(self) -> torch.Size: ...

    @property
    def event_dim(self) -> int: ...

    def source(self, batch: torch.Size) -> torch.Size:
        """Return the shape of u that T takes."""
        ...

    def distribution(self, u: Any) -> Any:
        """T_* of the distribution of u."""
        ...

    def inverse(self, fn: Any, z: Tensor) -> Tensor:
        """u = T⁻¹(z)."""
        ...


@dataclass(frozen=True)
class JointPushforward:
    """(z_1, z_2, …) = (T_1(u_1), T_2(u_2), …), u a normal vector of parts of these sizes.

    References:
        Automatic Differentiation Variational Inference (Kucukelbir et al., 2017), https://arxiv.org/abs/1603.00788
    """

    parts: tuple[Part, ...]
    sizes: tuple[int, ...]

    @property
    def latents(self) -> tuple[str, ...]:
        return tuple(part.latent for part in self.parts)

    def draw(self, u: Any, sample: Callable[[str, Any], Tensor]) -> Tensor:
        """Draw the latents by ``sample(name, its distribution given those before)``; return u."""
        loc, tril = factor(u)
        before: list[Tensor] = []
        for part, size in zip(self.parts, self.sizes, strict=True):
            given = conditional(loc, tril, before, size, scalar=not part.event_shape)
            fn = part.distribution(given)
            value = part.inverse(fn, sample(part.latent, fn))
            before.append(value if part.event_shape else value.unsqueeze(-1))
        return torch.cat(same_batch(before), -1)

    def densities(self, u: Any, value: Tensor) -> dict[str, Any]:
        """Return the distribution of each latent, given those before it in a value of u."""
        pieces = list(value.split(self.sizes, -1))
        fns: dict[str, Any] = {}

        def taken(name: str, fn: Any) -> Tensor:
            fns[name] = fn
            return moved(self.parts[len(fns) - 1], fn, pieces[len(fns) - 1])

        self.draw(u, taken)
        return fns


def moved(part: Part, fn: Any, piece: Tensor) -> Tensor:
    """z_i = T_i(u_i), for the `fn` of its part."""
    value = piece if part.event_shape else piece.squeeze(-1)
    for step in fn.transforms if isinstance(fn, dist.TransformedDistribution) else []:
        value = step(value)
    return value


def same_batch(parts: Sequence[Tensor]) -> list[Tensor]:
    """Broadcast parts of vectors to one batch shape."""
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return [part.expand(*batch, part.shape[-1]) for part in parts]


def factor(u: Any) -> tuple[Tensor, Tensor]:
    """m and L of a normal vector; NotImplementedError for any other distribution."""
    if isinstance(u, MultivariateNormal):
        return u.loc, u.scale_tril
    if isinstance(u, LowRankMultivariateNormal):
        return u.loc, torch.linalg.cholesky(u.covariance_matrix)
    if isinstance(u, Independent) and isinstance(u.base_dist, Normal) and len(u.event_shape) == 1:
        return u.base_dist.loc, torch.diag_embed(u.base_dist.scale)
    raise NotImplementedError(f"{type(u).__name__} is no normal vector")


def conditional(loc: Tensor, tril: Tensor, before: Sequence[Tensor], size: int, scalar: bool) -> Any:
    """u_i given the parts before it: N(m_i + L_i< L_<<⁻¹ (u_< − m_<), L_ii L_iiᵀ)."""
    start = sum(part.shape[-1] for part in before)
    here = slice(start, start + size)
    mean, own = loc[..., here], tril[..., here, here]
    if before:
        known = torch.cat(same_batch(before), -1) - loc[..., :start]
        noise = torch.linalg.solve_triangular(tril[..., :start, :start], known.unsqueeze(-1), upper=False)
        mean = mean + (tril[..., here, :start] @ noise).squeeze(-1)
    if scalar:
        return dist.Normal(mean[..., 0], own[..., 0, 0])
    return dist.MultivariateNormal(mean, scale_tril=own)


def joint_pushforward(u: Site, points: Sequence[tuple[Part, Site]]) -> JointPushforward | None:
    """Make the map of a normal vector onto the Deltas that take it up from first to last, if that is what they are."""
    fn, taken, sizes = u["fn"], list[tuple[Part, Site]](), list[int]()
    if len(fn.event_shape) != 1:
        return None
    for part, z in points:
        if sum(sizes) == fn.event_shape[0]:
            break
        taken.append((part, z))
        sizes.append(part.source(fn.batch_shape).numel())
    move = JointPushforward(tuple(part for part, _ in taken), tuple(sizes))
    try:
        return move if len(taken) > 1 and sum(sizes) == fn.event_shape[0] and agrees(move, u, taken) else None
    except (NotImplementedError, RuntimeError, ValueError):  # no normal vector, or no map
        return None


def agrees(move: JointPushforward, u: Site, taken: Sequence[tuple[Part, Site]]) -> bool:
    """Compare the Deltas with T_i(u_i), and the sum of their log_densities and log q(u) with the conditionals', at the draw."""
    total, joint = u["fn"].log_prob(u["value"]), torch.zeros(())
    pieces = u["value"].split(move.sizes, -1)
    for (part, z), fn, piece in zip(taken, move.densities(u["fn"], u["value"]).values(), pieces, strict=True):
        if tuple(u["fn"].batch_shape) != tuple(z["fn"].batch_shape) or z["fn"].event_dim != part.event_dim:
            return False
        value = moved(part, fn, piece)
        if value.shape != z["value"].shape or not torch.allclose(value, z["value"], rtol=1e-4, atol=1e-6):
            return False
        total, joint = total + z["fn"].log_density, joint + fn.log_prob(value)
    return bool(torch.allclose(joint, total, rtol=1e-3, atol=1e-3))
