"""Use a trained VAE: encode, reconstruct, sample, interpolate.

For anything with ``prior``, ``likelihood`` and ``posterior`` that return distributions, and for a hierarchy, whose z is then
z1, the level that the likelihood takes; contexts c come last. Nothing here changes the model, its mode, or the global random
state; only `sample` draws, from a seed of its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import seeded
from pyro_vae.data.arrays import batch_of
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.arguments import argument_dtypes
from pyro_vae.programs.pair import evaluation_mode, like_parameters, without_validation
from pyro_vae.programs.support import MASK, takes_missing


class HasParts(Protocol):
    """p(z), p(x | z) and q(z | x), each a callable that returns a distribution."""

    prior: Any
    likelihood: Any
    posterior: Any


@runtime_checkable
class HasLevels(Protocol):
    """Latents of several levels, above the z1 that the likelihood takes."""

    likelihood: Any
    posterior: Any

    def draw_prior(self, num_samples: int, *c: Tensor) -> Tensor:
        """z1 ~ p(z1 | c), by way of the levels above it."""

    def posterior_path(self, x: Tensor, *c: Tensor) -> Tensor:
        """z1 on the path of means: each level at its mean given the means of those drawn before it."""


def encode(vae: HasParts | HasLevels, x: Any, *c: Any) -> Tensor:
    """E[z | x] under q(z | x), ``(N, latent_dim)``: the posterior's mean, never a hidden random draw.

    Of a :class:`~pyro_vae.HierarchicalVAE` it is z1 on the path of means: each level at its mean given the means of the levels
    that the guide draws before it. Where these means are linear in what they are given, that is E[z1 | x].

    Args:
        vae: the model.
        x: data ``(N, *event)``.
        *c: contexts with N rows, where the model has them.

    Raises:
        ProgramError: a posterior without a mean in closed form, or one that does not take NaN where x has missing values.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, encode
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> encode(vae, torch.ones(5, 9)).shape
        torch.Size([5, 2])
    """
    rows = _rows(vae, x, *c, parts=("posterior",))
    missing = any(bool(a.isnan().any()) for a in rows)
    # torch's validation would stop at a NaN parameter; the message below says more
    with evaluation_mode(vae), without_validation() if missing else nullcontext():
        path = vae.posterior_path if isinstance(vae, HasLevels) else None
        z = path(*rows) if path else _mean(vae.posterior(*rows), "the posterior q(z | x)")
    if missing and z.isnan().any():
        raise ProgramError(f"the posterior's mean is NaN where x has missing values. {MASK}")
    return z


def reconstruct(vae: HasParts | HasLevels, x: Any, *c: Any) -> Tensor:
    """E[x | z] at z = E[z | x]: each row through the encoder's and the decoder's mean, ``(N, *event)``.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, reconstruct
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> reconstruct(vae, torch.ones(5, 9)).shape
        torch.Size([5, 9])
    """
    rows = _rows(vae, x, *c)
    return _decode(vae, encode(vae, *rows), *rows[1:])


@suggest_keywords
def interpolate(vae: HasParts | HasLevels, start: Any, end: Any, *c: Any, steps: int = 10) -> Tensor:
    """E[x | z] along the straight line from E[z | start] to E[z | end], row by row, ends included: ``(steps, N, *event)``.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, interpolate
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> interpolate(vae, torch.zeros(5, 9), torch.ones(5, 9), steps=7).shape
        torch.Size([7, 5, 9])
    """
    if steps < 2:
        raise UsageError(f"an interpolation has at least 2 steps, its ends; got {steps}")
    (start,), (end, *context) = _rows(vae, start), _rows(vae, end, *c)
    if len(start) != len(end):
        raise UsageError(f"an interpolation starts and ends at as many rows, got {len(start)} and {len(end)}")
    a, b = encode(vae, start, *context), encode(vae, end, *context)
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.dim())
    return _decode(vae, a + t * (b - a), *context)


@suggest_keywords
def sample(vae: HasParts | HasLevels, num_samples: int, *c: Any, seed: int = 0, mean: bool = False) -> Tensor:
    """x ~ p(x | z) for z ~ p(z), ``(num_samples, *event)``.

    Args:
        vae: the model.
        num_samples: how many.
        *c: contexts with `num_samples` rows, where the model has them.
        seed: the same seed draws the same samples, whatever was drawn before.
        mean: E[x | z] of each z drawn, in place of a draw of x.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, sample
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> sample(vae, 10, seed=3).shape
        torch.Size([10, 9])
    """
    if num_samples < 1:
        raise UsageError(f"num_samples must be at least 1, got {num_samples}")
    _refuse_without_parts(vae)
    like = like_parameters(vae)
    c = batch_of(*c, like=like) if c else ()
    if c and len(c[0]) != num_samples:
        raise UsageError(f"{num_samples} samples need a context of as many rows, got {len(c[0])}")
    with evaluation_mode(vae), seeded(seed, device=like.device if like is not None else "cpu"):
        z = vae.draw_prior(num_samples, *c) if isinstance(vae, HasLevels) else _draw(vae.prior(*c), num_samples)
        return _decode(vae, z, *c) if mean else vae.likelihood(z, *c).sample()


def _draw(prior: Any, num_samples: int) -> Tensor:
    draws: Tensor = prior.expand((num_samples,)).sample()
    return draws


def _decode(vae: HasParts | HasLevels, z: Tensor, *c: Tensor) -> Tensor:
    with evaluation_mode(vae):
        return _mean(vae.likelihood(z, *c), "the likelihood p(x | z)")


def _refuse_without_parts(vae: Any, parts: tuple[str, ...] = ()) -> None:
    every = ("likelihood", "posterior") if isinstance(vae, HasLevels) else tuple(HasParts.__annotations__)
    parts = parts or every
    if absent := [part for part in parts if not callable(getattr(vae, part, None))]:
        raise ProgramError(
            f"a {type(vae).__name__} has no {absent[0]}(...): encode, reconstruct, sample and interpolate want a VAE's "
            "prior, likelihood and posterior. Of any program simulate(model, x) draws x, and impute(..., site=...) what one "
            "site observes given the others; of a StateSpaceModel smooth(...) has E[z | x] and forecast(...) what comes next."
        )


def _rows(vae: HasParts | HasLevels, *arrays: Any, parts: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
    _refuse_without_parts(vae, parts)
    missing = takes_missing(vae, *(getattr(vae, part, None) for part in HasParts.__annotations__))
    dtypes = argument_dtypes(vae.model, vae.guide, *arrays) if hasattr(vae, "model") and hasattr(vae, "guide") else None
    return batch_of(*arrays, like=like_parameters(vae), missing=missing, dtypes=dtypes)


def _mean(d: TorchDistributionMixin, role: str) -> Tensor:
    try:
        return d.mean
    except NotImplementedError as error:
        raise ProgramError(
            f"{role} is a {type(d).__name__}, which has no mean in closed form; average draws of your own: "
            "vae.posterior(x).sample((100,)).mean(0)"
        ) from error
