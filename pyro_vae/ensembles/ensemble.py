"""`Ensemble`: trained members, each a model of its own, and what they say together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.training.training_state import FitResult


@dataclass(eq=False)
class Ensemble:
    """Models of one architecture, a seed each."""

    members: list[Any]
    seeds: tuple[int, ...]
    results: list[FitResult]
    diverged: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    def __getitem__(self, index: int) -> Any:
        return self.members[index]
