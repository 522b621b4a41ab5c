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
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.sites import LogProbs, Program

from .accumulator import ROWS, RowBlock
from .proposals import Args, Draws, Proposal, joined, propose, terms_at


@dataclass
class Sampler:
    """Draws the particles of a block, and weighs them in chunks that fit in memory."""

    model: Program
    guide: Program
    plates: Plates
    proposal: Proposal
    seed: int
    chunk: int
    vectorize: bool

    def fill(self, ledger: RowBlock, args: Args, wanted: range) -> None:
        """Runs what a ledger lacks of the wanted particles, as many blocks at a time as go into a chunk."""
        if wanted.step != 1 or not 0 <= wanted.start < wanted.stop <= ledger.planned:
            raise UsageError(
                f"particles={wanted}, but num_samples={ledger.planned}: give a range of them, with a step of 1"
            )
        together = max(1, self.chunk // (ledger.size * len(args[0])))
        for _, group in groupby(enumerate(ledger.missing(wanted)), lambda item: item[0] // together):
            pieces = [piece for _, piece in group]
            draws = [self.draw(ledger, args, block) for block, _, _ in pieces]
            log_w = self.weigh(
                joined(draws), args, ledger.rows.start
            )  # of whole blocks: the same shapes, so the same bits
            for (block, low, high), part in zip(pieces, log_w.split([len(d) for d in draws]), strict=True):
                ledger.take(block, low, part[low:high])

    def draw(self, ledger: RowBlock, args: Args, block: int) -> Draws:
        """All particles of a block, from its own stream."""
        number = ledger.rows.start // ROWS
        offset = stream(self.seed, number) / 2**63
        start, count = block * ledger.size, ledger.extent(block)
        runs = [(start, start + count)] if self.vectorize else [(k, k + 1) for k in range(start, start + count)]
        parts = []
        with seeded(self.seed, number, block, device=args[0].device):
            for first, stop in runs:
                prior = self.proposal.from_prior(first, stop, offset)
                fresh = stop - first - prior
                parts.append(propose(self.proposal, self.model, self.guide, fresh, prior, self.plates, args))
        draws = joined(parts)
        for log_q in draws.posterior.values():
            check_rows(log_q, len(draws), len(args[0]))
        return draws

    def weigh(self, draws: Draws, args: Args, first_row: int) -> Tensor:
        """log w ``(K, N)``, in chunks that are halved until they fit."""
        try:
            return torch.cat(
                [self.weigh_rows(draws, args, rows, first_row) for rows in self.row_slices(len(args[0]))], 1
            )
        except RuntimeError as error:
            if not out_of_memory(error) or self.chunk == 1:
                raise
        self.chunk = max(1, min(self.chunk, len(draws) * len(args[0])) // 2)
        return self.weigh(draws, args, first_row)

    def row_slices(self, rows: int) -> list[slice]:
        return [slice(start, start + self.chunk) for start in range(0, rows, self.chunk)]

    def weigh_rows(self, draws: Draws, args: Args, rows: slice, first_row: int) -> Tensor:
        """log w of some rows, a chunk of particles after the other."""
        some = tuple(a[rows] for a in args)
        step = max(1, self.chunk // len(some[0])) if self.vectorize else 1
        found = []
        for start in range(0, len(draws), step):
            part = draws.part(slice(start, start + step), rows)
            terms = terms_at(self.model, part, some)
            log_w = self.proposal.log_w(terms)
            found.append(checked(log_w, len(part), len(some[0]), first_row + rows.start, terms))
        return torch.cat(found)


def check_rows(log_w: Tensor, particles: int, rows: int) -> None:
    """Refuses programs that give weights for other rows than they were passed."""
    if log_w.shape != (particles, rows):
        raise ProgramError(
            f"the programs gave log weights for {log_w.shape[-1]} rows where x has {rows}: a subsampling plate cannot be "
            "scored. Let the data plate run over the rows that are passed in."
        )


def checked(log_w: Tensor, particles: int, rows: int, start: int, terms: LogProbs | None = None) -> Tensor:
    """log_w, if it holds one finite-or-minus-infinite weight for each particle and row, which are counted from `start`."""
    check_rows(log_w, particles, rows)
    wrong = log_w.isnan() | (log_w == math.inf)
    if not wrong.any():
        return log_w
    bad = (start + wrong.any(0).nonzero().flatten()).tolist()
    raise ProgramError(
        f"log weights are NaN or +inf for rows {bad[:5]}{'' if terms is None else blamed(terms, wrong)}: the model or guide "
        "put out non-finite parameters for data that is finite and in the support. Look at the weights and at those rows."
    )


def blamed(terms: LogProbs, wrong: Tensor) -> str:
    """The sites whose log-probability is no finite number where the weight is wrong."""
    programs = {"model": terms.observed | terms.prior, "guide": terms.posterior}
    sites = [
        f"{name!r} of the {program}"
        for program, found in programs.items()
        for name, term in found.items()
        if not term[wrong].isfinite().all()
    ]
    return f", from site {', '.join(sites)}" if sites else ""
