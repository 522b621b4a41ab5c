"""How cost grows: a step's time with batch, width, particles and latents; its memory with particles; evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from pyro_vae import log_likelihood
from pyro_vae.objectives.bound_objective import saved_bytes
from pyro_vae.programs.problem import Problem

from .cases import Case
from .peers import ours, vae_of
from .timing import timed

AXES = {
    "batch": (20, 64, 128, 512, 1024, 4096),
    "hidden": (100, 200, 400, 1000, 2000),
    "latent": (2, 10, 20, 50, 100),
    "particles": (1, 2, 4, 8, 16, 32),
}


def step_times(
    base: Case, x: torch.Tensor, engine: str, blocks: int, steps: int, few: int | None
) -> dict[str, dict[int, float]]:
    """Milliseconds a step along each axis, the rest as in the base case: the median of blocks that take turns."""
    found: dict[str, dict[int, float]] = {}
    for axis, values in AXES.items():
        of_axis = replace(base, kind="iwae") if axis == "particles" else base
        cases = {v: replace(of_axis, **{axis: v}) for v in values[:few]}
        runs = {v: ours(case, x[: 64 * case.batch], engine) for v, case in cases.items()}
        for run in runs.values():
            run(3)
        taken = {v: [] for v in runs}
        for _ in range(blocks):
            for value, run in runs.items():
                taken[value].append(timed(run, steps, x.device)[0])
        for run in runs.values():
            run.close()
        found[axis] = {v: sorted(t)[len(t) // 2] for v, t in taken.items()}
    return found


def memory(base: Case, x: torch.Tensor, particles: Sequence[int]) -> dict[int, float]:
    """MiB that one step keeps for the backward pass, by particles: what autograd saves, parameters aside."""
    vae, batch = vae_of(base).to(x.device), x[: base.batch].clone()
    problem = Problem.on(vae.model, vae.guide, batch)
    return {k: saved_bytes(problem, k)[0] / 2**20 for k in particles}


def evaluation(base: Case, x: torch.Tensor, rows: int, samples: int) -> float:
    """Particles a second that ``log_likelihood`` scores (each is one run of the decoder for one row)."""
    vae = vae_of(base).to(x.device)
    log_likelihood(vae.model, vae.guide, x[:8], num_samples=8, verbose=False)
    start = time.perf_counter()
    log_likelihood(vae.model, vae.guide, x[:rows], num_samples=samples, verbose=False)
    return rows * samples / (time.perf_counter() - start)
