"""How many graphs a run has made, also those of the process that left its checkpoint: which decides when a run is eager."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_vae.common.digests import sha256

from .flat_graph import Untraceable
from .scheduled_values import Answers

MOST = 8  # graphs of a run


@dataclass(eq=False)
class GraphTally:
    """Graphs by names that they have in any process; a resumed run makes those of the checkpoint anew, as it meets them.

    Example:
        >>> resumed = GraphTally()
        >>> resumed.load(["a", "b"])
        >>> resumed.add("a")             # made anew: no further one
        >>> len(resumed), resumed.names
        (2, ['a', 'b'])
        >>> resumed.add("c")
        >>> len(resumed)
        3
    """

    made: Counter[str] = field(default_factory=Counter)  # by this process
    before: Counter[str] = field(default_factory=Counter)  # by the one that left the checkpoint

    def __len__(self) -> int:
        return (self.made | self.before).total()

    @property
    def names(self) -> list[str]:
        """Of all graphs, for a checkpoint."""
        return sorted((self.made | self.before).elements())

    def check_room(self) -> None:
        """Refuse a graph that could only be a further one, before it is made.

        Raises:
            Untraceable: the run has had its number of graphs.
        """
        if len(self) >= MOST and not self.before - self.made:
            raise Untraceable(f"more than {MOST} kinds of batch or of changing numbers")

    def add(self, name: str) -> None:
        """Count a graph.

        Raises:
            Untraceable: there are too many.
        """
        self.made[name] += 1
        if len(self) > MOST:
            raise Untraceable(f"more than {MOST} kinds of batch or of changing numbers")

    def drop(self, name: str) -> None:
        """Count a graph no longer."""
        for counted in (self.made, self.before):
            counted[name] = max(0, counted[name] - 1)

    def clear(self) -> None:
        """Count none any more."""
        self.made.clear()
        self.before.clear()

    def load(self, names: Iterable[str]) -> None:
        """Take over the names of a checkpoint."""
        self.before = Counter(map(str, names))


def graph_name(*what: Any, answers: Answers) -> str:
    """Name a graph by what it is traced under (values that print alike in any process), and the answers in it."""
    return sha256(repr((what, [answer for _, answer in answers])).encode())[:16]


def batch_key(batch: Sequence[Tensor]) -> tuple[Any, ...]:
    """Describe a batch as any process has it."""
    return tuple((tuple(a.shape), a.stride(), str(a.dtype), a.device.type) for a in batch)
