"""Reading what a stranger may have made: plain data within limits, from regular files of the folder, or a refusal.

Nothing read here is executed or imported, and nothing is allocated that the file does not fill.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from pyro_vae.errors import RunFolderError

from .digests import digest_of, tensor_digest
from .held_folder import NONBLOCK, held
from .plain_text import is_plain
from .sharded import held_whole

MIB = 2**20
JSON_BYTES, HEADER_BYTES, HOLLOW = 64 * MIB, 2 * MIB, 256 * MIB
LIMIT = 64 * 1024 * MIB  # of any file
DEPTH, NAME, TENSORS = 64, 512, 20_000
SEAL = "sha256"
ABOUT = "about"  # the plain values in a header
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name to shape and dtype


def damaged(path: Path, why: object) -> RunFolderError:
    """Build the error of a file that is not what was written."""
    return RunFolderError(f"{path} is damaged ({why}). Restore the file, or make the run again.")


def open_regular(path: Path) -> int:
    """Open a regular file: no link, no pipe, no folder, no gigabytes of holes; never wait.

    Raises:
        OSError: it is missing, or another thing.
    """
    try:
        with held(path.parent) as place:
            handle = place.open(path.name, os.O_RDONLY | NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError("a link, and links are not followed") from error
        raise
    status = os.fstat(handle)
    hollow = status.st_size > HOLLOW and getattr(status, "st_blocks", status.st_size) * 512 < status.st_size // 4
    if not stat.S_ISREG(status.st_mode) or hollow:
        os.close(handle)
        raise OSError("most of it is holes" if hollow else "not a regular file")
    return handle


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: missing, a link, no file, or longer.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(f"{size:,} bytes, and at most {limit:,} are read")
        return file.read(size)  # not `limit`: so much would be taken at once


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """Read a run's file, by :func:`read_regular`, with its errors as RunFolderError."""
    try:
        return read_regular(path, limit)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def parse_json(content: bytes, path: Path) -> Any:
    """Parse JSON as RFC 8259 has it: finite numbers, no name twice, at most 64 levels deep, texts without controls.

    Whole numbers have at most 64 bits, as all that is written here: others are too large for what they would be used in.

    Raises:
        RunFolderError: anything else; `path` is what messages call it.

    Example:
        >>> parse_json(b'{"epochs": 3}', Path("config.json"))
        {'epochs': 3}
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),  # Windows' editors put a mark before it
            object_pairs_hook=once,
            parse_constant=no_number,
            parse_float=finite_number,
            parse_int=whole_number,
        )
        check_values(value)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error if isinstance(error, ValueError) else "nested too deeply") from error
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON, whose names stand once each: parsers take the first of two, or the last."""
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return unique


def no_number(word: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python's parser takes."""
    raise ValueError(f"{word} is no number in JSON")


def finite_number(word: str) -> float:
    """Read a number that a double can be: Python's parser makes 1e999 infinite."""
    if not math.isfinite(value := float(word)):
        raise ValueError(f"{word} is out of range")
    return value


def whole_number(digits: str) -> int:
    """Read a whole number of 64 bits: how long it takes to read digits grows with their square."""
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"{digits[:20]} of {len(digits)} digits is out of range")
    return value


