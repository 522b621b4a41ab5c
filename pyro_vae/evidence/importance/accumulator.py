r"""Accumulator of log weights: running sums, and the particles they are of; the same bits in whatever order blocks come."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import UsageError

from .block_sums import joined_sums, scatter, sums_of
from .pareto import SPARE, LargestWeights, tail_size
from .strata import ONE, Strata

ROWS, CUDA_ROWS = 64, 256  # rows in a block, on a GPU; the last may have fewer
PAIRS = 4096  # (row, particle) pairs in a block, which is drawn from a seed of its own
COLUMNS = ("log_px", "mc_se", "ess", "elbo", "elbo_se", "khat", "max_share", "jackknife", "samples")
Piece = tuple[int, int, int]  # block, and first and last + 1 of its particles


class WeightSums:
    r"""Running sums of K log weights for each of N rows, in float64 (:func:`sums_of`), and the largest of them.

    Of a mixture, whose particles from the prior are a stratum of fixed size, also log Σ w and log Σ w² over these.

    Memory is O(N √K), for the largest weights (k̂ and the jackknife want them); the sums are O(N). The order and size of the
    blocks added does not matter beyond rounding. `planned` is K, if it is known beforehand.
    """

    def __init__(self, num_rows: int, planned: int = 0, prior_weight: float = 0.0) -> None:
        self.count, self.prior_count, self.prior_weight = 0, 0, prior_weight
        self.sums = sums_of(torch.empty(0, num_rows, dtype=torch.float64), [] if prior_weight else None)
        self.largest = LargestWeights(num_rows, 0)
        self.plan(planned)

    def plan(self, count: int) -> None:
        """Keep as many of the largest as `count` particles call for."""
        self.largest.keep = max(self.largest.keep, tail_size(count) + SPARE)

    def add(self, log_w: Tensor, prior: list[bool] | None = None) -> None:
        """Add log weights ``(particles, N)``; of a mixture, with which of them come from the prior."""
        log_w = log_w.detach().to(self.sums.device, torch.float64)
        self.include(sums_of(log_w, prior), len(log_w), sum(prior or []))
        self.largest.add(log_w)

    def include(self, sums: Tensor, count: int, prior_count: int = 0) -> None:
        """Add the sums of `count` particles, but not their largest."""
        self.count += count
        self.prior_count += prior_count
        self.sums = joined_sums(self.sums, sums)
        self.plan(self.count)

    @property
    def samples(self) -> Tensor:
        """K, row by row."""
        return torch.full_like(self.sums[0], self.count)

    @property
    def log_px(self) -> Tensor:
        """log p̂ = log 1/K Σ w."""
        return self.sums[0] - math.log(self.count)

    @property
    def ess(self) -> Tensor:
        """(Σ w)² / Σ w², between 1 and K; 0 where all weights are 0."""
        return (2 * self.sums[0] - self.sums[1]).exp().clamp(1, self.count).masked_fill(self.sums[0] == -math.inf, 0)

    @property
    def mc_se(self) -> Tensor:
        """Delta method: sd(w) / (mean(w) √K) = √((K/ESS − 1) / (K − 1)); NaN where nothing is known: K = 1, or no weight.

        Of a mixture √(Σ_s n_s Var_s(w) + e²) / Σ w, over its two strata: how many particles come from each is no chance, but
        for the rounding, e.
        """
        if self.stratified:
            se = self.stratified_se()
        else:
            se = ((self.count / self.ess - 1).clamp_min(0) / (self.count - 1 or math.nan)).sqrt()
        return se.masked_fill(self.ess == 0, math.nan)

    def stratified_se(self) -> Tensor:
        """:attr:`mc_se` of a mixture."""
        share, square = (self.sums[6] - self.sums[0]).exp(), (self.sums[7] - 2 * self.sums[0]).exp()
        prior, guide = self.prior_count, self.count - self.prior_count
        variance = scatter(share, square, prior) + scatter(1 - share, 1 / self.ess - square, guide)
        rounding = (prior - self.prior_weight * self.count) * (share / prior - (1 - share) / guide)
        return (variance + rounding.square()).sqrt()

    @property
    def stratified(self) -> bool:
        """Whether these are of a mixture, with two particles or more from either side."""
        return len(self.sums) > 6 and min(self.prior_count, self.count - self.prior_count) > 1

    @property
    def elbo(self) -> Tensor:
        """1/K Σ log w."""
        return self.sums[2] / self.count

    @property
    def elbo_se(self) -> Tensor:
        """sd(log w) / √K; NaN for K = 1."""
        variance = (self.sums[3] / self.count - self.elbo.square()).clamp_min(0)
        return (variance / (self.count - 1 or math.nan)).sqrt()

    @property
    def khat(self) -> Tensor:
        """Pareto k̂, as of :func:`~pyro_vae.evidence.importance.pareto.pareto_khat` on all K weights at once."""
        return self.largest.khat(self.count)

    @property
    def max_share(self) -> Tensor:
        """max w / Σ w."""
        return (self.largest.values.max(1).values - self.sums[0]).exp().clamp_max(1)

    @property
    def jackknife(self) -> Tensor:
        r"""K L_K − (K − 1) · mean_k L_{K−1} without particle k, with L_K = log p̂: no bound, but its bias is O(K⁻²), not O(K⁻¹).

            log p̂ + (K − 1) log((K − 1) / K) − (K − 1)/K Σ_k log(1 − s_k),   s_k = w_k / Σ w

        The largest M weights enter the last sum exactly, and all others as −s − s²/2, whose sums the streamed ones give. That
        leaves out less than 0.05 / M² nats; for K ≤ 64 it is exact, as M = K. The log of 1 − s of a weight that is nearly
        all is that of the sum of the others, which is streamed too. NaN for sums of an older version, which lack it.

        References:
            Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife Variational Inference
            (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb
        """
        k, log_sum = self.count, self.sums[0]
        if k == 1:
            return torch.full_like(log_sum, math.nan)
        if self.stratified:  # the particles of a stratum are alike, not all K: to first order it is this
            return self.log_px + self.mc_se.square() / 2
        m = k if k <= SPARE else min(tail_size(k) + SPARE // 2, self.largest.values.shape[1])
        largest = self.largest.values.topk(m, dim=1).values.T
        first, share = (self.sums[4] - log_sum).exp(), (largest[1:] - log_sum).exp()
        log_others = torch.where(first < 0.5, torch.log1p(-first.clamp_max(0.5)), self.sums[5] - log_sum)
        rest = rest2 = torch.zeros_like(log_sum)
        if m < k:  # what is left is at most the Mth largest each
            rest = (log_others.exp() - share.sum(0)).clamp_min(0)
            rest2 = (1 / self.ess - first.square() - share.square().sum(0)).clamp_min(0).minimum(rest * share[-1])
        left_out = log_others + torch.log1p(-share).sum(0) - rest - rest2 / 2
        return self.log_px + (k - 1) * math.log1p(-1 / k) - (k - 1) / k * left_out


class RowBlock:
    """Running sums of a block of rows, and the record of which of K particles they are of.

    Particles come in blocks of `size`; the last of the K `planned` has what is left over, and is drawn anew when K rises. Sums
    are added block after block: those that came before their turn wait, and so do the weights of a block that is not
    complete. Hence the same bits, whoever computed which first.
    """

    def __init__(self, rows: range, planned: int, strata: Strata = ONE, pairs: int = PAIRS) -> None:
        self.rows, self.planned, self.strata, self.pairs = rows, planned, strata, pairs
        self.size = max(1, pairs // len(rows))
        self.weight_sums = WeightSums(len(rows), planned, strata.weight)
        self.done = 0  # blocks from the first, whose sums `weight_sums` has; its largest are those of `waiting`, too
        self.waiting: dict[int, Tensor] = {}
        self.pieces: dict[int, dict[int, Tensor]] = {}
        self.ids: RowIds | None = None  # which rows of which data they are; None in files of older versions
        self.known: dict[str, Tensor] = {}  # of :meth:`columns`; empty once they have changed
        self.guide_elbo: Tensor | None = (
            None  # and its error, ``(2, rows)``, where the particles are not the guide's own
        )
        self.spread = torch.full((len(rows),), math.nan, dtype=torch.float64)  # NaN for rows that were not looked at

    def __len__(self) -> int:
        """Count the particles that it holds."""
        pieces = (len(piece) for pieces in self.pieces.values() for piece in pieces.values())
        return self.size * (self.done + len(self.waiting)) + sum(pieces)

    def extent(self, block: int) -> int:
        """Return how many particles a block is drawn with."""
        return min(self.size, self.planned - block * self.size)

    def holds(self, block: int) -> bool:
        """Return whether all particles of a block are there."""
        return block < self.done or block in self.waiting

    def missing(self, particles: range) -> Iterator[Piece]:
        """Yield the pieces of a range of particles that are still to be run."""
        for block in range(particles.start // self.size, -(-particles.stop // self.size) if particles else 0):
            if not self.holds(block):
                start = block * self.size
                low, high = max(particles.start - start, 0), min(particles.stop - start, self.extent(block))
                for offset, piece in sorted(self.pieces.get(block, {}).items()):
                    if low < offset < high:
                        yield block, low, offset
                    if offset < high:
                        low = max(low, offset + len(piece))
                if low < high:
                    yield block, low, high

    def add(self, block: int, offset: int, log_w: Tensor) -> None:
        """Add particles of one block, ``(particles, rows)``, the first of which is number `offset` there."""
        self.known = {}
        pieces = self.pieces.setdefault(block, {})
        ends = [(o, o + len(p)) for o, p in pieces.items()]
        if self.holds(block) or any(o < offset + len(log_w) and offset < end for o, end in ends):
            first = block * self.size + offset
            raise UsageError(
                f"particles {first} to {first + len(log_w) - 1} of rows {self.rows.start} to {self.rows.stop - 1} are there "
                "twice: merge parts that share none."
            )
        pieces[offset] = log_w.detach().to(self.weight_sums.sums.device, torch.float64, copy=True)
        if sum(map(len, pieces.values())) == self.size:
            complete, prior = in_order(pieces), self.prior(block, self.pieces.pop(block))
            self.weight_sums.largest.add(complete)
            self.waiting[block] = sums_of(complete, prior)
            self.settle()

    def prior(self, block: int, pieces: dict[int, Tensor]) -> list[bool] | None:
        """Say which particles of a block's pieces come from the prior; None of no mixture."""
        if not self.strata.weight:
            return None
        starts = [(block * self.size + offset, len(piece)) for offset, piece in sorted(pieces.items())]
        return [prior for start, count in starts for prior in self.strata.mask(start, start + count)]

    def settle(self) -> None:
        """Add the sums whose turn it is."""
        # floating-point sums depend on the order: block after block, whichever was computed first
        while self.done in self.waiting:
            self.include(self.weight_sums, self.done, self.waiting.pop(self.done))
            self.done += 1

    def move(self, device: torch.device | str) -> None:
        """Move the sums to where particles are computed, or back."""
        self.replace([t.to(device) for t in self.tensors()])

    def tensors(self) -> list[Tensor]:
        """List what particles change, in the order of :meth:`replace`."""
        sums, pieces = self.weight_sums, [piece for pieces in self.pieces.values() for piece in pieces.values()]
        return [sums.sums, sums.largest.values, sums.largest.cut, *self.waiting.values(), *pieces, *self.known.values()]

    def replace(self, tensors: Iterable[Tensor]) -> None:
        """Put other tensors in the places of :meth:`tensors`."""
        sums, given = self.weight_sums, iter(tensors)
        sums.sums, sums.largest.values, sums.largest.cut = next(given), next(given), next(given)
        self.waiting = {block: next(given) for block in self.waiting}
        self.pieces = {block: {offset: next(given) for offset in pieces} for block, pieces in self.pieces.items()}
        self.known = {name: next(given) for name in self.known}

    def elbo(self, of_guide: bool) -> Tensor:
        """ELBO of the guide and its error, ``(2, rows)``: of these particles, if they are its own; NaN where none are there."""
        if of_guide:
            columns = self.columns()
            return torch.stack([columns["elbo"], columns["elbo_se"]])
        unknown = torch.full((2, len(self.rows)), math.nan, dtype=torch.float64)
        return unknown if self.guide_elbo is None else self.guide_elbo

    def include(self, total: WeightSums, block: int, sums: Tensor) -> None:
        """Add the sums of one whole block."""
        first = block * self.size
        total.include(sums, self.size, self.strata.from_prior(first, first + self.size))

    def plan(self, planned: int) -> None:
        """Raise K to `planned`, if it is lower; a last block that was short is dropped, to be drawn whole."""
        if planned > self.planned:
            if self.planned % self.size:
                self.known = {}
                self.pieces.pop(self.planned // self.size, None)
            self.planned = planned
            self.weight_sums.plan(planned)

    def columns(self) -> dict[str, Tensor]:
        """Compute what the particles that are there say of each row, and remember it: ``(rows,)`` each, by name."""
        if not self.known:
            sums = self.total()
            self.known = {name: getattr(sums, name) for name in COLUMNS}
        return self.known

    def total(self) -> WeightSums:
        """Return the sums of all particles that are there."""
        total = copy.deepcopy(self.weight_sums)
        for block in sorted(self.waiting):
            self.include(total, block, self.waiting[block])
        for block, pieces in sorted(self.pieces.items()):
            total.add(in_order(pieces), self.prior(block, pieces))
        return total

    def identify(self, ids: RowIds | None) -> None:
        """Say which rows these are; a UsageError if the block holds particles of others."""
        if ids is not None and self.ids is not None and (how := ids.difference(self.ids)):
            raise UsageError(
                f"rows {self.rows.start} to {self.rows.stop - 1} hold particles of other rows: {how}. Give the same x and "
                "contexts in the same order, or start anew, without resume."
            )
        self.ids = self.ids if ids is None else ids

    def joined(self, other: RowBlock) -> RowBlock:
        """Return the two as one; they share no particle, and are of the same rows."""
        if self.pairs != other.pairs:
            raise UsageError(
                f"rows {self.rows.start} to {self.rows.stop - 1} were run in blocks of {self.pairs} and of {other.pairs} "
                "(row, particle) pairs, as on a CPU and on a GPU: run all parts on the same kind of device."
            )
        copy.copy(self).identify(other.ids)
        if (self.rows, self.planned, self.strata) != (other.rows, other.planned, other.strata):
            raise UsageError(
                f"rows {self.rows.start} to {self.rows.stop - 1} of {self.planned} particles do not go with rows "
                f"{other.rows.start} to {other.rows.stop - 1} of {other.planned}: run all parts with the same num_samples on "
                "the same x."
            )
        more, less = (self, other) if self.done >= other.done else (other, self)
        twice = [b for b in less.waiting if more.holds(b)] + [b for b in more.pieces if less.holds(b)]
        if less.done or twice:
            block = 0 if less.done else twice[0]
            raise UsageError(f"particles from {block * self.size} on are there twice: merge parts that share none.")
        both = copy.deepcopy(more)
        both.known = {}
        largest, others = both.weight_sums.largest, less.weight_sums.largest
        largest.add(others.values.T)
        largest.cut = torch.maximum(largest.cut, others.cut)
        both.waiting |= less.waiting
        both.spread = torch.where(more.spread.isnan(), less.spread, more.spread)
        for block, pieces in less.pieces.items():
            for offset, piece in pieces.items():
                both.add(block, offset, piece)
        both.settle()
        both.guide_elbo = both.guide_elbo if less.guide_elbo is None else less.guide_elbo
        return both


def in_order(pieces: dict[int, Tensor]) -> Tensor:
    """Concatenate the pieces of a block in order."""
    return torch.cat([pieces[offset] for offset in sorted(pieces)])
