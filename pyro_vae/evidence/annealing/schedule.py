r"""AIS temperatures: a schedule of β from a start to the posterior, and step sizes that a pilot run tunes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.given import whole
from pyro_vae.errors import UsageError

from . import hmc
from .densities import Densities

STARTS = ("prior", "guide")
SCHEDULES = ("sigmoid", "linear", "adaptive")
SHARPNESS = 4.0  # of the sigmoid, as in Wu et al.
FIRST, TOTAL = 30, 100  # pilot transitions at β = 0, and over the rest of the path if it is short
LEAST, MOST = 1e-6, 1e2  # of a step


@dataclass(frozen=True)
class AISSettings:
    """Options of :func:`~pyro_vae.evidence.annealing.ais.ais`; a UsageError for one out of range."""

    start: str = "prior"
    num_temperatures: int = 100
    num_chains: int = 16
    leapfrog_steps: int = 10
    schedule: str = "sigmoid"
    step_size: float | None = None
    target_acceptance: float = 0.65
    seed: int = 0
    chunk_size: int = 16384
    verbose: bool = True

    def __post_init__(self) -> None:
        for name in ("num_temperatures", "num_chains", "leapfrog_steps", "chunk_size"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed)
        for name, choices in (("start", STARTS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise UsageError(f"step_size must be a positive number, or None for a pilot run; got {self.step_size}")
        if self.schedule == "adaptive" and self.num_chains < 2:
            raise UsageError("schedule='adaptive' asks how far chains differ: give it num_chains of 2 or more")
        if not 0 < self.target_acceptance < 1:
            raise UsageError(f"target_acceptance must lie between 0 and 1, got {self.target_acceptance}")

    @property
    def transitions(self) -> int:
        """Count the transitions of one run, and of its pilot."""
        pilot = 0 if self.step_size is not None else FIRST + max(TOTAL, self.num_temperatures)
        return pilot + self.num_temperatures


@dataclass(frozen=True)
class AnnealingPath:
    """Path that is fixed before weights are taken: β ``(T + 1,)`` and ε at each for each row, ``(T + 1, N)``."""

    betas: Tensor
    steps: Tensor
    spread: Tensor | None = None  # (T + 1,): root mean square over rows of the chains' sd of log ratio; of pilot runs


def betas(schedule: str, num_temperatures: int) -> Tensor:
    r"""β_0 = 0 < … < β_T = 1, ``(T + 1,)`` in float64: t / T, or (σ(δ(2t/T − 1)) − σ(−δ)) / (σ(δ) − σ(−δ)) with δ = 4.

    Example:
        >>> betas("linear", 4).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> [round(b, 3) for b in betas("sigmoid", 4).tolist()]
        [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    t = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)
    if schedule == "linear":
        return t
    s = (SHARPNESS * (2 * t - 1)).sigmoid()
    return (s - s[0]) / (s[-1] - s[0])


def adaptive(pilot: AnnealingPath, num_temperatures: int, floor: float = 0.1) -> Tensor:
    r"""Place β_t at equal thermodynamic lengths Λ(β) = ∫_0^β √Var_b(log ratio) db, least variance for many of them.

    The sd under each π_b is the pilot run's, with `floor` times its mean along the path added, so that no stretch is left out.

    References:
        Measuring Thermodynamic Length (Crooks, 2007), https://arxiv.org/abs/0706.0559
    """
    assert pilot.spread is not None
    b, speed = pilot.betas, pilot.spread.nan_to_num(0, posinf=0)
    mean = torch.trapezoid(speed, b)
    speed = speed + (floor * mean if mean > 0 else 1)
    length = torch.cat([b.new_zeros(1), torch.cumulative_trapezoid(speed, b)])
    targets = torch.linspace(0, 1, num_temperatures + 1, dtype=b.dtype) * length[-1]
    right = torch.searchsorted(length, targets).clamp(1, len(b) - 1)
    share = (targets - length[right - 1]) / (length[right] - length[right - 1])
    temperatures = b[right - 1] + share * (b[right] - b[right - 1])
    temperatures[0], temperatures[-1] = 0, 1
    return temperatures


def pilot(density: Densities, at: Tensor, settings: AISSettings, chains: int) -> AnnealingPath:
    """Walk the path `at`, and tune the step of each row at each β to the target acceptance; no weights are taken."""
    point = density(density.draw(chains))
    step = torch.full((point.u.shape[1],), 0.5, dtype=torch.float64, device=point.u.device)
    steps, variances = [], []
    for t, beta in enumerate(at.tolist()):
        for _ in range(max(1, TOTAL // (len(at) - 1)) if t else FIRST):
            point, acceptance = hmc.transition(density, beta, point, step, settings.leapfrog_steps)
            step = hmc.adapt(step, acceptance, settings.target_acceptance).clamp(LEAST, MOST)
        steps.append(step)
        variances.append(point.ratio.double().var(0) if chains > 1 else step.new_full((1,), math.nan))
    # NaN for one chain; rows with infinite values are left out
    spread = [variance[variance.isfinite()].mean().sqrt() for variance in torch.stack(variances).cpu()]
    return AnnealingPath(at, torch.stack(steps), torch.stack(spread))
