r"""Particles of a block of rows: drawn from a stream of their own, weighed in chunks that fit in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pyro_vae.common.memory import out_of_memory
from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import LogProbs

from .accumulator import ROWS, RowBlock
from .proposals import Draws, Proposal, joined, propose, terms_at


@dataclass
class Sampler:
    """Sampler of the particles of a block of rows, which weighs them `chunk` (row, particle) pairs at a time."""

    proposal: Proposal
    seed: int
    chunk: int

    def open(self, rows: range, planned: int) -> RowBlock:
        """Return a block of rows without particles."""
        return RowBlock(rows, planned, self.proposal.strata(stream(self.seed, rows.start // ROWS) / 2**63))

    def fill(self, sums: RowBlock, problem: Problem, particles: range) -> None:
        """Add those of the particles that are missing from the sums, as many blocks at a time as go into a chunk."""
        if particles.step != 1 or not 0 <= particles.start < particles.stop <= sums.planned:
            raise UsageError(
                f"particles={particles}, but num_samples={sums.planned}: give a range of them, with a step of 1"
            )
        together = max(1, self.chunk // (sums.size * len(problem)))
        for _, group in groupby(enumerate(sums.missing(particles)), lambda item: item[0] // together):
            pieces = [piece for _, piece in group]
            draws = [self.draw(sums, problem, block) for block, _, _ in pieces]
            # whole blocks are weighed: the same shapes, so the same bits
            log_w = self.weigh(joined(draws), problem)
            for (block, low, high), part in zip(pieces, log_w.split([len(d) for d in draws]), strict=True):
                sums.add(block, low, part[low:high])

    def draw(self, sums: RowBlock, problem: Problem, block: int) -> Draws:
        """Draw all particles of a block, from its own stream."""
        number, start = sums.rows.start // ROWS, block * sums.size
        prior = sums.strata.mask(start, start + sums.extent(block))
        with seeded(self.seed, number, block, device=problem.device):  # all else is as the caller has set it, once
            draws = propose(self.proposal, problem, prior)
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
