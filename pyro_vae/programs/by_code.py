"""Distributions of C · N rows, code by code, as the components of mixtures over codes, N rows each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import MaskedDistribution
from torch import Size, Tensor
from torch.distributions import Independent

from pyro_vae.common.log_sums import log_sum_exp
from pyro_vae.common.pyro_private import mask_of

from .vectorize import PARAMETERS, Grouping, ParticleDistribution, as_shaped


@dataclass(frozen=True)
class CodesOnTheRight(Grouping):
    """Tensors of C · N rows, ``(..., C N, *event)``, as ``(..., N, C, *event)``; `particles` is C."""

    def split(self, values: Tensor, event_dim: int = 0) -> Tensor:
        return super().split(values, event_dim).movedim(0, -1 - event_dim - self.taken)

    def merge(self, values: Tensor, event_dim: int = 0) -> Tensor:
        codes = -1 - event_dim - self.taken
        size = list(values.shape)
        size[codes] = self.particles
        moved = values.expand(size).movedim(codes, self.plates.dim - event_dim - self.taken - 1)
        at = self.plates.dim - event_dim - self.taken
        return moved.flatten(at - 1, at)

    def batch_shape(self, shape: Any) -> list[int]:
        """Return ``[..., N, C, *taken]`` of ``[..., C N, *taken]``."""
        padded = [1] * (self.plates.nesting + self.taken - len(shape)) + list(shape)
        if padded[dim := self.plates.dim - self.taken] != 1:
            padded[dim] //= self.particles
        cut = len(padded) - self.taken
        return [*padded[:cut], self.particles, *padded[cut:]]


class CodeDistribution(ParticleDistribution):
    """A distribution of C · N rows as one of batch shape ``(..., N, C)``, whatever its family."""

    codes_on_the_right = 1
    grouping: CodesOnTheRight

    def __init__(self, fn: Any, grouping: CodesOnTheRight) -> None:
        self.parts, self.grouping = (fn,), grouping
        dist.TorchDistribution.__init__(
            self, Size(grouping.batch_shape(fn.batch_shape)), fn.event_shape, validate_args=False
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodeDistribution:
        *left, codes = batch_shape if not self.grouping.taken else batch_shape[: -self.grouping.taken]
        right = list(batch_shape[len(left) + 1 :])
        left[self.grouping.plates.dim] *= codes
        return CodeDistribution(self.parts[0].expand(Size([*left, *right])), self.grouping)

    def scored(self, value: Tensor, density: Callable[[Any, Tensor], Tensor]) -> Tensor:
        full = value.expand(torch.broadcast_shapes(value.shape, self.shape()))
        own = as_shaped(self.grouping.merge(full, self.event_dim), self.parts[0])
        return self.grouping.split(density(self.parts[0], own))


class CodeMixture(dist.MixtureSameFamily):
    """Σ_c p(c) p(value | c), c the codes of what is summed out; the gradient of far values as that of log-sums."""

    def log_prob(self, value: Tensor) -> Tensor:
        each = self.component_distribution.log_prob(value.unsqueeze(-1 - len(self.event_shape)))
        return log_sum_exp(each, -1, self.mixture_distribution.logits.log_softmax(-1))

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodeMixture:
        shape = Size(batch_shape)
        weights = dist.Categorical(logits=self.mixture_distribution.logits, validate_args=False).expand(shape)
        components = self.component_distribution.expand((*shape, weights.logits.shape[-1]))
        return CodeMixture(weights, components, validate_args=False)


def mixture_of(log_weights: Tensor, fn: Any, grouping: CodesOnTheRight) -> CodeMixture:
    """Σ_c weight_c fn_c, of log weights ``(..., N, C)`` and a distribution of C · N rows."""
    components = by_code(fn, grouping)
    batch = torch.broadcast_shapes(log_weights.shape, components.batch_shape)
    weights = dist.Categorical(logits=log_weights.expand(batch), validate_args=False)
    return CodeMixture(weights, components.expand(batch), validate_args=False)


def by_code(fn: Any, grouping: CodesOnTheRight) -> Any:
    """Return a distribution of C · N rows as one of ``(..., N, C)``; simple families keep their own class."""
    if isinstance(fn, Independent):
        taken = fn.reinterpreted_batch_ndims
        return dist.Independent(by_code(fn.base_dist, replace(grouping, taken=grouping.taken + taken)), taken)
    if isinstance(fn, MaskedDistribution):
        base, mask = by_code(fn.base_dist, grouping), mask_of(fn)
        return MaskedDistribution(
            base, mask if isinstance(mask, bool) else grouping.split(mask).expand(base.batch_shape)
        )
    if (names := PARAMETERS.get(type(fn))) and all(name in vars(fn) for name in names):
        given = {name: grouping.split(getattr(fn, name), dims) for name, dims in names.items()}
        return type(fn)(**given, validate_args=False)
    return CodeDistribution(fn, grouping)


def of_first_code(fn: Any, grouping: Grouping) -> Any | None:
    """Return a distribution of C · N rows, the same for each code, as one of N rows; None where its family is not known."""
    if isinstance(fn, Independent):
        taken = fn.reinterpreted_batch_ndims
        base = of_first_code(fn.base_dist, replace(grouping, taken=grouping.taken + taken))
        return None if base is None else dist.Independent(base, taken)
    if isinstance(fn, MaskedDistribution):
        base, mask = of_first_code(fn.base_dist, grouping), mask_of(fn)
        own = mask if isinstance(mask, bool) else grouping.split(mask)[0]
        return None if base is None else MaskedDistribution(base, own)
    if (names := PARAMETERS.get(type(fn))) and all(name in vars(fn) for name in names):
        given = {name: grouping.split(getattr(fn, name), dims)[0] for name, dims in names.items()}
        return type(fn)(**given, validate_args=False)
    return None
