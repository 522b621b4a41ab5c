r"""Whether a proposal is too narrow, by draws of the posterior: its own draws cannot show what they never reach.

    E_q[w²] / E_q[w]² = E_{p(z|x)}[w] / p(x)

The left-hand side is K / ESS, from the proposal's draws; the right-hand side is the same number from draws of the posterior.
Where the proposal is too narrow the first looks small, and log p̂, its error and k̂ look good, because the largest weights
were not drawn; the second is large at once. Chains that start at draws resampled by their weights and take a few steps of
Hamiltonian Monte Carlo leave the proposal for where the posterior is. They do not find modes that they are not near.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.evidence.annealing.densities import Densities, gradient, total
from pyro_vae.evidence.annealing.hmc import adapt, transition
from pyro_vae.evidence.annealing.point import Point
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.unconstrained import SubstituteLatents

from .accumulator import RowBlock
from .proposals import Proposal

LOOK = 6  # of the seed: (seed, 6, 0, 0), apart from importance sampling's (seed, rows, particles) and annealing's
POOL = 64  # draws of the proposal a row


@dataclass(frozen=True)
class Walk:
    """Chains of a row, started among the pool; transitions, of which the first half tunes the step; gradients of each."""

    chains: int
    moves: int
    leapfrogs: int

    @property
    def gradients(self) -> int:
        """Count the calls of the model, each for all rows and chains at once."""
        return 1 + self.moves * self.leapfrogs

    @property
    def cost(self) -> int:
        """Cost of a row, in runs of a pair for one particle: a gradient is four at most."""
        return POOL + 4 * self.chains * self.gradients


WALK = Walk(
    16, 6, 5
)  # shorter ones let some narrow guides pass; on small programs it takes up to a seventh of the time
SHARE = 0.05  # of an evaluation's cost
ROWS = range(8, 65)  # as many rows are looked at, or none
# of :func:`too_narrow`; measured on thirty narrow guides, and on wide ones
TWICE, TYPICAL, MEDIAN, A_QUARTER, MOST = 2.0, 1.45, 1.3, 0.25, 4.0
TAIL, AS_LARGE = 0.45, 0.75
LEAST_ERROR = 0.005  # nats


def look(blocks: Sequence[RowBlock], particles: int, proposal: Proposal, problem: Problem, seed: int) -> None:
    """Note E_p(z|x)[w] / p(x) of some rows in their blocks (``spread``), evenly spaced, at a twentieth of the cost of all.

    Nothing is noted where that is less than eight rows, nor for programs that HMC cannot walk on (discrete latents). The
    estimates of log p(x) do not depend on it.

    Args:
        blocks: that were run, with so many `particles`.
        seed: of the evaluation; there is a stream apart.
    """
    total, known = sum(len(b.rows) for b in blocks), torch.cat([b.spread.isfinite() for b in blocks])
    affordable = int(SHARE * total * particles / WALK.cost)
    wanted = min(affordable, ROWS.stop - 1, total) - int(known.sum())
    if affordable < ROWS.start or wanted < 1:
        return
    free = (~known).nonzero().flatten()
    chosen = free[torch.linspace(0, len(free) - 1, min(wanted, len(free))).long()]
    numbers = torch.cat([torch.arange(b.rows.start, b.rows.stop) for b in blocks])[chosen]
    try:
        with problem.quiet(seed, LOOK, 0, 0):
            found = spreads(problem.at(numbers.to(problem.device)), proposal, WALK)
    except Exception:  # a second look at a number that is there: whatever a program cannot be asked for, there is none
        return
    for number, value in zip(numbers.tolist(), found.tolist(), strict=True):
        block = next(b for b in blocks if number in b.rows)
        block.spread[number - block.rows.start] = value


def spreads(problem: Problem, proposal: Proposal, path: Walk) -> Tensor:
    """E_p(z|x)[w] / p(x) of each row, ``(N,)``, p(x) from the draws of both sides."""
    density = WeightDensity(problem, proposal)
    u = density.draw(POOL)
    drawn = density.scores(u)[1].double()
    sd = u.std(0).clamp_min(torch.finfo(u.dtype).tiny)
    start = torch.multinomial(drawn.softmax(0).nan_to_num(1).T, path.chains, replacement=True).T
    moved = density.scores(walk(density, torch.take_along_dim(u, start[..., None], 0), sd, path))[1].double()
    return ((moved - bridge(drawn, moved)).logsumexp(0) - math.log(len(moved))).exp().cpu()


def walk(density: Densities, u: Tensor, sd: Tensor, path: Walk) -> Tensor:
    """Walk by chains that leave the posterior invariant: points ``(chains · moves kept, N, D)``; `sd` is the unit of u."""

    def scaled(v: Tensor) -> Point:
        point = density(v * sd)
        return replace(point, u=v, d_start=point.d_start * sd)

    point = scaled(u / sd)
    step = torch.full(sd.shape[:1], 0.6 * sd.shape[-1] ** -0.25, dtype=torch.float64, device=sd.device)
    kept = []
    for move in range(path.moves):
        point, acceptance = transition(scaled, 1.0, point, step, path.leapfrogs)
        if move < path.moves // 2:
            step = adapt(step, acceptance, 0.65)
        else:
            kept.append(point.u * sd)
    return torch.cat(kept)


def bridge(drawn: Tensor, moved: Tensor) -> Tensor:
    """log p(x) from log weights at draws of the proposal and of the posterior, ``(K, N)`` each: bounded in both tails.

    References:
        Simulating Ratios of Normalizing Constants via a Simple Identity (Meng & Wong, 1996),
        https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm
    """
    n, m = len(drawn), len(moved)
    log_px = drawn.logsumexp(0) - math.log(n)
    for _ in range(30):
        below = [torch.logaddexp(math.log(n) + w, math.log(m) + log_px) for w in (drawn, moved)]
        log_px = (drawn - below[0]).logsumexp(0) - math.log(n) - (-below[1]).logsumexp(0) + math.log(m)
    return log_px


class WeightDensity(Densities):
    """p(x, z) on the real line, with log w of a proposal as its ratio: to be walked on at β = 1."""

    def __init__(self, problem: Problem, proposal: Proposal) -> None:
        super().__init__(replace(problem, guide=proposal.guide(problem.guide)), "guide")
        self.proposal = proposal

    def draw(self, chains: int) -> Tensor:
        """Draw from the proposal; the share of the prior comes first."""
        u, from_prior = super().draw(chains), self.proposal.strata(0.5).from_prior(0, chains)
        if not from_prior:
            return u
        prior = self.flat(self.problem.sites(self.problem.model, from_prior))
        return torch.cat([prior, u[from_prior:]])

    def evaluate(self, u: Tensor) -> Point:
        """log p(x, z) alone, with its gradient: all of what is walked on, and the guide is not run."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            joint = self.log_joint(u)
            slope = gradient(joint, u)
        nothing = torch.zeros_like(joint), torch.zeros_like(slope)
        return Point(u.detach(), joint.detach(), nothing[0].detach(), slope, nothing[1])

    def log_joint(self, u: Tensor) -> Tensor:
        """log p(x, z(u)) + log |∂z/∂u|, ``(chains, N)``."""
        substituted = SubstituteLatents.at(u, self.layouts)
        p = self.problem.sites(self.problem.model, len(u), substituted)
        return self.log_prob(p) + total(substituted.log_jacobians(p))

    def log_start(self, prior: Tensor, guide: Tensor) -> Tensor:
        return self.proposal.log_q(prior, guide)


