r"""Particles of a block of rows: drawn from a stream of their own, weighed in chunks that fit in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pyro_vae.common.flat_program import FlatProgram
from pyro_vae.common.given_work import OnTheWay, computes_behind
from pyro_vae.common.memory import out_of_memory
from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import LogProbs

from .accumulator import PAIRS, ROWS, Piece, RowBlock
from .noise import BLOCK, ROW, by_itself, key_of
from .proposals import Draws, Proposal, joined, order_of, propose, terms_at
from .weighing import WeighingEngine

CHANGING = ("weight_sums", "done", "waiting", "pieces", "known")  # of a block of rows, when particles are added
FLAGS = 64  # blocks that a graph weighs before their flags are looked at


@dataclass
class Sampler:
    """Sampler of the particles of a block of rows, which weighs them `chunk` (row, particle) pairs at a time."""

    proposal: Proposal
    seed: int
    chunk: int
    pairs: int = PAIRS  # in a block of particles that is drawn from a stream of its own
    engine: WeighingEngine | None = None
    block_rows: int = ROWS
    row_keys: Tensor | None = None  # of each row's own stream (:mod:`.noise`); None where blocks of rows have one

    @property
    def by(self) -> str:
        """Return whose streams these are, as evidence has it in ``noise``."""
        return BLOCK if self.row_keys is None else ROW

    @property
    def rows(self) -> int:
        """Return how many rows a block has."""
        return self.block_rows if self.row_keys is None else 1

    def key(self, rows: range) -> tuple[int, ...]:
        """Name the stream of a block of rows: by its place, or, of one row, by its values."""
        return (rows.start // ROWS,) if self.row_keys is None else key_of(self.row_keys[rows.start])

    def of(self, problem: Problem, rows: range) -> Problem:
        """Return the problem of a block of rows."""
        some = problem.rows(slice(rows.start, rows.stop))
        return some if self.row_keys is None else by_itself(some)

    def open(self, rows: range, planned: int) -> RowBlock:
        """Return a block of rows without particles."""
        strata = self.proposal.strata(stream(self.seed, *self.key(rows)) / 2**63)
        return RowBlock(rows, planned, strata, self.pairs)

    def fill(self, sums: RowBlock, problem: Problem, particles: range) -> None:
        """Add those of the particles that are missing from the sums, which meanwhile are where the particles are."""
        for _ in self.filling(sums, problem, particles):
            pass

    def filling(self, sums: RowBlock, problem: Problem, particles: range) -> Generator[None]:
        """Do as :meth:`fill`; stop where a GPU was given work of which nothing has been read yet: it may be given more.

        Who goes no further closes it, which leaves the sums as they were before that work.
        """
        if particles.step != 1 or not 0 <= particles.start < particles.stop <= sums.planned:
            raise UsageError(
                f"particles={particles}, but num_samples={sums.planned}: give a range of them, with a step of 1"
            )
        try:
            for by_graph, pieces in self.groups(sums, problem, particles):
                if by_graph:
                    yield from self.add_by_graph(sums, problem, pieces)
                else:
                    sums.move(near(problem))
                    self.add_by_programs(sums, problem, pieces)
            sums.columns()  # where the sums are: on a GPU k̂ and the jackknife take a moment
            sums.weight_sums.largest.trim()
        finally:
            sums.move("cpu")

    def add_by_programs(self, sums: RowBlock, problem: Problem, pieces: Sequence[Piece]) -> None:
        """Add pieces that the programs weigh."""
        log_w = self.by_programs(sums, problem, [block for block, _, _ in pieces])
        for (block, low, high), part in zip(pieces, log_w, strict=True):
            sums.add(block, low, part[low:high])

    def add_by_graph(self, sums: RowBlock, problem: Problem, pieces: Sequence[Piece]) -> Generator[None]:
        """Add pieces from their graphs; should any be doubtful, undo it, and have the programs weigh those.

        Sums and what is said of them are begun before anybody asks, so that a GPU does not wait for Python between the two.
        """
        sums.move("cpu")
        before = {name: copy.deepcopy(getattr(sums, name)) for name in CHANGING}
        try:
            sums.move(near(problem))
            made = [self.from_graph(sums, problem, block) for block, _, _ in pieces]
            if all(result is not None for result in made):
                for (block, low, high), result in zip(pieces, made, strict=True):
                    sums.add(block, low, result[0][low:high])  # type: ignore[index]
                flags = torch.stack([result[1] for result in made])  # type: ignore[index]
                if computes_behind(problem.device):
                    sums.columns()
                    sums.weight_sums.largest.trim()
                    on_the_way, after = OnTheWay([flags, *sums.tensors()]), {n: getattr(sums, n) for n in CHANGING}
                    vars(sums).update(before)  # for whoever saves it meanwhile
                    yield
                    flags, *there = on_the_way.wait()
                    vars(sums).update(after)
                    sums.replace(there)
                if not flags.any():
                    return
        except BaseException:  # nobody has looked at the flags
            vars(sums).update(before)
            raise
        vars(sums).update(before)
        sums.move(near(problem))
        for piece, result in zip(pieces, made, strict=True):
            block, low, high = piece
            if result is None or result[1]:
                self.add_by_programs(sums, problem, [piece])
            else:
                sums.add(block, low, result[0][low:high])

    def groups(self, sums: RowBlock, problem: Problem, particles: range) -> Iterator[tuple[bool, list[Piece]]]:
        """Yield the missing pieces, as many at a time as go into a chunk, or wait for one look at a graph's flags."""
        together = max(1, self.chunk // (sums.size * len(problem)))
        for by_graph, run in groupby(sums.missing(particles), lambda piece: bool(self.graph(sums, problem, piece[0]))):
            most = FLAGS if by_graph else together
            for _, group in groupby(enumerate(run), lambda item, most=most: item[0] // most):  # type: ignore[misc]
                yield by_graph, [piece for _, piece in group]

    def graph(self, sums: RowBlock, problem: Problem, block: int) -> FlatProgram | None:
        """Return the graph that weighs blocks like this one; None where the programs do."""
        extent = sums.extent(block)
        if self.engine is None or self.chunk // (extent * len(problem)) != 1:  # the programs weigh another shape
            return None
        return self.engine.graph((len(problem), extent, sum(self.prior(sums, block))))

    def prior(self, sums: RowBlock, block: int) -> list[bool]:
        """Say which particles of a block come from the prior."""
        start = block * sums.size
        return sums.strata.mask(start, start + sums.extent(block))

    def noise(self, sums: RowBlock, problem: Problem, block: int) -> AbstractContextManager[None]:
        """Enter a block's own stream; all else is as the caller has set it, once."""
        return seeded(self.seed, *self.key(sums.rows), block, device=problem.device)

    def from_graph(self, sums: RowBlock, problem: Problem, block: int) -> list[Tensor] | None:
        """Return log w of a whole block and its flag; None where the graph stops."""
        flat, prior = self.graph(sums, problem, block), self.prior(sums, block)
        if flat is None:
            return None
        order = [order_of(prior).to(problem.device)] if any(prior) else []
        try:
            with self.noise(sums, problem, block):
                return flat(*problem.args, *order)
        except RuntimeError as error:  # a factor that does not exist, or no memory: the programs say it, or take less
            if self.engine is not None and out_of_memory(error):
                self.engine.give_up("a whole block does not fit into memory")
            return None

    def by_programs(self, sums: RowBlock, problem: Problem, blocks: Sequence[int]) -> list[Tensor]:
        """log w of blocks, each drawn by itself, weighed together: in whole blocks, so that shapes and bits are the same."""
        draws = [self.draw(sums, problem, block) for block in blocks]
        return list(self.weigh(joined(draws), problem).split([len(d) for d in draws]))

    def draw(self, sums: RowBlock, problem: Problem, block: int) -> Draws:
        """Draw all particles of a block, from its own stream."""
        with self.noise(sums, problem, block):
            draws = propose(self.proposal, problem, self.prior(sums, block))
        for log_q in draws.posterior.values():
            check_rows(log_q, len(draws), len(problem))
        return draws

    def weigh(self, draws: Draws, problem: Problem) -> Tensor:
        """log w ``(K, N)``, in chunks that are halved until they fit."""
        try:
            slices = [slice(start, start + self.chunk) for start in range(0, len(problem), self.chunk)]
            return torch.cat([self.weigh_rows(draws, problem, rows) for rows in slices], 1)
        except RuntimeError as error:
            if not out_of_memory(error) or self.chunk == 1:
                raise
        self.chunk = max(1, min(self.chunk, len(draws) * len(problem)) // 2)
        if self.engine is not None:
            self.engine.notes.add(f"out of memory: {self.chunk} pairs at a time")
        return self.weigh(draws, problem)

    def weigh_rows(self, draws: Draws, problem: Problem, rows: slice) -> Tensor:
        """log w of some rows, one chunk of particles after the other."""
        some = problem.rows(rows)
        step = max(1, self.chunk // len(some))
        chunks = []
        for start in range(0, len(draws), step):
            part = draws.part(slice(start, start + step), rows)
            terms = terms_at(some, part)
            chunks.append(checked(self.proposal.log_w(terms), len(part), some, terms))
        return torch.cat(chunks)


def near(problem: Problem) -> torch.device | str:
    """Return where sums are kept while particles are weighed: on the same GPU, else on the host."""
    return problem.device if problem.device.type == "cuda" else "cpu"


def check_rows(log_w: Tensor, particles: int, rows: int) -> None:
    """Refuse programs that give weights for other rows than they were passed."""
    if log_w.shape != (particles, rows):
        raise ProgramError(
            f"the programs gave log weights for {log_w.shape[-1]} rows where x has {rows}: a subsampling plate cannot be "
            "scored. Let the data plate run over the rows that are passed in."
        )


def checked(log_w: Tensor, particles: int, problem: Problem, terms: LogProbs | None = None) -> Tensor:
    """Return log_w, if it holds one finite-or-minus-infinite weight for each particle and row."""
    check_rows(log_w, particles, len(problem))
    wrong = log_w.isnan() | (log_w == math.inf)
    if not wrong.any():
        return log_w
    rows = problem.numbers(wrong.any(0))
    raise ProgramError(
        f"log weights are NaN or +inf for rows {rows}{'' if terms is None else blamed(terms, wrong)}: the model or guide "
        "put out non-finite parameters for data that is finite and in the support. Look at the weights and at those rows."
    )


def blamed(terms: LogProbs, wrong: Tensor) -> str:
    """Name the sites whose log-probability is no finite number where the weight is wrong."""
    programs = {"model": terms.observed | terms.prior, "guide": terms.posterior}
    sites = [
        f"{name!r} of the {program}"
        for program, by_site in programs.items()
        for name, term in by_site.items()
        if not term[wrong].isfinite().all()
    ]
    return f", from site {', '.join(sites)}" if sites else ""
