"""Figures of a run, drawn into its folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.common.atomic_write import folder_in, unlink
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.plain_text import plain
from pyro_vae.data import Data, Split
from pyro_vae.errors import ProgramError, StorageError
from pyro_vae.plots import figures, images, latents
from pyro_vae.plots.khat import khat_histogram

from .load import Run
from .pictured import pictured_reconstructions, pictured_samples

PICTURES = ("training", "evidence", "samples", "sample_means", "reconstructions", "latent")  # that a training ends with


def draw_figures(
    opened: Run, data: Data, history: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]], floor_px: float
) -> None:
    """Draw every figure of a run into figures/."""
    pictures: dict[str, Callable[[], Any]] = {
        "training": lambda: figures.training_curve(history, floor_px),
        "evidence": lambda: figures.evidence_curve(points),
        "samples": lambda: images.sample_grid(samples(opened, 48).cpu().numpy(), data.shape, names=opened.column_names),
        "sample_means": lambda: sample_means(opened, 48),
        "reconstructions": lambda: reconstructions(opened, data.test),
        "latent": lambda: latent(opened, data),
    }
    draw_all(opened.path, pictures)


def samples(run: Run, count: int, seed: int = 0, mean: bool = False) -> Tensor:
    """x ~ p(x), ``(count, elements)``."""
    drawn: Tensor = run.kind.ask("sample", run.config.model)(run.vae, run.shape, count, seed, mean)
    return drawn


def draw_khat(path: Path, evidence: Any, x: Tensor, shape: tuple[int, ...], name: str = "khat") -> None:
    """Draw Pareto k̂ of the rows just scored into figures/, the flagged ones shown; nothing where no k̂ is known."""
    if getattr(evidence, "khat", None) is None:
        return
    picture = path / "figures" / f"{name}.png"
    if evidence.khat.isnan().all():
        with suppress(OSError), no_links_below(path):
            unlink(picture)  # that of the evaluation before is of other numbers
        return
    khat, flagged = evidence.khat.numpy(), evidence.flagged.tolist()
    draw_all(
        path,
        {name: lambda: khat_histogram(khat, flagged, evidence.threshold.numpy(), x.cpu().numpy(), shape)},
    )


def draw_all(path: Path, pictures: Mapping[str, Callable[[], Any]]) -> list[Path]:
    """Draw pictures into the figures/ of a folder, each by itself; return those drawn. One that cannot be is left out.

    Raises:
        StorageError: they cannot be written there, or a link stands in the place of figures/.
    """
    drawn, place = [], folder_in(path, "figures")
    for name, draw in pictures.items():
        try:
            picture = draw()
            with no_links_below(path):
                drawn.append(figures.save(picture, place / f"{name}.png"))
        except (StorageError, OSError):  # whoever fills a disk shall hear of it
            raise
        except Exception as error:
            what = str(error) if isinstance(error, ProgramError) else f"{type(error).__name__}: {error}"
            print(f"note: no picture {name}.png: {plain(what)}", file=sys.stderr)
    return drawn


def sample_means(run: Run, count: int, seed: int = 0) -> Any:
    """Plot the mean of p(x | z) at draws of z."""
    x, word = pictured_samples(run, count, seed)
    return images.sample_grid(x.cpu().numpy(), run.shape, title=f"E[x | z], z ~ p(z){word}", names=run.column_names)


def reconstructions(run: Run, part: Split, split: str = "test") -> Any:
    """Plot the first rows beside their reconstructions."""
    first = part[:12]
    means, word = pictured_reconstructions(run, first)
    title = f"{split} rows and their reconstructions{word}"
    arrays = [first.x.cpu().numpy(), means.cpu().numpy()]
    return images.image_grid(arrays, ["x", "E[x | z]"], run.shape, title, run.column_names)


def latent(run: Run, data: Data) -> Any:
    """Plot posterior means of 2,000 rows: of training rows, or of test rows where those are grey."""
    split = "train" if data.transform is None else "test"
    part: Split = getattr(data, split)
    part = part[:2000]
    z = codes(run, part).cpu().numpy()
    return latents.latent_map(z, labels_of(part), f"E[z | x] of {len(z)} {split} rows")


def labels_of(part: Split) -> Any:
    """Return the labels of rows: their names, where the table has names, else numbers; None without labels."""
    names = part.ids.columns().get("label")
    if names is not None:
        return np.array(list(map(plain, names)), dtype=str)
    return None if part.y is None else part.y.numpy()


def codes(run: Run, part: Split) -> Tensor:
    """E[z | x] of rows."""
    device = next(run.vae.parameters()).device
    z: Tensor = run.kind.ask("encode", run.config.model)(run.vae, *(a.to(device) for a in run.rows(part)))
    return z
