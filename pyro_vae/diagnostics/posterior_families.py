"""Families of posteriors: a distribution as a function of free tensors, or of offsets from what a guide draws from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, TransformedDistribution, transform_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform

from pyro_vae.common.pyro_private import mask_of

SAME = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}  # the latter is free
Read = Callable[[Any, Any], Any]  # a parameter, or a mask, of a distribution
Rebuild = Callable[[Any], Any]  # a flow, of its base


class DependsOnDraws(ValueError):
    """Parameters that differ between particles of a row."""


@dataclass(frozen=True)
class PosteriorFamily:
    """A distribution as a function of unconstrained tensors, ``(1, N, …)`` each, where they start, and the mask of its site."""

    start: list[Tensor]
    build: Callable[[Sequence[Tensor]], Any]
    mask: Any = None

    def at(self, free: Sequence[Tensor], fn: Any) -> Any:
        """Make the distribution with these parameters, whatever the guide drew from, `fn`."""
        return self.build(free)


@dataclass(frozen=True)
class OffsetFamily:
    """The distributions that a guide draws from given other sites, moved: where the offsets start, ``(1, N, …)`` of 0 each."""

    start: list[Tensor]

    def at(self, free: Sequence[Tensor], fn: Any) -> Any:
        """Move the unconstrained parameters of what the guide drew from, `fn`, by offsets of the rows."""
        family = family_of(fn, as_drawn)
        return family.build([value + offset for value, offset in zip(family.start, free, strict=True)])


Families = dict[str, PosteriorFamily | OffsetFamily]


def offsets_of(fn: Any) -> OffsetFamily:
    """Find the parameters of a distribution that differ between particles, and give each an offset for each row."""
    start = family_of(fn, as_probed).start
    if not all(t.isfinite().all() for t in start):
        raise ValueError("its parameters are not finite, or on the edge of what they may be, for some rows")
    if any(t.shape[: len(fn.batch_shape)] != fn.batch_shape for t in start):
        raise ValueError("a parameter of it is the same for all rows, so it has no offset of each row")
    return OffsetFamily([torch.zeros_like(t[:1]) for t in start])


def as_drawn(value: Any, fn: Any) -> Any:
    """Return a parameter or a mask as it is, of every particle."""
    return value


def as_probed(value: Any, fn: Any) -> Any:
    """Return a parameter of every particle, but a mask of the first, if it is that of all: no gradient tells where it jumps."""
    return of_first(value, fn) if isinstance(value, Tensor) and value.dtype == torch.bool else value


def family_of(fn: Any, read: Read | None = None) -> PosteriorFamily:
    """Find the family of a distribution: its class, over all values of its arguments, which `read` takes from it."""
    if isinstance(fn, Independent):
        base, dims = family_of(fn.base_dist, read), fn.reinterpreted_batch_ndims
        return PosteriorFamily(base.start, lambda free: dist.Independent(base.build(free), dims))
    if isinstance(fn, dist.MaskedDistribution):
        inner, mask = family_of(fn.base_dist, read), (read or of_first)(mask_of(fn), fn.base_dist)
        return PosteriorFamily(inner.start, lambda free: inner.build(free).mask(mask))
    if isinstance(fn, MixtureSameFamily):
        weights, parts = (family_of(f, read) for f in (fn.mixture_distribution, fn.component_distribution))
        count, kind = len(weights.start), type(fn)
        return PosteriorFamily(
            weights.start + parts.start,
            lambda free: kind(weights.build(free[:count]), parts.build(free[count:]), validate_args=False),
        )
    if (flow := taken_apart(fn)) is not None:
        return of_base(fn, *flow, read)
    return elementary(fn, read or one_particle)


def taken_apart(fn: Any) -> tuple[Any, Rebuild, bool] | None:
    """Return a flow's base, how to make it of another, and whether its transforms are the same for any row; else None."""
    if type(fn) in (TransformedDistribution, dist.TransformedDistribution):
        return (
            fn.base_dist,
            lambda base: type(fn)(base, fn.transforms, validate_args=False),
            all(map(plain, fn.transforms)),
        )
    if isinstance(fn, ZukoToPyro) and type(flow := fn.dist).__name__ == "NormalizingFlow":
        zuko: Any = flow  # by name: importing zuko switches torch's validation off
        return as_pyro(zuko.base), lambda base: type(fn)(type(zuko)(zuko.transform, base)), False
    return None


def as_pyro(base: Any) -> Any:
    """Return a base of independent normals of zuko's as one of Pyro's, whose class says what its parameters are."""
    return dist.Independent(base.base, base.reinterpreted) if hasattr(base, "reinterpreted") else base


def plain(transform: Any) -> bool:
    """Return whether a transform has no tensors of its own, which might be other ones in another row or particle."""
    parts = transform.parts if isinstance(transform, ComposeTransform) else ()
    parts = [transform.base_transform] if isinstance(transform, IndependentTransform) else parts
    own = [
        v
        for name, v in vars(transform).items()
        if name != "_inv" and not (parts and name in ("parts", "base_transform"))
    ]
    return all(map(plain, parts)) and not any(isinstance(v, Tensor | torch.nn.Module) or callable(v) for v in own)


def of_base(fn: Any, base: Any, rebuild: Rebuild, alike: bool, read: Read | None) -> PosteriorFamily:
    """Find the family of a flow: its base's, its transforms as they are; of the row alone, where those are of any row."""
    if read is None and not alike:
        raise DependsOnDraws("its transforms are networks, and stay as the guide has them")
    inner = family_of(base.expand((*fn.batch_shape, *base.batch_shape[len(fn.batch_shape) :])), read)
    return PosteriorFamily(inner.start, lambda free: rebuild(inner.build(free)))


def elementary(fn: Any, read: Read) -> PosteriorFamily:
    """Find the family of a distribution of tensors: those that have a constraint are free, the others stay."""
    kind, arguments = type(fn), inspect.signature(type(fn).__init__).parameters
    limits = {n: c for n, c in fn.arg_constraints.items() if n in arguments and not c.is_discrete}
    limits = {n: c for n, c in limits.items() if SAME.get(n) not in fn.arg_constraints}
    if not limits:
        raise TypeError("it has no parameters of its own")
    needed = [n for n, a in arguments.items() if n != "self" and a.default is a.empty and n not in limits]
    fixed = {n: read(getattr(fn, n), fn) for n in needed}
    maps = {n: transform_to(c) for n, c in limits.items()}
    start = [transform.inv(read(getattr(fn, n), fn)).clone() for n, transform in maps.items()]

    def build(free: Sequence[Tensor]) -> Any:
        values = {n: transform(v) for (n, transform), v in zip(maps.items(), free, strict=True)}
        return kind(**values, **fixed, validate_args=False)

    return PosteriorFamily(start, build)


def one_particle(value: Any, fn: Any) -> Any:
    """Return a parameter of the first particle, ``(1, N, …)``, if it is that of all."""
    if not isinstance(value, Tensor) or value.shape[: len(fn.batch_shape)] != fn.batch_shape:
        return value
    if not torch.equal(value, value[:1].expand_as(value)):
        raise DependsOnDraws("its parameters depend on the draws of other sites, so a row has no one set of them")
    return value[:1].detach()


def of_first(mask: Any, fn: Any) -> Any:
    """Return the mask of the first particle, if it is that of all."""
    if not isinstance(mask, Tensor) or mask.dim() < len(fn.batch_shape):
        return mask
    if not torch.equal(mask, mask[:1].expand_as(mask)):
        raise ValueError("its mask depends on the draws of other sites, so a row has no one best distribution")
    return mask[:1]
