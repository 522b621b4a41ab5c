"""The pictures of a report: those of the run's figures/, drawn anew where they are not there or of other weights."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.plain_text import plain
from pyro_vae.common.safe_read import read_bytes
from pyro_vae.data import Data
from pyro_vae.errors import PyroVAEError
from pyro_vae.plots import figures, images
from pyro_vae.plots.bars import gap_bars
from pyro_vae.plots.evidence import bracket_ends
from pyro_vae.runs.load import Run
from pyro_vae.runs.run_figures import latent, reconstructions, samples

from .facts import RunFacts

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ONE, ALL = 300_000, 640_000  # bytes of a picture, and of all: in base64 a third more, and the page stays below 1 MB
SAMPLES = 48


@dataclass(frozen=True)
class Picture:
    """A picture, as PNG; None where there is none, and the words say why.

    Attributes:
        name: as the file in figures/ is called.
        title, words: above it, and below.
        content: its bytes.
        chart: whether it is lines on white, which a dark page may turn over; images keep their colours.
    """

    name: str
    title: str
    words: str
    content: bytes | None = None
    chart: bool = True

    @property
    def uri(self) -> str:
        """The picture itself, as an address."""
        return "" if self.content is None else f"data:image/png;base64,{base64.b64encode(self.content).decode()}"


TOLD = {  # name in figures/: title, words, and whether it is a chart
    "evidence": (
        "log p(x), ELBO and the gap between them",
        "The bound on log p(x) by importance sampling, the ELBO below it, and between them at most KL(q(z | x) ‖ p(z | x)), "
        "on validation rows while training.",
        True,
    ),
    "training": ("Training", "The ELBO of training and validation rows after each epoch, and the floor.", True),
    "bracket": (
        "log p(x) between two ends",
        "Lower ends by importance sampling and annealing, an upper one in reverse.",
        True,
    ),
    "gaps": (
        "Where the gap comes from",
        "log p(x) − ELBO of test rows: what the family of q(z | x) costs, and what the network that amortises it does.",
        True,
    ),
    "reconstructions": ("Rows and their reconstructions", "Rows, and below them E[x | z] at z = E[z | x].", False),
    "samples": ("Samples", "What the model makes up by itself: x ~ p(x | z), z ~ p(z).", False),
    "latent": ("Latent map", "Posterior means of rows in two dimensions; like rows should lie together.", True),
}


def pictures_of(facts: RunFacts, run: Run | None, data: Data | None) -> dict[str, Picture]:
    """Return each picture that a run has, by its name in figures/.

    A picture in figures/ counts where the training has ended and was scored with the weights of now, as they were drawn
    then. Others are drawn anew, which takes the model, and some the data. What looked into the gap is drawn of its numbers.
    """
    made = drawing(facts, run, data)
    found = {}
    for name, (title, words, chart) in TOLD.items():
        if name == "training" and len(facts.history) < 2:
            continue  # a curve takes two epochs
        with no_links_below(facts.path):
            content = from_file(facts.path / "figures" / f"{name}.png") if facts.shows(name) else None
        if content is None and name in made:
            content = drawn(name, made[name])
        if content is not None:
            found[name] = Picture(name, title, words, content, chart)
    return within_size(found)


def drawing(facts: RunFacts, run: Run | None, data: Data | None) -> dict[str, Callable[[], Any]]:
    """Return how the pictures are drawn that can be."""
    floor, points = (facts.summary.get("floor") or {}).get("log_px"), [p for p in facts.points if is_point(p)]
    made: dict[str, Callable[[], Any]] = {}
    if len(facts.history) > 1:
        made["training"] = lambda: figures.training_curve(facts.history, floor)
    if points:
        made["evidence"] = lambda: figures.evidence_curve(points)
    if facts.bracket is not None:
        ends = facts.bracket
        made["bracket"] = lambda: bracket_ends({"test rows": ends})
    if facts.gaps is not None:
        split = facts.gaps
        made["gaps"] = lambda: gap_bars({"test rows": split})
    if run is not None:
        opened = run
        made["samples"] = lambda: images.sample_grid(
            samples(opened, SAMPLES).cpu().numpy(), opened.shape, names=opened.column_names
        )
        if data is not None:
            rows = data
            made["reconstructions"] = lambda: reconstructions(opened, rows.test)
            made["latent"] = lambda: latent(opened, rows)
    return made


def is_point(point: Mapping[str, Any]) -> bool:
    """Return whether a point of the curve holds what is drawn of it."""
    numbers = ("log_px", "elbo", "num_samples", "rows")
    return all(type(point.get(key)) in (int, float) for key in numbers)


def drawn(name: str, draw: Callable[[], Any]) -> bytes | None:
    """Draw one picture; None, and a note, where it cannot be."""
    try:
        return figures.png(draw())
    except Exception as error:
        what = str(error) if isinstance(error, PyroVAEError) else f"{type(error).__name__}: {error}"
        print(f"note: no picture {name} in the report: {plain(what)}", file=sys.stderr)
        return None


def from_file(path: Path) -> bytes | None:
    """Read a picture, if it is there, a PNG, and not too large."""
    if not path.is_file() or path.is_symlink() or path.parent.is_symlink() or path.stat().st_size > ONE:
        return None
    content = read_bytes(path, ONE)
    return content if content.startswith(SIGNATURE) else None


def within_size(found: dict[str, Picture]) -> dict[str, Picture]:
    """Leave out what would make the page too large, the last of TOLD first."""
    total, kept = 0, {}
    for name, picture in found.items():
        size = len(picture.content or b"")
        if size <= ONE and total + size <= ALL:
            kept[name], total = picture, total + size
        else:
            print(f"note: the picture {name} is too large for the report: see figures/{name}.png", file=sys.stderr)
    return kept
