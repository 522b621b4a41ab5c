"""What it costs that a training can be gone on with: `python -m benchmarks.checkpoints`.

A 784-200-200-50 Bernoulli VAE on as many rows as MNIST has, in batches of 128, on one thread. Two costs, each timed where it
arises: between any two steps the generators' states are noted; now and then all is saved. The first is a share of the steps
beside it, the second of the five minutes that lie between saves, in which there are three at most (the first, one, the last).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from pyro_vae import fit
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.training.trainer import Trainer
from pyro_vae.training.training_state import PreStepSnapshot, buffers_of

from .evaluation import vae

SAVES, MINUTES = 3, 5


class Watched(Checkpointer):
    """Does all that is done between two steps once more, with a clock beside it; saves a few times in between."""

    interval = 0.0

    def __init__(self, path: str, saves: int, steps: int) -> None:
        super().__init__(path)
        self.every = max(1, steps // saves)
        self.notes: list[float] = []
        self.steps: list[float] = []  # each with what is noted after it, once
        self.begun: float | None = None
        self.saves: list[tuple[float, float]] = []

    def again(self, trainer: Trainer) -> None:
        PreStepSnapshot(buffers_of(trainer.modules), trainer.device)
        trainer.batches.note(trainer.versions)
        super().after_step(trainer)

    def after_step(self, trainer: Trainer) -> None:
        if self.begun is not None:
            self.steps.append(time.process_time() - self.begun)
        self.notes.append(timed(lambda: self.again(trainer))[0])
        if trainer.state.step % self.every == 0:
            self.saves.append(timed(lambda: self.save(trainer)))
        self.begun = time.process_time()

    def after_epoch(self, trainer: Trainer) -> None:
        self.begun = None


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main(rows: int, epochs: int, saves: int, out: Path | None) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(rows, 784))
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Watched(folder, saves, epochs * -(-rows // 128))
        fit(vae(), x, validation=x[:128], epochs=epochs, batch_size=128, callbacks=[checkpointer], verbose=False)
    step, note = median(checkpointer.steps), median(checkpointer.notes)
    found = {
        "step_ms": 1e3 * step,
        "note_ms": 1e3 * note,
        "note_share": note / (step - note),
        "save_ms": 1e3 * median(wall for _, wall in checkpointer.saves),
        "save_cpu_ms": 1e3 * median(cpu for cpu, _ in checkpointer.saves),
    }
    found["save_share"] = SAVES * found["save_ms"] / (1e3 * 60 * MINUTES)
    found["share"] = found["note_share"] + found["save_share"]
    print(f"a step                         {found['step_ms']:9.3f} ms")
    print(f"what is noted after it         {found['note_ms']:9.3f} ms   {found['note_share']:.2%} of the steps")
    print(f"a save ({found['save_cpu_ms']:.0f} ms of them CPU)   {found['save_ms']:9.1f} ms")
    print(f"{SAVES} saves in {MINUTES} minutes                       {found['save_share']:.2%}")
    print(f"in all                                       {found['share']:.2%}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--rows", type=int, default=59_600)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--saves", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    main(options.rows, options.epochs, options.saves, options.out)
