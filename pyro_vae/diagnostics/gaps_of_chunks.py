"""Gaps of chunks of rows, which processes share: whole chunks, and of the last, too few for all, the draws.

A chunk's fit, and each block of its draws, is on a random stream of its own: whichever process makes it, it has the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.exchange import bytes_of
from pyro_vae.common.spread import Part, sharing, spread
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.importance.accumulator import WeightSums
from pyro_vae.evidence.importance.pareto import steady_rows
from pyro_vae.programs.problem import Problem

from .per_row_optimum import Free, fitted, local_sites, moved_sites, optimise, start_of
from .posterior_families import Families

MOVED = "moved sites"  # of a chunk, as JSON
WHAT = "gaps"
AT_ONCE = 64  # draws of a row
Truth = tuple[Tensor, ...] | None  # log p(x), its error, whether it is believed


@dataclass(frozen=True)
class GapOptions:
    """How rows are fitted and weighed: as :func:`~pyro_vae.gaps` has them."""

    steps: int
    lr: float
    num_particles: int
    num_samples: int
    seed: int
    chunk_size: int

    @property
    def rows(self) -> int:
        """How many are a chunk."""
        return max(1, self.chunk_size // self.at_once)

    @property
    def at_once(self) -> int:
        """Draws of a row that a chunk is sized for."""
        return max(self.num_particles, min(self.num_samples, AT_ONCE))

    def draws(self, rows: int) -> list[int]:
        """List how many draws of each of so many rows are made at a time.

        Example:
            >>> GapOptions(500, 0.05, 8, 1000, 0, 4096).draws(10)
            [409, 409, 182]
        """
        step = max(1, self.chunk_size // rows)
        return [min(step, self.num_samples - done) for done in range(0, self.num_samples, step)]


def gaps_of_chunks(problem: Problem, options: GapOptions, truth: Truth, verbose: bool) -> list[Part]:
    """Split the gaps of all rows, a part a chunk, which processes share.

    Raises:
        ProgramError: weights that are NaN; a site that is no family.
        ProcessesError: another process failed.
    """
    chunks, world = problem.split(options.rows), sharing().world
    whole = len(chunks) if world == 1 else len(chunks) // world * world
    parts = spread(whole, lambda i: gaps_of(i, chunks[i], options, truth), WHAT, verbose, more=None)
    if whole == len(chunks):
        return parts
    return parts + gaps_of_last(chunks, range(whole, len(chunks)), options, truth, verbose)


def gaps_of(i: int, some: Problem, options: GapOptions, truth: Truth) -> Part:
    """Split the gaps of the rows of chunk i."""
    sites, *ends = fit(i, some, options)
    draws = range(len(options.draws(len(some))))
    return split(some, sites, [[drawn(i, j, some, sites, free, options) for j in draws] for free in ends], truth)


def gaps_of_last(
    chunks: Sequence[Problem], last: range, options: GapOptions, truth: Truth, verbose: bool
) -> list[Part]:
    """Split the gaps of chunks that are fewer than processes: each is fitted by one, and its draws are weighed by all."""
    least, rows = options.at_once, sum(map(len, chunks))
    fewer = f"take fewer processes, or chunk_size={max(1, rows // sharing().world) * least}, which is other noise"
    more = None if last.start or rows == len(chunks) else fewer
    free = spread(len(last), lambda k: fit_of(last[k], chunks[last[k]], options), f"{WHAT}: fits", verbose, more)
    sites = [local(i, chunks[i], options) for i in last]
    ends = [ends_of(part, of) for part, of in zip(free, sites, strict=True)]
    turns = [(k, e, j) for k, i in enumerate(last) for e in range(3) for j in range(len(options.draws(len(chunks[i]))))]

    def draws(turn: int) -> Part:
        k, e, j = turns[turn]
        return {"log_w": drawn(last[k], j, chunks[last[k]], sites[k], ends[k][e], options)}

    made = spread(len(turns), draws, f"{WHAT}: draws", verbose, more=None)
    of = {turn: part["log_w"] for turn, part in zip(turns, made, strict=True)}
    each = [[[of[t] for t in turns if t[:2] == (k, e)] for e in range(3)] for k in range(len(last))]
    return [split(chunks[i], sites[k], each[k], truth) for k, i in enumerate(last)]


def local(i: int, some: Problem, options: GapOptions) -> Families:
    """Find the families of chunk i as :func:`fit` does."""
    with some.quiet(options.seed, i, 0):
        return local_sites(some)


def fit(i: int, some: Problem, options: GapOptions) -> tuple[Families, Free, Free, Free]:
    """Fit the rows of chunk i: its families, and their parameters at first, half way, and last."""
    with some.quiet(options.seed, i, 0):
        sites = local_sites(some)
        half, best = optimise(some, sites, options.steps, options.num_particles, options.lr)
    return sites, start_of(sites), half, best


def fit_of(i: int, some: Problem, options: GapOptions) -> Part:
    """Name the tensors of a fit, half way and last: by the places of the sites, and of their parameters."""
    _, _, *ends = fit(i, some, options)
    return {
        f"{e}/{s}/{t}": tensor.detach()
        for e, free in enumerate(ends)
        for s, tensors in enumerate(free.values())
        for t, tensor in enumerate(tensors)
    }


def ends_of(part: Part, sites: Families) -> list[Free]:
    """Read what :func:`fit_of` named, laid out as the parameters at first, which are before them."""
    starts = start_of(sites)
    return [starts] + [
        {
            name: [torch.empty_like(own).copy_(part[f"{e}/{s}/{t}"]) for t, own in enumerate(tensors)]
            for s, (name, tensors) in enumerate(starts.items())
        }
        for e in range(2)
    ]


def drawn(i: int, j: int, some: Problem, sites: Families, free: Free, options: GapOptions) -> Tensor:
    """log p(x, z) − log q(z), ``(k, n)``, of block j of the draws of chunk i: the same noise whatever the parameters."""
    with some.quiet(options.seed, i, 1, j):
        draws = options.draws(len(some))[j]
        return fitted(some, sites, free).log_probs(draws).log_w.to("cpu", torch.float64)


def split(some: Problem, sites: Families, blocks: Sequence[Sequence[Tensor]], truth: Truth) -> Part:
    """Make figures of the weights of q, of q* half way, and of q*."""
    q, half, best = (checked(torch.cat(list(log_w)), some) for log_w in blocks)
    log_p = None if truth is None else tuple(t[some.first : some.first + len(some)] for t in truth)
    return figures(q, half, best, log_p) | {MOVED: bytes_of(json.dumps(moved_sites(sites)))}


def checked(log_w: Tensor, problem: Problem) -> Tensor:
    """Refuse weights that are none."""
    if (bad := log_w.isnan() | (log_w == math.inf)).any():
        rows = problem.numbers(bad.any(0))
        raise ProgramError(
            f"log weights are NaN or +inf for rows {rows}, with the guide's own parameters or on the way to better "
            "ones. Look at those rows; a smaller lr takes shorter steps."
        )
    return log_w


def figures(q: Tensor, half: Tensor, best: Tensor, truth: Truth) -> dict[str, Tensor]:
    """Average over draws, with standard errors, from log weights ``(K, n)`` of q, q* half way, and q*."""

    def se(draws: Tensor) -> Tensor:
        return draws.std(0) / len(draws) ** 0.5

    estimate = best.logsumexp(0) - math.log(len(best))
    share = (best - estimate).exp()  # of mean 1: what each draw adds to the error of log p̂, by the delta method
    log_px, own, error = (estimate, share, 0.0) if truth is None else (truth[0], 0.0, truth[1])
    sums = WeightSums(best.shape[1])
    sums.add(best)
    return {
        "log_px": log_px,
        "best_elbo": best.mean(0),
        "elbo": q.mean(0),
        "approximation_se": (se(own - best).square() + error**2).sqrt(),
        "amortisation_se": se(best - q),
        "gap_se": (se(own - q).square() + error**2).sqrt(),
        "log_px_se": se(share) if truth is None else truth[1],
        "improvement": (best - half).mean(0),
        "improvement_se": se(best - half),
        "ess": len(best) / share.square().mean(0),
        "reliable": steady_rows(sums.khat, sums.max_share, sums.samples) if truth is None else truth[2],
    }