def too_narrow(spread: Tensor, ess: Tensor, counts: Tensor, steady: Tensor, khat: Tensor) -> Tensor:
    """Mark rows of which the posterior's draws say that the Monte Carlo error is twice what the proposal's draws say.

    Rows that were not looked at are judged by those that were: all are too narrow where a quarter of these are, or where the
    ratio of the two errors, which is noisy row by row, is above 1.3 in the median or above 1.45 in the root mean square (each
    counted up to 4). From k = 1/2 on the weights have no variance, and an error made of it covers too seldom: where k̂, of
    which one row's is noisy, is 0.45 in the mean, a root mean square of 0.75 is enough, which says that the posterior's draws
    find errors about as large. Errors below 0.005 nats are let pass.

    Args:
        spread: E_p(z|x)[w] / p(x), ``(N,)``, NaN for rows that were not looked at.
        ess, counts: effective and whole number of particles.
        steady: rows whose k̂ finds nothing wrong; the others are not asked, where there are any of these.
        khat: of all rows; the mean is of the steady ones, and a bounded weight counts as 0.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024), https://www.jmlr.org/papers/v25/19-556.html
    """
    ratio = ((spread - 1).clamp_min(0) / (counts / ess - 1).clamp_min(0)).sqrt()
    matters = ((spread - 1).clamp_min(0) / counts).sqrt() > LEAST_ERROR
    narrow = matters & (ratio > TWICE)
    asked = spread.isfinite() & steady
    asked = asked if asked.any() else spread.isfinite()
    if not asked.any():
        return narrow
    ratios = torch.where(matters, ratio, 0)[asked]
    typical = ratios.clamp_max(MOST).square().mean().sqrt()
    heavy = khat[steady].nan_to_num(0).clamp_min(0).mean() > TAIL  # False where no row is steady
    everywhere = (
        typical > (AS_LARGE if heavy else TYPICAL)
        or ratios.median() > MEDIAN
        or narrow[asked].double().mean() >= A_QUARTER
    )
    return torch.ones_like(narrow) if everywhere else narrow
