"""A step of several parts, of which other processes compute some: the same graphs are made and given up on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .flat_graph import FlatGraph
from .trace_setting import kind_of

AGREED, ANEW, AS_TRACED, EAGER = range(4)  # what the graphs of such a step came to, the worst the largest


@dataclass(frozen=True, eq=False)
class StepParts:
    """All parts of a step, whoever computes them, and what this process has done with its graphs in it."""

    parts: list[tuple[Tensor, ...]]
    kinds: list[str]  # of the parts
    checked: set[Any] = field(default_factory=set)  # keys of graphs
    fresh: list[FlatGraph] = field(default_factory=list)  # traced in this step

    @classmethod
    def of(cls, parts: Sequence[Sequence[Tensor]]) -> StepParts:
        """Take the parts for one step, of whose graphs nothing was done yet."""
        return cls([tuple(part) for part in parts], [kind_of(part) for part in parts])

    def first_of(self, kind: str) -> tuple[Tensor, ...]:
        """Return the first part of a kind, from which every process traces that kind's graph."""
        return self.parts[self.kinds.index(kind)]

    def firsts_of_others(self, own: range) -> list[int]:
        """Number the first parts of the kinds of which this process, whose parts are `own`, computes none."""
        ours = {self.kinds[number] for number in own if number < len(self.kinds)}
        return [
            number for number, kind in enumerate(self.kinds) if kind not in ours and self.kinds.index(kind) == number
        ]
