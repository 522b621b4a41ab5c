"""A folder of pictures, PNG or JPEG of one size, as rows of bytes; folders within it are classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataError

from .splits import Part, Source, format_shuffle, shuffle

PICTURES = (".png", ".jpg", ".jpeg")
OTHERS = (
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".jp2",
    ".heic",
    ".avif",
    ".ppm",
    ".pgm",
    ".pbm",
)  # which are not read
PIXELS = 2**24  # of one picture: what asks for more of a few bytes is no picture to learn from
TOTAL = 2**34  # bytes of all of them
TAKEN = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # PIL's modes, and what they are read as
ORIENTATION = 0x0112  # of EXIF: 1 to 8, from 5 on width and height are exchanged
REFUSED = {
    "CMYK": "inks (CMYK), which stand for no colour without a profile: convert it to RGB",
    "YCCK": "inks (YCCK), which stand for no colour without a profile: convert it to RGB",
    "RGBA": "transparent (RGBA): put it on a background, as RGB",
    "LA": "transparent (LA): put it on a background, as grey",
    "PA": "transparent (PA): put it on a background, as RGB",
}


def read_folder(path: Path, seed: int) -> Source:
    """Read the pictures of a folder, in the order of their names, as ``(N, height, width)`` or ``(N, 3, height, width)`` bytes.

    Folders within it are classes, and their names the labels; each row is named after its file.

    Args:
        path: the folder.
        seed: of the permutation that splits the rows 80/10/10.

    Raises:
        DataError: no pictures; one that is damaged, animated, of 16 bits, of inks, transparent, larger than 16 million
            pixels, or of another size or of other colours than the first; pictures beside folders of them. Names the file.
    """
    files = pictures_in(path)
    first = opened(files[0])
    shape, mode = first.size, TAKEN[first.mode]
    size = len(files) * shape[0] * shape[1] * len(mode)
    if size > TOTAL:
        raise DataError(
            f"{path} holds {len(files):,} pictures of {size:,} bytes in all: make them smaller, or take some."
        )
    rows = np.stack([pixels(file, files[0], shape, mode) for file in files])
    names = np.array([file.relative_to(path).as_posix() for file in files])
    y, classes = None, tuple[str, ...]()
    if files[0].parent != path:
        labels, y = np.unique(np.array([file.parent.name for file in files]), return_inverse=True)
        y, classes = y.astype(np.int64), tuple(map(str, labels))
    part = Part("x", rows if mode == "L" else rows.transpose(0, 3, 1, 2), y, names, classes)
    return Source(path.name, (part,), partial(shuffle, seed=seed), notes=(*describe(part, seed), *not_read(path)))


def pictures_in(path: Path) -> list[Path]:
    """List the pictures of a folder, or of the folders in it."""
    here = sorted(filter(is_picture, path.iterdir()))
    below = sorted(filter(is_picture, path.glob("*/*")))
    if here and below:
        raise DataError(
            f"{path} holds {counted(len(here), 'picture')} and folders of {len(below)} more: either all lie in folders, "
            "which are their classes, or none."
        )
    if not here and not below:
        others = "".join(f" {told[0].upper()}{told[1:]}: save them as PNG, or lay them so." for told in not_read(path))
        raise DataError(
            f"{path} holds no pictures (files that end in {', '.join(PICTURES)}, or folders of them), and no train.csv with a "
            f"test.csv beside it.{others or ' Of a single table give the file.'}"
        )
    return here or below


def is_picture(file: Path, endings: tuple[str, ...] = PICTURES) -> bool:
    """Return whether a file is a picture by its name; one that begins with a dot is none (macOS puts ._p.png beside p.png)."""
    return file.suffix.lower() in endings and not file.name.startswith(".") and file.is_file()


def not_read(path: Path) -> Iterator[str]:
    """Yield what a folder holds of pictures that are no rows: of other endings, and in folders within folders."""
    others = [file for way in ("*", "*/*") for file in path.glob(way) if is_picture(file, OTHERS)]
    if others:
        yield f"not read: {counted(len(others), 'picture')} ({', '.join(sorted({f.suffix.lower() for f in others}))})"
    if deeper := sum(is_picture(file, (*PICTURES, *OTHERS)) for file in path.glob("*/*/*")):
        yield f"not read: {counted(deeper, 'picture')} in folders within its folders"


class Header(NamedTuple):
    """A picture's mode, and its width and height as it is seen: a camera may have been held otherwise."""

    mode: str
    size: tuple[int, int]


def opened(file: Path) -> Header:
    """Read a picture's header alone; refuse what its pixels would not be numbers of.

    Raises:
        DataError: names the file.
    """
    from PIL import Image

    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(file, formats=("PNG", "JPEG")) as picture,
        ):
            found = picture.mode, picture.size, getattr(picture, "n_frames", 1), "transparency" in picture.info
            mode, (width, height), frames, transparent = found
            told = picture.format == "JPEG" or "exif" in picture.info  # else all of a PNG is unpacked to look
            on_its_side = told and picture.getexif().get(ORIENTATION, 1) >= 5
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file} asks for far more than {PIXELS:,} pixels, a decompression bomb: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} is damaged or no picture ({error}). Leave it out, or write it again.") from error
    if width * height > PIXELS:
        raise DataError(
            f"{file} unpacks to {width:,} × {height:,} pixels, and {PIXELS:,} are read at most: make it smaller."
        )
    if frames > 1:
        raise DataError(f"{file} is animated ({frames} frames): save each as a picture of its own.")
    shown = (
        {"L": "LA", "1": "LA", "P": "PA", "RGB": "RGBA"}.get(mode, mode) if transparent else mode
    )  # one colour of it
    if shown in REFUSED:
        raise DataError(f"{file} is {REFUSED[shown]}.")
    if mode not in TAKEN:
        raise DataError(
            f"{file} has pixels of more than 8 bits ({mode}): divide them by 256, or save them as one .npy."
        )
    return Header(mode, (height, width) if on_its_side else (width, height))


def pixels(file: Path, first: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    """Read the pixels of a picture, the way up that it is seen, which is as the first one is."""
    from PIL import Image, ImageOps

    header = opened(file)
    if header.size != size:
        raise DataError(
            f"{file} has {header.size[0]} × {header.size[1]} pixels, and {first.name} has {size[0]} × {size[1]}: bring all to "
            "one size."
        )
    if TAKEN[header.mode] != mode:
        kinds = {"L": "grey", "RGB": "of colours"}
        raise DataError(f"{file} is {kinds[TAKEN[header.mode]]}, and {first.name} is {kinds[mode]}: make them alike.")
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            found = np.asarray(ImageOps.exif_transpose(picture).convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} is damaged or truncated ({error}). Leave it out, or write it again.") from error
    if found.shape[:2] != size[::-1]:
        raise DataError(
            f"{file} says only behind its pixels how the camera was held (EXIF): turn it, and write it again."
        )
    return found


def describe(part: Part, seed: int) -> Iterator[str]:
    """Yield what the pictures are read as."""
    kind = "grey" if part.x.ndim == 3 else "of colours, 3 channels"
    labels = f"folders: {', '.join(part.classes[:8])}" if part.classes else "none"
    yield f"{len(part.x)} pictures of {part.x.shape[-1]} × {part.x.shape[-2]} pixels, {kind}, bytes 0 to 255; labels: {labels}"
    yield format_shuffle(seed)
