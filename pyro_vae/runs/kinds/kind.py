"""One row of the table of models: how it is made, what of a data set its programs take, and what can be asked of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.common.spec import Spec
from pyro_vae.data import Data, Split
from pyro_vae.errors import UsageError
from pyro_vae.evidence.imputation import impute
from pyro_vae.models import usage
from pyro_vae.models.standardize import Units
from pyro_vae.objectives.bound_objective import Term
from pyro_vae.programs.pair import evaluation_mode
from pyro_vae.runs.config import Config

Shape = tuple[int, ...]
Batch = tuple[Tensor, ...]


def whole_rows(split: Split, shape: Shape) -> Batch:
    """x, as it is."""
    return (split.x,)


def rows_to_train_on(split: Split, shape: Shape, config: Config) -> Batch:
    """x, as it is."""
    return (split.x,)


def nothing_passed_over(options: Mapping[str, Any], data: Data) -> list[str]:
    """Return no sentence: all of the data counts."""
    return []


def as_given(options: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """Leave nothing to the data."""
    return dict(options)


def no_terms(config: Config, rows: int) -> tuple[Term, ...]:
    """Add nothing to the objective."""
    return ()


def one_row(shape: Shape) -> Shape:
    """Return the shape of what the likelihood is of: a row."""
    return shape


def sample_rows(model: Any, shape: Shape, num_samples: int, seed: int, mean: bool) -> Tensor:
    """x ~ p(x), ``(num_samples, elements)``."""
    x: Tensor = usage.sample(model, num_samples, seed=seed, mean=mean)
    return x


def likelihood_of_rows(model: Any, *rows: Tensor) -> Any:
    """p(x | z) at z = E[z | x], or its means."""
    with evaluation_mode(model):
        return model.likelihood(usage.encode(model, *rows))


def likelihood_of_draws(model: Any, shape: Shape, num_samples: int, seed: int) -> Any:
    """p(x | z) at the draws z ~ p(z) of :func:`sample_rows`, or its means."""
    z = usage.sample(model, num_samples, seed=seed, site=getattr(model, "code_site", "z"))
    with evaluation_mode(model):
        return model.likelihood(z)


def units_of_likelihood(model: Any) -> Units:
    """Return the units that p(x | z) stands in, of a model that standardizes."""
    units: Units = model.likelihood.units
    return units


def flat_rows(values: Tensor, shape: Shape) -> Tensor:
    """Return what the programs make of x as rows of a data set, ``(*batch, elements)``."""
    return values


def nothing_more(model: Any, split: Split, shape: Shape) -> dict[str, Any]:
    """Report nothing beside log p(x)."""
    return {}


@dataclass(frozen=True, kw_only=True)
class ModelKind(Spec):
    """A model that a config can name; `make` takes :class:`~pyro_vae.runs.kinds.parts.ModelParts` and the options.

    Attributes:
        takes: roles of a config that are this model's to fill; it has the others by itself, and they are refused.
        objectives: what it can be trained on, by name; all, if empty.
        ragged: rows may end early: their NaN after the end is no gap.
        labels: rows have labels that the model is trained with.
        emission: what of a row the likelihood is of, by its shape.
        rows: arguments that log p(x) of a split is of.
        train_rows: arguments that it is trained on.
        decide: options that are left to the data.
        passed_over: what of the data the options leave out, a sentence each.
        terms: what the objective has beside its bound, of so many training rows.
        sample, encode, reconstruct, interpolate, impute: what is asked of it, or why not.
        likelihood_of_rows, likelihood_of_draws: p(x | z), a distribution or its means, at the codes of rows, and at draws: what
            pictures show of it.
        flat: x of the programs as rows of a data set.
        units: of what the likelihood is of, where the config standardizes.
        report: what is told of a split beside log p(x).
    """

    takes: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()
    ragged: bool = False
    labels: bool = False
    emission: Callable[[Shape], Shape] = one_row
    rows: Callable[[Split, Shape], Batch] = whole_rows
    train_rows: Callable[[Split, Shape, Config], Batch] = rows_to_train_on
    decide: Callable[[Mapping[str, Any], Data], dict[str, Any]] = as_given
    passed_over: Callable[[Mapping[str, Any], Data], list[str]] = nothing_passed_over
    terms: Callable[[Config, int], tuple[Term, ...]] = no_terms
    sample: Callable[..., Tensor] | str = sample_rows
    encode: Callable[..., Any] | str = usage.encode
    reconstruct: Callable[..., Any] | str = usage.reconstruct
    interpolate: Callable[..., Any] | str = usage.interpolate
    impute: Callable[..., Any] | str = impute
    likelihood_of_rows: Callable[..., Any] = likelihood_of_rows
    likelihood_of_draws: Callable[..., Any] = likelihood_of_draws
    flat: Callable[[Tensor, Shape], Tensor] = flat_rows
    units: Callable[[Any], Units] = units_of_likelihood
    report: Callable[[Any, Split, Shape], dict[str, Any]] = nothing_more

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options and "parts" in self.options:
            raise UsageError("make takes its parts first, without a default")

    def emissions(self, x: Tensor, shape: Shape) -> Tensor:
        """Return rows of a data set as what the likelihood is of, one below the other; all NaN beyond the end of a row."""
        return x.reshape(-1, math.prod(self.emission(shape)))

    def observed(self, x: Tensor, shape: Shape) -> Tensor:
        """Return those of :meth:`emissions` that lie before the end of a row."""
        rows = self.emissions(x, shape)
        return rows[~rows.isnan().all(1)] if self.ragged else rows

    def ask(self, what: str, name: str) -> Callable[..., Any]:
        """Return what is asked of a model of this kind.

        Raises:
            UsageError: it has no such thing; says why.
        """
        found = getattr(self, what)
        if isinstance(found, str):
            raise UsageError(f"{what} is not of model {name!r}: {found}")
        asked: Callable[..., Any] = found
        return asked