def check_values(value: Any) -> None:
    """Refuse what is nested deeper than anything that is written here, and texts that a terminal would obey."""
    level = [value]
    for _ in range(DEPTH):
        texts = (item for item in level if isinstance(item, str))
        if not all(map(is_plain, texts)):
            raise ValueError("a text in it holds control characters")
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [v for item in nested for v in ((*item, *item.values()) if isinstance(item, dict) else item)]
    if level:
        raise ValueError(f"nested more than {DEPTH} levels deep")


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with the SHA-256 of all else in it, so that a flipped bit shows."""
    return {**record, SEAL: digest_of({k: v for k, v in record.items() if k != SEAL})}


def check_seal(record: Mapping[str, Any], path: Path) -> None:
    """Refuse a record that is not what was sealed; one from before there were seals passes.

    Raises:
        RunFolderError: the digest is of something else.
    """
    near = [] if SEAL in record else [name for name in record if one_bit_from(name, SEAL)]
    renamed = len(near) > 1 or any(is_seal(name, record) for name in near)
    if renamed or (SEAL in record and record[SEAL] != seal(record)[SEAL]):
        raise damaged(path, "its SHA-256 is not that of what it holds: it has changed since it was written")


def one_bit_from(name: str, other: str) -> bool:
    """Return whether a name becomes the other by one flipped bit."""
    apart = [ord(a) ^ ord(b) for a, b in zip(name, other, strict=False) if a != b]
    return len(name) == len(other) and len(apart) == 1 and apart[0].bit_count() == 1


def is_seal(name: str, record: Mapping[str, Any]) -> bool:
    """Return whether an entry is the SHA-256 of all others."""
    value = record[name]
    return (
        isinstance(value, str)
        and len(value) == 64
        and value == digest_of({k: v for k, v in record.items() if k != name})
    )


def dump(tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> bytes:
    """Format tensors as safetensors, sealed; cloned, as those that share memory are refused (a VampPrior's posterior).

    Plain values `about` them go into the header, under a seal of their own. Tensors of which this process has a part are a
    UsageError.
    """
    separate = {name: held_whole(t.detach()).cpu().clone().contiguous() for name, t in tensors.items()}
    metadata = {SEAL: tensor_digest(separate)}
    if not about:
        return dump_tensors(separate, metadata)
    return with_metadata(dump_tensors(separate), {ABOUT: json.dumps(seal(about)), **metadata})


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put metadata into a safetensors file that has none, in this order: the library's is another in each process."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(
        {"__metadata__": metadata, **json.loads(content[8 : 8 + length])}, separators=(",", ":")
    ).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def parse_header(start: bytes, size: int, path: Path) -> tuple[Layout, dict[str, Any]]:
    """Read the layout of a safetensors file of `size` bytes, and its metadata, from its first bytes."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= length <= min(HEADER_BYTES, size - 8):
        raise damaged(path, "it does not start as a safetensors file does")
    header = parse_json(start[8 : 8 + length], path)
    try:
        metadata = header.pop("__metadata__", {})
        layout = {name: parse_entry(name, entry) for name, entry in header.items()}
        total = num_bytes(layout)
        if len(layout) > TENSORS or total != size - 8 - length:
            raise ValueError(
                f"its header tells of {len(layout):,} tensors of {total:,} bytes in all, not of what it holds"
            )
        return layout, dict(metadata)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error if isinstance(error, ValueError) else "its header is malformed") from error


def parse_entry(name: str, entry: dict[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
    """Read shape and dtype of a tensor in a header; a ValueError for what nothing here writes."""
    shape = tuple(entry["shape"])
    if len(name) > NAME or len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise ValueError(f"tensor {name[:80]!r} has a name or a shape that nothing here writes")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name[:80]!r} has dtype {str(entry['dtype'])[:20]!r}, which nothing here writes")
    return shape, DTYPES[entry["dtype"]]


def about_of(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Read the plain values about the tensors of a file; none where it has none."""
    about = parse_json(str(metadata.get(ABOUT, "{}")).encode(errors="replace"), path)
    if not isinstance(about, dict):
        raise damaged(path, "its header is malformed")
    check_seal(about, path)
    return about


def read_header(path: Path) -> tuple[Layout, dict[str, Any]]:
    """Read names, shapes and dtypes of a safetensors file, and its metadata: no more of it than the header.

    Raises:
        RunFolderError: damaged, or of another kind.
    """
    try:
        with open(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), HEADER_BYTES))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    return parse_header(start, size, path)


def parse(content: bytes, path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, if they are those that were sealed.

    Raises:
        RunFolderError: damaged, or of another kind.
    """
    digest = parse_header(content, len(content), path)[1].get(SEAL)
    try:
        tensors = parse_tensors(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, error) from error
    if digest is not None and digest != tensor_digest(tensors):
        raise damaged(path, "its SHA-256 is not that of its tensors: it has changed since it was written")
    return tensors


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return shape and dtype of tensors, by name."""
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}


def num_bytes(layout: Layout) -> int:
    """Count the bytes of a layout's tensors."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())
