"""What the registry knows of a prior or a posterior that can be built by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PartSpec:
    """One prior p(z) or posterior q(z | x).

    Attributes:
        name: its name.
        make: makes the module: ``make(dim, **options)`` for a prior, ``make(encoder, dim, **options)`` for a posterior, where
            ``encoder(out_features)`` makes its network; those that need more take it by keyword (see `needs`).
        support: "real", "simplex", "sphere" or "one-hot": a prior goes with the posteriors of its support; "any" is the
            other's own.
        formula: the density, in a line.
        reparameterised: whether draws carry gradients.
        options: further arguments, with their defaults.
        needs: arguments without a default, by keyword.
        reference: where it comes from: authors, year, address.
    """

    name: str
    make: Callable[..., nn.Module]
    support: str
    formula: str
    reparameterised: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reference: str = "textbook"
