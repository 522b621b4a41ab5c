"""What is timed beside training steps: log p(x) by importance sampling and by annealing, and ensembles of trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.common.inductor import as_found, compiler

from .by_hand import ByHand
from .cases import Case
from .evidence_by_hand import ImportanceSampling, annealed
from .peers import OURS, Run, by_hand, vae_of

MEMBERS = 8


@dataclass(frozen=True)
class Section:
    """One case: its name, what one "step" of its table is, and who runs it."""

    name: str
    unit: str
    runs: dict[str, Callable[[], Run]]  # made when it is their turn


def again(work: Callable[[], object]) -> Run:
    def run(times: int) -> None:
        for _ in range(times):
            work()

    return run


def evaluation(x: Tensor, rows: int, samples: int) -> Section:
    """log p(x) of some rows: ours with all that is said of it (k̂, ESS, jackknife), by hand the number alone."""
    case, some = Case(), x[:rows]
    pairs = 2**18 if x.device.type == "cuda" else 4096

    def hand(compiled: bool) -> Run:
        estimate = ImportanceSampling(ByHand(case).to(x.device), pairs, compiled)

        def work() -> None:
            with as_found():
                estimate(some, samples).sum().item()

        return again(work)

    def ours() -> Run:
        vae = vae_of(case).to(x.device)
        return again(lambda: pv.log_likelihood(vae.model, vae.guide, some, num_samples=samples, verbose=False))

    runs = {f"{OURS} log_likelihood": ours, "PyTorch, a plain loop": lambda: hand(False)}
    if compiler() or x.device.type == "cuda":
        runs |= {"PyTorch, a plain loop compiled": lambda: hand(True)}
    return Section(f"importance sampling, {rows} rows, K = {samples}", "evaluation", runs)


def annealing(x: Tensor, rows: int, temperatures: int) -> Section:
    """AIS at a given step size, untuned; on CUDA ours as it comes, too, with the pilot run that tunes it."""
    case, some = Case(), x[:rows]

    def hand() -> Run:
        model = ByHand(case).to(x.device)
        return again(lambda: annealed(model, some, temperatures).sum().item())

    def ours(step_size: float | None) -> Run:
        vae = vae_of(case).to(x.device)
        options = {"num_temperatures": temperatures, "step_size": step_size, "verbose": False}
        return again(lambda: pv.ais(vae.model, vae.guide, some, **options))

    runs = {f"{OURS} ais, step size given": lambda: ours(0.1), "PyTorch by hand, step size given": hand}
    if x.device.type == "cuda":  # a minute on a CPU
        runs |= {f"{OURS} ais, with its pilot": lambda: ours(None)}
    return Section(f"annealing, {rows} rows, T = {temperatures}", "evaluation", runs)


def ensembles(x: Tensor, case: Case, epochs: int, members: int = MEMBERS) -> Section | None:
    """Some trainings at once, and one after the other; None where there is no such thing yet."""
    fit_ensemble = getattr(pv, "fit_ensemble", None)
    if fit_ensemble is None:
        return None
    rows = x[: 100 * case.batch]
    options = {"epochs": epochs, "batch_size": case.batch, "verbose": False, "device": x.device}

    def together() -> None:
        fit_ensemble(lambda: vae_of(case), rows, seeds=range(members), **options)

    def one_by_one() -> None:
        for seed in range(members):
            torch.manual_seed(seed)
            pv.fit(vae_of(case), rows, seed=seed, **options)

    def hand() -> None:
        for _ in range(members):
            by_hand(case, rows, fused=True)(epochs * 100)

    runs: dict[str, Callable[[], Run]] = {
        f"{OURS} fit_ensemble": lambda: again(together),
        f"{OURS} fit, one after the other": lambda: again(one_by_one),
        "PyTorch, fused Adam, one after the other": lambda: again(hand),
    }
    return Section(f"{members} seeds, {case.name}, {epochs} epochs of 100 steps", "ensemble", runs)


def sections(x: Tensor, quick: bool) -> list[Section]:
    """The cases, sized for the device."""
    on_cuda = x.device.type == "cuda"
    if quick:
        found = [evaluation(x, 16, 32), annealing(x, 4, 3), ensembles(x, Case(8, 2, 16), 1, members=2)]
    else:
        small = Case(64, 8, 20)
        found = [
            evaluation(x, *(10_000, 5000) if on_cuda else (64, 5000)),
            annealing(x, *(100, 100) if on_cuda else (16, 50)),
            ensembles(x, *(Case(), 10) if on_cuda else (small, 10)),
        ]
    return [section for section in found if section is not None]
