r"""log p(x) by annealed importance sampling, for any pair with continuous latents; discrete ones are summed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.memory import SMALLER, fitting
from pyro_vae.common.progress import tracked
from pyro_vae.common.spread import sharing, spread
from pyro_vae.evidence.estimate import identified
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.same_on_ranks import check_same_on_ranks
from pyro_vae.programs.sites import Program
from pyro_vae.programs.sum_over_codes import codes_of

from .densities import Densities
from .flat_density import DensityGraphs, Made
from .hmc import Density, transition
from .point import Point
from .result import Annealed, AnnealedRun
from .schedule import AISSettings, AnnealingPath, adaptive, betas, pilot

STREAMS = 5  # of a seed: (seed, 5, kind, chunk[, block]), apart from importance sampling's (seed, rows, particles)
SCHEDULE, PILOT, FORWARD = range(3)


@suggest_keywords
@identified
def ais(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    start: str = "prior",
    num_temperatures: int = 100,
    num_chains: int = 16,
    leapfrog_steps: int = 10,
    schedule: str = "sigmoid",
    step_size: float | None = None,
    target_acceptance: float = 0.65,
    seed: int = 0,
    chunk_size: int = 16384,
    verbose: bool = True,
) -> Annealed:
    r"""log p̂(x_n) = log 1/C Σ_c w_cn,  log w = Σ_t (β_t − β_{t−1}) log [p(x, z_{t−1}) / start(z_{t−1})]: AIS, E[p̂] = p(x).

    Chains start at draws z_0 of the prior or of the guide and walk along π_β ∝ start^(1−β) p(x, z)^β, from β_0 = 0 to
    β_T = 1, by Hamiltonian Monte Carlo in unconstrained coordinates: the weight is taken *before* each transition, and each
    transition leaves its π_β invariant. Then exp(log p̂) is unbiased and log p̂ is a lower bound in expectation, however badly
    the chains mix; it tightens with T. For that the step sizes must not depend on the weighted run: a pilot run with a
    stream of its own tunes one for each row and temperature, which then stay as they are.

    With the guide as start, T can be some ten times smaller (Wu et al.); with the prior, nothing of the guide's faults is
    inherited, and the run holds the whole rate–distortion curve.

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`; parameters need no gradient.
        start: "prior" or "guide".
        num_temperatures: T, intervals between β = 0 and 1; each costs one trajectory.
        num_chains, leapfrog_steps: C, chains a row; L, gradient evaluations a trajectory.
        schedule: "sigmoid" (dense at both ends), "linear", or "adaptive" (equal thermodynamic lengths, chosen in a pilot run
            on the first rows; all rows share it).
        step_size: ε for all rows and temperatures, in place of the pilot run.
        target_acceptance: that the pilot run aims at.
        seed: of the chains; the same seed gives the same numbers.
        chunk_size: (row, chain) pairs run at a time; where it is less than C, the chains of a row are run in parts, of which
            each tunes steps of its own. Under torchrun, processes that call this together share the chunks, and all have all
            rows, with the bits of one process at this chunk_size.
        verbose: a progress bar on a terminal; elsewhere a line of how long is to go, where that is long.

    Raises:
        ProgramError: a pair that cannot be treated row by row, discrete latents alone or beyond 10^4
            codes, weights that are NaN; names site or rows.
        SupportError, ShapeError, DataError: x outside the support of the likelihood, of another shape, not finite.
        UsageError: an option out of range.

    References:
        Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008;
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov & Grosse, 2017),
        https://arxiv.org/abs/1611.04273

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.evidence.annealing.ais import ais
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(z), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.LogNormal((x + 1).log() - 0.7, 0.6))
        >>> x = torch.tensor([0.0, 3.0])
        >>> result = ais(model, guide, x, num_temperatures=20, num_chains=50)
        >>> exact = dist.GammaPoisson(2.0, 1.0).log_prob(x)
        >>> bool(((result.log_px - exact).abs() < 4 * result.mc_se).all())
        True
    """
    settings = AISSettings(
        start=start, num_temperatures=num_temperatures, num_chains=num_chains, leapfrog_steps=leapfrog_steps,
        schedule=schedule, step_size=step_size, target_acceptance=target_acceptance,
        seed=seed, chunk_size=chunk_size, verbose=verbose,
    )  # fmt: skip
    annealer = Annealer(Problem.continuous(model, guide, x, *context, seed=seed), settings)
    return annealer.forward().result(settings, annealer.problem.measure)


@dataclass(frozen=True)
class ChainBlock:
    """What is walked at a time, on random streams of its own: some chains of each row of a chunk."""

    chunk: int
    chains: int
    number: int | None = None  # of the block among those of its rows; None: all of their chains

    def stream(self, kind: int) -> tuple[int, ...]:
        """Name its random stream for one kind of work."""
        return (STREAMS, kind, self.chunk) + (() if self.number is None else (self.number,))


class Annealer:
    """Annealing of a pair on checked rows, in blocks of chains, each on a path that is tuned before any weight is taken.

    A block is of as many rows as `chunk_size` holds with all of their chains; or else of some chains of one row.
    """

    def __init__(self, problem: Problem, settings: AISSettings) -> None:
        self.problem, self.settings = problem, settings
        if settings.start == "guide":
            with self.problem.quiet(settings.seed):
                check_reach(problem)
        check_same_on_ranks(problem, asdict(settings) | {"verbose": None})
        codes = codes_of(problem.model)
        self.step = max(1, settings.chunk_size // (settings.num_chains * codes))
        self.chunks = problem.split(self.step)
        self.pairs = len(problem) * settings.num_chains * codes
        self.blocks = blocks_of(len(self.chunks), settings.num_chains, max(1, settings.chunk_size // codes))
        self.graphs = DensityGraphs(settings.transitions * settings.leapfrog_steps)
        if settings.schedule == "adaptive":
            whole = ChainBlock(0, settings.num_chains)
            first = self.run_pilot(whole, betas("sigmoid", max(50, settings.num_temperatures)), SCHEDULE)
            self.betas = adaptive(first, settings.num_temperatures)
        else:
            self.betas = betas(settings.schedule, settings.num_temperatures)
        self.paths: dict[ChainBlock, AnnealingPath] = {}  # of the blocks that this process walks

    def densities(self, block: ChainBlock) -> Densities:
        return Densities(self.chunks[block.chunk], self.settings.start, self.graphs)

    @contextmanager
    def quiet(self, kind: int, block: ChainBlock) -> Iterator[None]:
        """Evaluate, on the random stream of one kind of work on a block; name what does not fit into memory."""
        what = f"annealing {self.step} rows with {block.chains} chains each on {self.problem.device}"
        with fitting(what, SMALLER), self.problem.quiet(self.settings.seed, *block.stream(kind)):
            yield

    def walked(self, run: Callable[[], Made], kind: int, block: ChainBlock) -> Made:
        """Walk the chains of a block, on the random stream of one kind of work."""

        def from_the_start() -> Made:
            with self.quiet(kind, block):
                return run()

        return self.graphs.trusted(from_the_start)

    def run_pilot(self, block: ChainBlock, at: Tensor, kind: int) -> AnnealingPath:
        """Run a pilot of a block, along the path `at`."""
        return self.walked(lambda: pilot(self.densities(block), at, self.settings, block.chains), kind, block)

    def path(self, block: ChainBlock) -> AnnealingPath:
        """Choose step sizes for a block, ``(T + 1, N)``, once."""
        if block not in self.paths:
            self.paths[block] = self.tune(block)
        return self.paths[block]

    def tune(self, block: ChainBlock) -> AnnealingPath:
        """Run a pilot of a block, unless its step size is given."""
        if self.settings.step_size is None:
            return self.run_pilot(block, self.betas, PILOT)
        shape = len(self.betas), len(self.chunks[block.chunk])
        return AnnealingPath(self.betas, torch.full(shape, self.settings.step_size, dtype=torch.float64))

    def forward(self) -> AnnealedRun:
        """Run from β = 0 to 1 with weights: E[exp(log w)] = p(x); blocks are shared by processes."""
        return self.joined(self.forward_block, "annealing")

    def forward_block(self, block: ChainBlock) -> AnnealedRun:
        """Run a block."""
        path = self.path(block)

        def run() -> AnnealedRun:
            density = self.densities(block)
            point = density(density.draw(block.chains))
            return anneal(density, point, path, self.settings, "AIS")

        return self.walked(run, FORWARD, block)

    def joined(self, run: Callable[[ChainBlock], AnnealedRun], what: str) -> AnnealedRun:
        """Run each block on one process, and join what comes of them on all."""
        enough = max(1, self.pairs // sharing().world)
        more = f"take fewer processes, or chunk_size={enough}, which is other noise"
        parts = spread(len(self.blocks), lambda i: run(self.blocks[i]).tensors(), what, more=more)
        runs = [AnnealedRun.of_tensors(part) for part in parts]
        each = len(runs) // len(self.chunks)
        return AnnealedRun.joined([AnnealedRun.of_all_chains(runs[i : i + each]) for i in range(0, len(runs), each)])


def blocks_of(chunks: int, chains: int, most: int) -> list[ChainBlock]:
    """List blocks of at most so many chains of each row, whose sizes differ by one at most.

    Example:
        >>> blocks_of(1, 16, most=16)
        [ChainBlock(chunk=0, chains=16, number=None)]
        >>> [block.chains for block in blocks_of(1, 16, most=6)]
        [6, 5, 5]
    """
    count = -(-chains // most)
    if count == 1:
        return [ChainBlock(i, chains) for i in range(chunks)]
    sizes = [chains // count + (b < chains % count) for b in range(count)]
    return [ChainBlock(i, size, b) for i in range(chunks) for b, size in enumerate(sizes)]


def anneal(density: Density, point: Point, path: AnnealingPath, settings: AISSettings, description: str) -> AnnealedRun:
    """Carry chains along the path, from its first β to its last, with their weights."""
    run = AnnealedRun(path, point.u, torch.zeros_like(point.ratio))
    run.add(point, run.log_w)
    for t in tracked(range(1, len(path.betas)), description, settings.verbose):
        point, log_w, acceptance = advance(density, path, t, point, run.log_w, settings.leapfrog_steps)
        run.add(point, log_w, acceptance)
    return run.at_its_end()


def advance(
    density: Density, path: AnnealingPath, t: int, point: Point, log_w: Tensor, leapfrogs: int
) -> tuple[Point, Tensor, Tensor]:
    """Add to the weight, log w += (β_t − β_{t−1}) ratio(u_{t−1}); then make a transition that leaves π_{β_t} invariant."""
    before, beta = path.betas[t - 1].item(), path.betas[t].item()
    log_w = log_w + (beta - before) * point.ratio
    point, acceptance = transition(density, beta, point, path.steps[t], leapfrogs)
    return point, log_w, acceptance
