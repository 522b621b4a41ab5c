"""Open a file of rows, whatever its form: of numpy, Parquet or Zarr."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.errors import DataError

from .numpy_rows import open_numpy
from .parquet_rows import open_parquet
from .row_files import FileState, RowFile
from .zarr_rows import is_zarr, open_zarr

ENDINGS = (".npy", ".npz", ".parquet")
TEXT = (
    " Of a text larger than the memory make shards, a part at a time: write_shards((part.to_numpy('float32') for part in "
    "pandas.read_csv(path, chunksize=100_000)), folder), of pyro_vae.data."
)


def open_row_file(path: Path, key: str | None = None, num_rows: int | None = None) -> RowFile:
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
    if ending not in ENDINGS:
        raise DataError(
            f"{path}: rows on disk are read from {', '.join(ENDINGS)}, a Zarr array, or a folder with a manifest.json."
            f"{TEXT if ending in ('.csv', '.tsv') else ''}"
        )
    return open_parquet(state, key) if ending == ".parquet" else open_numpy(state, key)
