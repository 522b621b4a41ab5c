"""One row of the tables that configs choose from: how a thing is made, and what it says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = inspect.Parameter.empty  # in place of an option's default: a config has to give it


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One prior, likelihood, posterior, objective, gradient estimator or treatment of the KL; its name is its key in a table.

    Attributes:
        make: makes it from its options: ``make(dim, **options)`` for a prior, ``make(encoder, dim, **options)`` for a
            posterior, where ``encoder(out_features)`` makes its network; ``make(**options)`` for a likelihood.
        formula: the density, or what is computed, in a line.
        support: "real", "simplex", "sphere" or "one-hot" of a prior or a posterior, which go with those of their support
            ("any" is the other's own); values in words of a likelihood; what the value is or needs of an objective.
        reference: where it comes from: authors, year, address.
        options: name to default, `REQUIRED` where there is none; left out, those parameters of `make` that have a default.
        needs: parts of the model that `make` takes by keyword: "prior", "likelihood", "posterior", "shape".
        reparameterised: of a prior or a posterior: whether draws carry gradients.
        features: of a likelihood: how many an element it takes, a number or a function of the options.

    Example:
        >>> from pyro_vae import Spec
        >>> from pyro_vae.priors import StudentT
        >>> Spec(make=StudentT, formula="Π t_df(loc, scale)", support="real").options
        {'df': 5.0, 'learned': False}
    """

    make: Callable[..., Any]
    formula: str
    support: str
    reference: str = "textbook"
    options: Mapping[str, Any] = None  # type: ignore[assignment] # replaced below, never None
    needs: tuple[str, ...] = ()
    reparameterised: bool = True
    features: int | Callable[..., int] | None = None

    def __post_init__(self) -> None:
        if self.options is None:
            parameters = inspect.signature(self.make).parameters.values()
            object.__setattr__(self, "options", {p.name: p.default for p in parameters if p.default is not p.empty})

    def num_features(self, **options: Any) -> int:
        """Count the features that a likelihood takes for each element, under these options."""
        return self.features(**options) if callable(self.features) else self.features or 0
