"""Blocks of rows shared by processes, in rounds: a block each, and of the last, which are too few for all, a share each.

Whatever a process computes of a block is drawn from the block's own streams, so that blocks, and parts of one, join to the
bits of one process. Every few seconds all come to hold what each has made: rank 0 may save it, and a process that died is
missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from pyro_vae.common.memory import SMALLER, fitting
from pyro_vae.common.processes import Processes
from pyro_vae.common.progress import tracked
from pyro_vae.common.spread import Part, exchange, own_share, warn_of_idle
from pyro_vae.programs.problem import Problem

from .accumulator import COLUMNS, Piece, RowBlock
from .guide_elbo import add_guide_elbo
from .proposals import GUIDE
from .sampler import Sampler
from .storage import numbers_of, row_block_of, tensors_of
from .target import TargetError
from .weighing import joined_engines

COLLECT = 5.0  # seconds between two exchanges
WHAT = "log p(x)"
ENDED = object()
Facts = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What a process does in a round: block number `index`, or, where it is `shared`, this process's part of its particles."""

    index: int
    shared: bool = False


def turns_of(work: Sequence[int], here: Processes, shared: bool) -> list[Turn | None]:
    """List this process's turns, one a round, as many on each rank; None in a round that has no block for it.

    Args:
        work: numbers of the blocks that lack particles.
        shared: whether particles of a block may be run by several processes.

    Example:
        >>> [turn and turn.index for turn in turns_of(range(5), Processes(1, 2), shared=False)]
        [1, 3, None]
        >>> turns_of(range(5), Processes(1, 2), shared=True)[-1]
        Turn(index=4, shared=True)
    """
    whole = len(work) // here.world * here.world if shared and here.world > 1 else len(work)
    rounds = [work[start : min(start + here.world, whole)] for start in range(0, whole, here.world)]
    turns = [Turn(blocks[here.rank]) if here.rank < len(blocks) else None for blocks in rounds]
    return [*turns, *(Turn(index, True) for index in work[whole:])]


@dataclass(frozen=True)
class Filler:
    """Runs what a turn is of: draws the particles that a block lacks, all that it plans, or that a target takes, by default."""

    sampler: Sampler
    problem: Problem
    particles: range | None
    target: TargetError | None
    here: Processes

    def turns(self, blocks: Sequence[RowBlock], run: Sequence[int]) -> list[Turn | None]:
        """List the turns of this rank for the blocks of these numbers; of one process, for those that lack nothing, too."""
        if self.here.world == 1:
            return turns_of(run, self.here, shared=False)
        work = [i for i in run if self.lacks(blocks[i])]
        return turns_of(work, self.here, self.shared(blocks, work))

    def shared(self, blocks: Sequence[RowBlock], work: Sequence[int]) -> bool:
        """Return whether particles of a block may be run by several processes."""
        return self.target is None and all(self.one_by_one(blocks[i]) for i in work)

    def tell_idle(self, blocks: Sequence[RowBlock], work: Sequence[int]) -> None:
        """Warn of processes that have nothing to do, if these blocks lack particles."""
        pieces = [
            len(list(islice(blocks[i].missing(self.wanted(blocks[i])), self.here.world)))
            for i in work[: self.here.world]
        ]
        if pieces:
            more, parts = "take fewer processes, or more rows or samples", len(work)
            parts = max(parts, *pieces) if self.shared(blocks, work) else parts
            warn_of_idle(self.here, parts, WHAT, more)

    def wanted(self, block: RowBlock) -> range:
        """Return which particles of a block are asked for."""
        return range(block.planned) if self.particles is None else self.particles

    def lacks(self, block: RowBlock) -> bool:
        """Return whether there is something to run of a block."""
        elbo = self.sampler.proposal != GUIDE and block.guide_elbo is None
        return elbo or self.target is not None or next(block.missing(self.wanted(block)), None) is not None

    def one_by_one(self, block: RowBlock) -> bool:
        """Return whether pieces of a block are weighed one by one: several at once have other shapes, so other last digits."""
        return self.sampler.chunk // (block.size * len(block.rows)) <= 1

    def __call__(self, block: RowBlock, turn: Turn) -> RowBlock:
        if turn.shared:
            elbo = turn.index % self.here.world == self.here.rank
            return self.part(block, self.sampler.of(self.problem, block.rows), elbo)
        exhaust(self.filling(block))
        return block

    def filling(self, block: RowBlock) -> Generator[None]:
        """Fill a block; stop where a GPU may be given more (:meth:`Sampler.filling`)."""
        some = self.sampler.of(self.problem, block.rows)
        with self.memory():
            if self.target is not None:
                block.plan(self.target.particles(block.rows, self.sampler, some))
            yield from self.sampler.filling(block, some, self.wanted(block))
        add_guide_elbo(block, some, self.sampler)
        block.weight_sums.largest.trim()

    def part(self, block: RowBlock, some: Problem, elbo: bool) -> RowBlock:
        """Return a block of this rank's share of the particles alone, on one rank with the ELBO of the guide."""
        part = self.sampler.open(block.rows, block.planned)
        with self.memory():
            for particles in pieces_of(block, self.wanted(block), self.here):
                self.sampler.fill(part, some, particles)
        if elbo and block.guide_elbo is None:
            add_guide_elbo(part, some, self.sampler)
        return part

    def memory(self) -> AbstractContextManager[None]:
        """Tell, where memory does not suffice, what to make smaller."""
        return fitting(f"the smallest chunk of particles on {self.problem.device}", SMALLER)


