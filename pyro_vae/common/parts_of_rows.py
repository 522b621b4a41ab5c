"""Rows that a figure is taken of in parts, each on a random stream of its own, which processes share.

How rows are cut, and what a part draws, depends on the number of shards and not on that of processes. All come to hold all
parts in the order of the rows, and merge them alike: the figure has the bits of one process, and is the same on each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .exchange import bytes_of, text_of
from .random import seeded
from .spread import Part, spread

RAISED, WORDS = "raised", "words"  # in the place of a part: which of `unless` it had, and its message


@dataclass(frozen=True)
class PartsOfRows:
    """Makes a figure of some rows part by part.

    Attributes:
        shards: S, into at least as many parts rows are cut, where there are as many rows; None: as large as parts may be, one
            after the other on the random stream around, by each process alike.
        stream: (seed, \\*block); part i draws from (seed, \\*block, i).
        what: where in the work that is, the same on each rank, for errors.
        unless: exceptions of which one in any part is raised on all processes, with the words of the first part that had one:
            what follows from there being no such figure is the same on each.
    """

    shards: int | None = None
    stream: tuple[int, ...] = (0,)
    what: str = ""
    unless: tuple[type[Exception], ...] = ()

    def size(self, rows: int, most: int) -> int:
        """Return how many of the rows are a part, `most` at most.

        Example:
            >>> PartsOfRows().size(1000, most=400), PartsOfRows(shards=8).size(1000, most=400)
            (400, 125)
            >>> PartsOfRows(shards=8).size(3, most=400)
            1
        """
        return most if self.shards is None else max(1, min(most, -(-rows // self.shards)))

    def __call__(self, count: int, make: Callable[[int], Part], device: torch.device | str = "cpu") -> list[Part]:
        """Return parts 0 to `count` − 1, in this order.

        Args:
            count: of parts.
            make: makes a part, tensors on the CPU by name, one at least.
            device: where it draws.

        Raises:
            Exception: on each process the same, where a part of any had one of those in `unless`.
            ProcessesError: on the other ranks, where `make` failed on one in another way, whose error that one raises.

        Example:
            >>> import torch
            >>> draws = PartsOfRows(shards=2, stream=(7,))(2, lambda i: {"z": torch.rand(1)})
            >>> with seeded(7, 1):
            ...     torch.equal(draws[1]["z"], torch.rand(1))
            True
        """
        if self.shards is None:
            return [make(i) for i in range(count)]

        errors: dict[int, Exception] = {}  # of parts of this process

        def own(i: int) -> Part:
            with seeded(*self.stream, i, device=device):
                try:
                    return make(i)
                except self.unless as error:
                    errors[i] = error
                    number = next(n for n, kind in enumerate(self.unless) if isinstance(error, kind))
                    return {RAISED: torch.tensor([number]), WORDS: bytes_of(str(error))}

        parts = spread(count, own, self.what, more=None)
        for i, part in enumerate(parts):
            if RAISED in part:  # on a process that made no part, too
                raise self.unless[int(part[RAISED])](text_of(part[WORDS])) from errors.get(i)
        return parts


IN_TURN = PartsOfRows()
