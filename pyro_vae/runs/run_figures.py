"""Figures of a run, drawn into its folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.errors import ProgramError
from pyro_vae.models.usage import encode, reconstruct, sample
from pyro_vae.models.vae import VAE
from pyro_vae.plots import figures, latents
from pyro_vae.plots.evidence import khat_histogram
from pyro_vae.training.training_state import FitResult


def draw_figures(
    path: Path, vae: VAE, data: Data, run: FitResult, points: Sequence[dict[str, Any]], floor_px: float
) -> None:
    """Draw every figure of a run into figures/; those that need a mean that the parts do not have are left out, with a note."""
    pictures: dict[str, Callable[[], Any]] = {
        "training": lambda: figures.training_curve(run.history, floor_px),
        "evidence": lambda: figures.evidence_curve(points),
        "samples": lambda: figures.sample_grid(sample(vae, 48).cpu().numpy(), data.shape),
        "sample_means": lambda: figures.sample_grid(
            sample(vae, 48, mean=True).cpu().numpy(), data.shape, title="E[x | z], z ~ p(z)"
        ),
        "reconstructions": lambda: reconstructions(vae, data),
        "latent": lambda: latent(vae, data),
    }
    for name, draw in pictures.items():
        try:
            figures.save(draw(), path / "figures" / f"{name}.png")
        except ProgramError as error:
            print(f"note: no picture {name}.png: {error}", file=sys.stderr)


def draw_khat(path: Path, evidence: Any, x: Tensor, shape: tuple[int, ...]) -> None:
    """Draw Pareto k̂ of the rows just scored into figures/khat.png, the flagged ones shown; nothing where no k̂ is known."""
    picture = path / "figures" / "khat.png"
    if getattr(evidence, "khat", None) is None or evidence.khat.isnan().all():
        picture.unlink(missing_ok=True)  # that of an earlier evaluation is of other numbers
        return
    khat, threshold = evidence.khat.numpy(), evidence.threshold.max().item()
    figures.save(khat_histogram(khat, evidence.flagged.tolist(), threshold, x.cpu().numpy(), shape), picture)


def reconstructions(vae: VAE, data: Data) -> Any:
    """Plot test rows beside their reconstructions."""
    x = data.test.x[:12]
    rows = [x.numpy(), reconstruct(vae, x).cpu().numpy()]
    return figures.image_grid(rows, ["x", "E[x | z]"], data.shape, "test rows and their reconstructions")


def latent(vae: VAE, data: Data) -> Any:
    """Plot posterior means of 2,000 rows: of training rows, or of test rows where those are grey."""
    split = "train" if data.transform is None else "test"
    part: Split = getattr(data, split)
    labels = None if part.y is None else part.y.numpy()[:2000]
    z = encode(vae, part.x[:2000]).cpu().numpy()
    return latents.latent_map(z, labels, f"E[z | x] of {len(z)} {split} rows")