def run_rounds(
    blocks: list[RowBlock], numbers: Sequence[int], run: Filler, facts: Callable[[], Facts], verbose: bool
) -> Iterator[Facts]:
    """Run what blocks lack; yield the facts of all processes each time that `blocks`, which is changed in place, has more.

    Args:
        blocks: of all rows, the same on each rank.
        numbers: of the blocks to run.
        run: runs a turn.
        facts: of what has weighed this rank's blocks.
        verbose: a progress bar, on rank 0.

    Raises:
        ProcessesError: another rank failed, died or did not come.
    """
    here, own = run.here, dict[int, RowBlock]()  # since the last exchange
    lacking, turns = [i for i in numbers if run.lacks(blocks[i])], run.turns(blocks, numbers)
    if here.world == 1:
        yield from run_alone([blocks[turn.index] for turn in turns if turn is not None], run, facts, verbose)
        return
    last, since, start, wait = len(turns) - 1, 0, time.monotonic(), 1  # rounds since the last exchange, and to the next
    error, shared = None, {turn.index for turn in turns if turn is not None and turn.shared}
    for number, turn in enumerate(tracked(turns, WHAT, verbose)):
        if turn is not None and error is None:
            try:
                if number == 0:  # an error to whoever makes errors of warnings
                    run.tell_idle(blocks, lacking)
                own[turn.index] = run(blocks[turn.index], turn)
            except Exception as failed:
                error = failed  # the others hear of it at the next exchange
        since += 1
        if since == wait or number == last:
            seconds = (time.monotonic() - start) / since
            slowest, together = collect(blocks, own, {"seconds": seconds, "facts": facts()}, shared, error)
            own, since, wait, start = {}, 0, max(1, int(COLLECT / max(slowest, 1e-6))), time.monotonic()
            yield together


def run_alone(blocks: Sequence[RowBlock], run: Filler, facts: Callable[[], Facts], verbose: bool) -> Iterator[Facts]:
    """Run blocks on one process; a GPU is given the work of the next before anything is read of the last."""
    under_way: list[Generator[None]] = []
    try:
        for block in tracked(blocks, WHAT, verbose):
            under_way.append(run.filling(block))
            ahead = next(under_way[-1], ENDED) is not ENDED
            while len(under_way) > ahead:
                exhaust(under_way.pop(0))
                yield facts()
        while under_way:
            exhaust(under_way.pop(0))
            yield facts()
    finally:
        for filling in under_way:
            filling.close()


def exhaust(filling: Generator[None]) -> None:
    """Fill a block to the end."""
    for _ in filling:
        pass


def collect(
    blocks: list[RowBlock], own: Mapping[int, RowBlock], about: Facts, shared: set[int], error: Exception | None
) -> tuple[float, Facts]:
    """Exchange blocks, and put them in their places; return the slowest rank's seconds a round, and the facts of all."""
    own = {i: block for i, block in own.items() if i not in shared or len(block) or block.guide_elbo is not None}
    numbers = {str(i): numbers_of(block) for i, block in own.items()}
    everyone = exchange({i: packed(block) for i, block in own.items()}, {**about, "numbers": numbers}, WHAT, error)
    for parts, told in everyone:
        for i, part in parts.items():
            block, whole = unpacked(part, told["numbers"][str(i)]), blocks[i]
            block.ids = whole.ids
            blocks[i] = whole.joined(block) if i in shared else block
            blocks[i].weight_sums.largest.trim()
    return max(told["seconds"] for _, told in everyone), joined_engines(told["facts"] for _, told in everyone)


def packed(block: RowBlock) -> Part:
    """Name the tensors of a block, with what they say of each row, which takes a moment to compute."""
    known = {"known": torch.stack([block.known[name] for name in COLUMNS])} if block.known else {}
    return {name: tensor for name, tensor in tensors_of(block).items() if not name.startswith("ids/")} | known


def unpacked(part: Part, numbers: Sequence[Any]) -> RowBlock:
    """Build a block of what :func:`packed` named."""
    block = row_block_of({f"0/{name}": tensor for name, tensor in part.items()}, 0, *numbers)
    if "known" in part:
        block.known = dict(zip(COLUMNS, part["known"], strict=True))
    return block


def pieces_of(block: RowBlock, particles: range, here: Processes) -> list[range]:
    """List this rank's share of the particles that a block lacks, as runs that follow each other.

    Example:
        >>> block = RowBlock(range(64), planned=200)  # of 64 particles a piece, the last of 8
        >>> pieces_of(block, range(200), Processes(0, 2)), pieces_of(block, range(200), Processes(1, 2))
        ([range(0, 128)], [range(128, 200)])
    """
    pieces: Sequence[Piece] = own_share(list(block.missing(particles)), here)
    runs: list[range] = []
    for number, low, high in pieces:
        start, stop = number * block.size + low, number * block.size + high
        if runs and runs[-1].stop == start:
            runs[-1] = range(runs[-1].start, stop)
        else:
            runs.append(range(start, stop))
    return runs
