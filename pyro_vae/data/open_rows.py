"""The rows of one file, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.errors import DataError

from .row_files import ENDINGS, FileState, RowFile, open_member, open_parquet, read_header
from .user_files import UNREADABLE, explain_error
from .zarr_rows import is_zarr, open_zarr


def open_rows(path: Path, key: str | None = None, num_rows: int | None = None) -> RowFile:
    """Look at the rows of one file; none is read.

    Args:
        path: ``.npy``, ``.npz`` (uncompressed), ``.parquet``, or the folder of a Zarr array or group.
        key: the array of an .npz or of a Zarr group, the column of a .parquet; not of an .npy.
        num_rows: of a Zarr array that has chunks which were never written; any other file knows its own.

    Raises:
        DataError: missing, damaged, compressed, pickled, in Fortran order, not of real numbers, or without such a key.
        MissingExtraError: the package that reads it is not installed.
    """
    if is_zarr(path):
        return open_zarr(path, key, num_rows)
    state, ending = FileState.at(path), path.suffix.lower()
    if ending == ".parquet":
        return open_parquet(state, key)
    if ending not in ENDINGS:
        raise DataError(
            f"{path}: rows on disk are read from {', '.join(ENDINGS)}, a Zarr array, or a folder with a manifest.json."
        )
    try:
        if ending == ".npy":
            if key is not None:
                raise DataError(f"{path} is one array, and has no {key!r}: leave the key out.")
            with path.open("rb") as file:
                return read_header(file, state, str(path))
        return open_member(state, key)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: {explain_error(error)}") from error
