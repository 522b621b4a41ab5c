"""The rows that a model finds least probable: outliers, or what it does not know."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_vae.common.csv_columns import read_lines, with_formula
from pyro_vae.data import Data, Split
from pyro_vae.plots.images import tile
from pyro_vae.runs import folder
from pyro_vae.runs.compare_runs import evidence_of
from pyro_vae.runs.registry import kind_of
from pyro_vae.runs.rows_to_score import rows_of

from .columns import column_names
from .facts import RunFacts

SHOWN = 12
FAR = 3  # columns, named for a row
LEAST = 32  # pixels across, of an image as it is shown


@dataclass(frozen=True)
class WorstRow:
    """A row of a split by its number there, and what is known of it.

    Attributes:
        row: its number in the split that was scored.
        source: its number in the file.
        index, label: its name and label, where it has them.
        log_px, mc_se: nats.
        flagged: whether its number is not to be believed; None where the method does not say it by row.
        far: its columns that are furthest from the mean of the training rows, in words.
    """

    row: int
    source: str
    index: str
    label: str
    log_px: float
    mc_se: float
    flagged: bool | None
    far: str = ""


def worst_rows(facts: RunFacts, data: Data | None) -> list[WorstRow]:
    """List the rows of least log p(x) in the main evaluation, the least first.

    Raises:
        RunFolderError, DataError: its table is missing or damaged.
    """
    if facts.main is None:
        return []
    summary, text = folder.read_evidence(facts.path, facts.main.stem)
    evidence = evidence_of(text, summary)
    lines, order = read_lines(text), np.argsort(evidence.log_px.numpy(), kind="stable")[:SHOWN]
    flagged = getattr(evidence, "flagged", None)
    bad = None if flagged is None else set(flagged.tolist())
    ragged = kind_of(facts.config).ragged  # elements of sequences are no columns
    part = None if data is None else rows_of(data, facts.main.name.split, facts.main.name.rows)
    worst = []
    for i in map(int, order):
        source, index, label = (with_formula(lines[i].get(name, "")) for name in ("source_row", "index", "label"))
        flag = None if bad is None else i in bad
        far = furthest(part, i, data) if part is not None and data is not None and not ragged else ""
        log_px, mc_se = float(evidence.log_px[i]), float(evidence.mc_se[i])
        worst.append(WorstRow(i, source, index, label, log_px, mc_se, flag, far))
    return worst


def furthest(part: Split, row: int, data: Data) -> str:
    """Name the columns of a row that lie furthest from the mean of the training rows, of a table."""
    if len(data.shape) != 1 or data.transform is not None:
        return ""
    train, x = data.sample.x.double(), part.x[row].double()
    mean = train.nanmean(0)
    sd = (train - mean).square().nanmean(0).sqrt()
    z = ((x - mean) / sd.where(sd > 0, 1.0)).numpy()
    names = column_names(data, len(z))
    numbers = [i for i in np.argsort(-np.abs(np.nan_to_num(z)), kind="stable") if not names[i].codes]
    return ", ".join(f"{names[i].name} {x[i]:.4g} ({z[i]:+.1f} sd)" for i in numbers[:FAR] if abs(z[i]) >= 1)


def picture_of_rows(facts: RunFacts, data: Data, worst: list[WorstRow]) -> bytes | None:
    """Return images of these rows side by side, as PNG; None where rows are no images."""
    if len(data.shape) != 3 or not worst or facts.main is None:
        return None
    part = rows_of(data, facts.main.name.split, facts.main.name.rows)
    return pixels(tile([part.x[[row.row for row in worst]].numpy()], data.shape))


def pixels(picture: np.ndarray) -> bytes:
    """Return colours ``(height, width, 3)`` from 0 to 1 as PNG, each a square of some pixels."""
    from PIL import Image  # matplotlib brings it

    image: Any = Image.fromarray((255 * picture).astype(np.uint8))
    times = max(1, round(900 / image.width)) if image.height * 900 < LEAST * 40 * image.width else 2
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    content = io.BytesIO()
    image.save(content, format="PNG", optimize=True)
    return content.getvalue()
