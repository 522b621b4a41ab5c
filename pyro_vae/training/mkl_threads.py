"""MKL on all of its threads, small matrices too, while training runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def mkl() -> Any:
    """Load torch's MKL, if its switch can be reached; None otherwise."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.MKL_Set_Dynamic.argtypes, library.MKL_Set_Dynamic.restype = [ctypes.c_int], None
        library.mkl_serv_get_dynamic.argtypes, library.mkl_serv_get_dynamic.restype = [], ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


@contextmanager
def all_threads() -> Iterator[bool]:
    """Switch MKL_DYNAMIC off inside, and back after; yield whether there is such a switch.

    MKL with MKL_DYNAMIC (its default) multiplies small matrices on one thread. ``torch.set_num_threads`` switches it off
    for good as a side effect; a process that got its threads from OMP_NUM_THREADS keeps it.
    """
    if (library := mkl()) is None:
        yield False
        return
    before = library.mkl_serv_get_dynamic()
    library.MKL_Set_Dynamic(0)
    try:
        yield True
    finally:
        library.MKL_Set_Dynamic(before)
