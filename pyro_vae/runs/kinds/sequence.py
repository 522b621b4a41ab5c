"""p(z_1) Π p(z_t | z_{t−1}) Π p(x_t | z_t): sequences, which may end early."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.data.arrays import format_rows
from pyro_vae.data.sequences import fill_beyond
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.errors import DataError, UsageError
from pyro_vae.evidence.imputation import impute
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.models import usage
from pyro_vae.models.recurrent import BackwardGRU
from pyro_vae.models.sequence import StateSpaceModel
from pyro_vae.priors.simple import StandardNormal
from pyro_vae.runs.config import Config

from .kind import Batch, ModelKind, Shape
from .parts import ModelParts


def make_sequence(parts: ModelParts, recurrent: int = 64) -> StateSpaceModel:
    """Make a state-space model whose guide reads each sequence backwards, by a GRU of this width."""
    if parts.config.network != "mlp":
        raise UsageError("--network conv is of images, and model 'sequence' sees one step at a time: take mlp")
    dim = parts.config.latent_dim
    likelihood = parts.likelihood(dim)
    transition = Conditional(parts.network(dim, 2 * dim), normal)
    posterior = Conditional(parts.network(dim + recurrent, 2 * dim), normal)
    encoder = parts.see_by(BackwardGRU(parts.planes * parts.elements, recurrent))
    parts.start(likelihood)
    return StateSpaceModel(StandardNormal(dim), transition, likelihood, encoder, posterior)


def steps_of(shape: Shape) -> tuple[int, int]:
    """Return steps T and elements D of a step, of rows (T,), (T, D) as tables of them have it, or (T, …).

    Example:
        >>> steps_of((7,)), steps_of((1, 7, 3)), steps_of((7, 2, 3))
        ((7, 1), (7, 3), (7, 6))
    """
    steps, *event = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return steps, math.prod(event)


def step_shape(shape: Shape) -> Shape:
    """Return the shape of one step."""
    return (steps_of(shape)[1],)


def sequences(split: Split, shape: Shape) -> Batch:
    """x ``(N, T, D)`` and lengths ``(N,)``: a sequence ends after its last step of which something was observed.

    Raises:
        DataError: a row without a step.
    """
    x = split.x.reshape(len(split.x), *steps_of(shape))
    there = ~x.isnan().all(-1)
    lengths = torch.where(there, torch.arange(1, x.shape[1] + 1), 0).amax(1)
    if (lengths == 0).any():
        raise DataError(
            f"x has no step at all (only NaN) in {format_rows(lengths == 0)}. Leave these rows out: p of nothing is 1."
        )
    filled = fill_beyond(x, lengths)
    # a first step with gaps stands beyond the end, too, where nothing is read: as 0
    beyond = torch.arange(x.shape[1]) >= lengths.unsqueeze(1)
    return torch.where(beyond.unsqueeze(-1) & filled.isnan(), 0.0, filled), lengths


def train_rows(split: Split, shape: Shape, config: Config) -> Batch:
    """As :func:`sequences`, whose gaps are allowed by the config.

    Raises:
        DataError: gaps within a sequence, of a model that is not told of any.
    """
    x, lengths = sequences(split, shape)
    if not config.missing and x.isnan().any():
        raise DataError(
            f"x has NaN before the end of a sequence in {format_rows(x.isnan())}. With --missing it is what was not observed; "
            "else fill it in."
        )
    return x, lengths


def flat(values: Tensor, shape: Shape) -> Tensor:
    """``(*batch, T, D)`` as rows of a data set."""
    return values.flatten(-2)


def joined(values: dict[str, Tensor], letter: str) -> Tensor:
    """Put the steps of a mapping side by side, ``(*batch, T, D)``."""
    return torch.stack(
        [values[f"{letter}_{t + 1}"] for t in range(sum(name.startswith(letter) for name in values))], -2
    )


def sample(model: StateSpaceModel, shape: Shape, num_samples: int, seed: int, mean: bool) -> Tensor:
    """Draw sequences of all T steps, ``(num_samples, T · D)``."""
    like = torch.zeros(1, *steps_of(shape), device=next(model.parameters()).device)
    return flat(joined(usage.sample(model, num_samples, like=like, seed=seed, mean=mean), "x"), shape)


def encode(model: StateSpaceModel, *rows: Tensor) -> Tensor:
    """z of each step at its mean given the one before, ``(N, T · d)``; NaN beyond the end."""
    return joined(usage.encode(model, *rows), "z").flatten(1)


def reconstruct(model: StateSpaceModel, *rows: Tensor) -> Tensor:
    """E[x_t | z_t] at those, ``(N, T, D)``; NaN beyond the end."""
    return joined(usage.reconstruct(model, *rows), "x")


def filled_in(model: StateSpaceModel, x: Tensor, lengths: Tensor, **how: Any) -> Tensor:
    """Draw what is missing before the end of each sequence, ``(draws, N, T · D)``; NaN beyond it."""
    drawn: Tensor = impute(model, x, lengths, **how)
    beyond = torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(1)
    return flat(drawn.masked_fill(beyond.unsqueeze(-1), torch.nan), ())


KIND = ModelKind(
    make=make_sequence, ragged=True, emission=step_shape, rows=sequences, train_rows=train_rows,
    flat=flat, sample=sample, encode=encode, reconstruct=reconstruct, impute=filled_in,
    likelihood_of_rows=reconstruct, likelihood_of_draws=partial(sample, mean=True),
    interpolate="a code has a z for each step. In Python: interpolate((model.model, model.guide), start, end, lengths)",
    formula="p(z_1) Π p(z_t|z_{t−1}) p(x_t|z_t); Π q(z_t|z_{t−1}, x_t … x_T)", support="sequences",
    reference="Krishnan, Shalit & Sontag, 2017, https://arxiv.org/abs/1609.09869",
)  # fmt: skip
