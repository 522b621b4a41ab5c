"""Commands of `pyro-vae` on data that is larger than one memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from pyro_vae.common.plain_text import plain
from pyro_vae.data.manifest import MANIFEST, beside_shards, format_bytes, open_manifest, write_manifest, write_shards
from pyro_vae.data.stored import Stored
from pyro_vae.errors import UsageError

from .commands import app


@app.command
def manifest(
    folder: Path,
    *,
    of: Path | None = None,
    key: str | None = None,
    rows: int | None = None,
    num_rows: int | None = None,
    check: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Counts the shards of a folder (files, rows, bytes, SHA-256) into its manifest.json, for `train --data FOLDER`.

    Parameters
    ----------
    folder
        Of .npy, .npz or .parquet files with rows that are alike.
    of
        A file (.npy, .npz, .parquet, Zarr) to cut into such a folder first, which is made.
    key
        The array of an .npz or of a Zarr group, or the column of a .parquet; by default x, or the only one, or all columns.
    rows
        Of a shard, with --of; by default as many as 256 MiB hold.
    num_rows
        Of the file, with --of: another number is refused. It is asked for of a Zarr array with chunks that were never written.
    check
        Read every byte again, and compare it with the manifest that is there; nothing is written.
    """
    if check and any(given is not None for given in (of, key, rows, num_rows)):
        raise UsageError("--check reads a folder against its manifest, and takes no other option")
    if rows is not None and of is None:
        raise UsageError("--rows is of the shards that --of FILE is cut into: say which")
    if num_rows is not None and of is None:
        raise UsageError("--num-rows is of the file that --of names: say which")
    if check:
        files, found = open_manifest(folder, check=True)
        print(plain(f"{folder}: {found['rows']:,} rows in {len(files):,} files, as {MANIFEST} has them"))
        return
    cut = None if of is None else Stored(of, key, num_rows=num_rows)
    found = write_manifest(folder, key) if cut is None else write_shards(cut, folder, rows)
    columns = " × ".join(map(str, found["row_shape"])) or "1"
    files, dtype = found["files"], np.dtype(found["dtype"])
    print(
        plain(
            f"{folder / MANIFEST}: {found['rows']:,} rows × {columns} columns of {dtype} in {len(files):,} "
            f"file{'s' * (len(files) > 1)}, {format_bytes(sum(entry['bytes'] for entry in files))}"
        )
    )
    if beside := beside_shards(folder.expanduser()):
        print(f"note: no shards, and not counted: {plain(', '.join(beside))}", file=sys.stderr)
