"""Commands of `pyro-vae` that write an array of a finished run: `sample`, `encode`, `reconstruct`, `impute`, `interpolate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.counted import counted
from pyro_vae.common.csv_columns import write_columns
from pyro_vae.common.given import whole
from pyro_vae.common.plain_text import plain
from pyro_vae.errors import UsageError
from pyro_vae.plots import images, latents
from pyro_vae.runs.load import Run, load_run
from pyro_vae.runs.new_rows import open_rows
from pyro_vae.runs.rows_to_score import rows_of, split_asked
from pyro_vae.runs.run_figures import codes, draw_all, labels_of, reconstructions, sample_means, samples

from .array_files import EMPTY, array_bytes, check_array_file
from .commands import DataDir, NewRows, RunFolder, app

SHOWN = 48  # rows, in a picture
DRAWN = {  # pictures of these arrays in a run's figures, beside those of its training
    "samples": "sampled",
    "sample_means": "sampled_means",
    "encoded": "encoded",
    "reconstructed": "reconstructed",
    "imputed": "imputed",
    "interpolated": "interpolated",
}
VALUES = ("samples", "imputed")  # arrays of values of x, whose codes have labels; others hold means
Out = Annotated[
    Path | None,
    Parameter(
        help="Array file, .npy or .csv; in RUN by default: samples.npy, sample_means.npy, encoded.npy, reconstructed.npy, "
        "imputed.npy or interpolated.npy.",
        validator=check_array_file,
    ),
]
SplitName = Annotated[str, Parameter(help="test, validation or train.")]


@app.command
def sample(run: RunFolder, /, *, num_samples: int = 48, seed: int = 0, mean: bool = False, out: Out = None) -> None:
    """Draws x ~ p(x | z), z ~ p(z): an array (.npy) and a picture.

    Parameters
    ----------
    num_samples
        How many.
    seed
        The same seed draws the same samples.
    mean
        E[x | z] of each z drawn, in place of a draw of x.
    """
    opened = load_run(run)
    x = samples(opened, num_samples, seed, mean).numpy()
    if mean:
        draw: Callable[[], Any] = lambda: sample_means(opened, num_samples, seed)  # noqa: E731
        save_array(opened, x, out, "sample_means", draw)
    else:
        save_array(opened, x, out, "samples", lambda: images.sample_grid(x, opened.shape, names=opened.column_names))


@app.command
def encode(
    run: RunFolder,
    /,
    *,
    split: SplitName = "test",
    rows: int | None = None,
    data: NewRows = None,
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """Posterior means E[z | x] of a split: an array (.npy), and a map coloured by label.

    Parameters
    ----------
    rows
        Only the first so many rows.
    """
    opened, part = open_split(run, split, data_dir, data, rows)
    z = codes(opened, part).numpy()
    save_array(opened, z, out, "encoded", lambda: latents.latent_map(z, labels_of(part)), part.ids.columns())


@app.command
def reconstruct(
    run: RunFolder,
    /,
    *,
    split: SplitName = "test",
    rows: int = 12,
    data: NewRows = None,
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """E[x | z] at z = E[z | x] for rows of a split: an array (.npy), and a picture beside the originals.

    Parameters
    ----------
    rows
        The first so many rows.
    """
    opened, part = open_split(run, split, data_dir, data)
    part = part[: whole("rows", rows, 1)]
    means = opened.kind.ask("reconstruct", opened.config.model)(opened.vae, *opened.rows(part))
    draw = partial(reconstructions, opened, part, split)
    save_array(opened, opened.kind.flat(means, opened.shape).numpy(), out, "reconstructed", draw, part.ids.columns())


@app.command
def impute(
    run: RunFolder,
    /,
    *,
    split: SplitName = "test",
    rows: int | None = None,
    draws: int = 1,
    num_samples: int = 1000,
    seed: int = 0,
    data: NewRows = None,
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """Draws of what is missing in rows of a split, x_mis ~ p(x_mis | x_obs), the rest kept (float32): an array, a picture.

    Parameters
    ----------
    rows
        Only the first so many rows.
    draws
        Imputations of each row: all rows of the first, then of the second; column `draw` of a .csv.
    num_samples
        K: particles that each draw is chosen among, by weight.
    seed
        The same seed draws the same.
    """
    opened, part = open_split(run, split, data_dir, data, rows)
    imputed = opened.kind.ask("impute", opened.config.model)
    if not part.x.isnan().any():
        raise UsageError(f"no value of the {counted(len(part), 'row')} is missing: there is nothing to impute")
    x = imputed(opened.vae, *opened.rows(part), num_samples=num_samples, draws=draws, seed=seed).flatten(0, 1).numpy()
    known = {name: draws * column for name, column in part.ids.columns().items()}
    known["draw"] = [str(draw) for draw in range(draws) for _ in range(len(part))]
    save_array(
        opened,
        x,
        out,
        "imputed",
        lambda: images.sample_grid(x[: min(len(part), SHOWN)], opened.shape, names=opened.column_names),
        known,
    )


@app.command
def interpolate(
    run: RunFolder,
    /,
    *,
    start: int = 0,
    end: int = 1,
    steps: int = 10,
    split: SplitName = "test",
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """E[x | z] along the line between the posterior means of two rows: an array (.npy) and a picture.

    Parameters
    ----------
    start
        Row to start from.
    end
        Row to end at.
    steps
        Points on the line, ends included.
    """
    opened, part = open_split(run, split, data_dir)
    for row in (start, end):
        if not 0 <= row < len(part):
            raise UsageError(f"row {row} is not in the {split} split, which has rows 0 to {len(part) - 1}")
    line = opened.kind.ask("interpolate", opened.config.model)
    x = line(opened.vae, part.x[start : start + 1], part.x[end : end + 1], steps=steps)[:, 0].numpy()
    title = f"from {split} row {start} to {end} (rows {part.numbers[start]} and {part.numbers[end]} of the data)"
    save_array(
        opened,
        x,
        out,
        "interpolated",
        lambda: images.sample_grid(x, opened.shape, columns=steps, title=title, names=opened.column_names),
    )


def open_split(
    run: Path, split: str, data_dir: Path | None, data: Path | None = None, first: int | None = None
) -> tuple[Run, Any]:
    """Open a run and the rows of one split of its data, or all rows of another file; or the first of these."""
    opened = load_run(run)
    rows = open_rows(opened, data, data_dir)
    return opened, rows_of(rows, split_asked(opened, rows, split), first)


def save_array(
    run: Run,
    array: np.ndarray,
    out: Path | None,
    name: str,
    draw: Callable[[], Any],
    known: Mapping[str, Sequence[str]] = EMPTY,
) -> None:
    """Write an array to `out` and its picture into the run's figures, beside those of its training; print where they are.

    Of a run that is read-only the picture goes into figures/ beside `out`.

    What is `known` of its rows says which rows of the file they are, source_row, index, label: columns of a .csv, and a table
    beside an .npy.
    """
    target = out or run.path / f"{name}.npy"
    columns = () if name == "encoded" else run.columns
    content = array_bytes(array, target, "z" if name == "encoded" else "x", known, columns, drawn=name in VALUES)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, content)
    if known and target.suffix.lower() != ".csv":
        beside = target.with_name(f"{target.stem}_rows.csv")
        write_atomic(beside, write_columns(known))
        print(f"{plain(beside)}  source_row of each")
    print(f"{plain(target)}  {array.shape}")
    own = out is None or os.access(run.path, os.W_OK)
    for path in draw_all(run.path if own else target.parent, {DRAWN[name]: draw}):
        print(plain(path))
