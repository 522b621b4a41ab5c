"""Rows of an .npy, or of an uncompressed array in an .npz. Pickles are never loaded."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pyro_vae.errors import DataError

from .row_files import FileState, Shape, check_rows, choose_key
from .user_files import UNREADABLE, explain_error

LOCAL_HEADER = 30  # bytes of a member of an archive, before its name


@dataclass(frozen=True)
class NumpyRows:
    """An array of numpy in C order, an .npy or an uncompressed member of an .npz: read, not mapped, so memory is bounded."""

    state: FileState
    offset: int  # bytes, to the first row
    rows: int
    row_shape: Shape
    dtype: np.dtype[Any]

    @property
    def path(self) -> Path:
        return self.state.path

    def read(self, start: int, stop: int) -> np.ndarray:
        found = np.empty((stop - start, *self.row_shape), self.dtype)
        row = self.dtype.itemsize * math.prod(self.row_shape)
        try:
            with self.path.open("rb", buffering=0) as file:
                self.state.check(os.fstat(file.fileno()))
                file.seek(self.offset + start * row)
                left = memoryview(found.reshape(-1).view(np.uint8).data)
                while left and (count := file.readinto(left)):  # one call reads 2 GiB at most
                    left = left[count:]
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}). Restore it, and open it again.") from error
        if left:
            raise DataError(f"{self.path} ends before row {stop}: it is truncated. Write or copy it again.")
        return found

    def pieces(self) -> Sequence[int]:
        return ()


def open_numpy(state: FileState, key: str | None) -> NumpyRows:
    """Look at the array of an .npy, or at one of an .npz."""
    path = state.path
    try:
        if path.suffix.lower() == ".npz":
            return open_member(state, key)
        if key is not None:
            raise DataError(f"{path} is one array, and has no {key!r}: leave the key out.")
        with path.open("rb") as file:
            return read_header(file, state, str(path))
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: {explain_error(error)}") from error


def read_header(file: BinaryIO, state: FileState, name: str) -> NumpyRows:
    """Read the header of an array where a file stands."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(
            f"{name} is of version {version} of numpy's format, which plain arrays are not: np.save it anew."
        )
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise DataError(f"{name}: {explain_error(ValueError('Object arrays'))}")
    check_rows(shape, dtype, name)
    if fortran and len(shape) > 1:
        raise DataError(
            f"{name} is in Fortran order, column after column, so that each row lies all over the file: save it by rows, "
            "np.save(path, np.ascontiguousarray(x))."
        )
    end = file.tell() + math.prod(shape) * dtype.itemsize
    if (size := state.identity[2]) < end:
        raise DataError(f"{name} is truncated: {size:,} bytes, where {shape} of {dtype} take {end:,}. Write it again.")
    return NumpyRows(state, file.tell(), shape[0], shape[1:], dtype)


def open_member(state: FileState, key: str | None) -> NumpyRows:
    """Find an uncompressed array in an archive."""
    with state.path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        key = choose_key(names, key, str(state.path))
        info = names[key]
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(
                f"{state.path}: {key!r} is compressed, and compressed rows cannot be read by themselves: save it with np.savez "
                "in place of np.savez_compressed, or cut it into a folder by pyro_vae.data.write_shards."
            )
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
        name, extra = struct.unpack("<HH", header[26:30])  # lengths, which may be others than the directory has
        file.seek(info.header_offset + LOCAL_HEADER + name + extra)
        return read_header(file, state, f"{state.path}, {key!r}")
