"""Folders of pictures: rows of bytes as PIL has them, classes by folder; what is no such picture is refused by its file."""

import zlib

import numpy as np
import pytest
from PIL import Image

from pyro_vae.data import load
from pyro_vae.errors import DataError

draw = np.random.default_rng(0)
GREY, COLOUR = draw.integers(0, 256, (6, 5, 4), np.uint8), draw.integers(0, 256, (6, 5, 4, 3), np.uint8)


def folder(path, pictures, ending="png"):
    path.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"p{i}.{ending}")
    return path


def rows_of(data):
    splits = data.train, data.validation, data.test
    order = np.concatenate([split.numbers for split in splits]).argsort()
    return np.concatenate([split.x.numpy() for split in splits])[order]


@pytest.mark.parametrize("pictures", [GREY, COLOUR], ids=["grey", "colour"])
def test_rows_are_the_bytes_channels_first(tmp_path, pictures):
    data = load(folder(tmp_path / "x", pictures), verbose=False)
    planes = pictures[:, None] if pictures.ndim == 3 else pictures.transpose(0, 3, 1, 2)
    assert data.shape == planes.shape[1:] and data.kind == "bytes" and data.train.y is None
    np.testing.assert_array_equal(rows_of(data), planes.reshape(6, -1))
    assert data.train.index[0] == f"p{data.train.numbers[0]}.png" and "4 × 5 pixels" in data.notes[0]


TURNED = {3: 2, 6: 1, 8: 3}  # EXIF's words for how a camera was held: quarters that pixels are stored turned by


@pytest.mark.parametrize("word", TURNED)
def test_rows_are_as_pictures_are_seen_however_the_camera_was_held(tmp_path, word):
    (tmp_path / "x").mkdir()
    exif = Image.Exif()
    exif[0x0112] = word
    for i, picture in enumerate(GREY):
        about = {"exif": exif} if i % 2 == 0 else {}  # the next one was held upright
        held = np.rot90(picture, TURNED[word] if about else 0)
        Image.fromarray(np.ascontiguousarray(held)).save(tmp_path / "x" / f"p{i}.png", **about)
    np.testing.assert_array_equal(rows_of(load(tmp_path / "x", verbose=False)), GREY.reshape(6, -1))


def test_folders_are_classes(tmp_path):
    for name in ("b", "a"):
        folder_of = tmp_path / "x" / name
        folder_of.mkdir(parents=True)
        folder(folder_of, GREY[:3], "jpg")
    data = load(tmp_path / "x", verbose=False)
    assert data.train.classes == ("a", "b")
    order = np.concatenate([s.numbers for s in (data.train, data.validation, data.test)]).argsort()
    labels = np.concatenate([s.y.numpy() for s in (data.train, data.validation, data.test)])[order]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    folder(tmp_path / "x", GREY[:1])
    with pytest.raises(DataError, match="1 picture and folders of 6 more"):
        load(tmp_path / "x")


def damaged(path):
    Image.fromarray(draw.integers(0, 256, (5, 4), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def animated(path):
    frames = [Image.fromarray(f) for f in GREY[:2]]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png_of(side):
    """A PNG of a few bytes whose header asks for side × side pixels."""
    header = side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


BAD = {
    "no picture": (lambda p: p.write_text("no"), "damaged or no picture"),
    "truncated": (damaged, "damaged"),
    "CMYK": (lambda p: Image.new("CMYK", (4, 5)).save(p, format="JPEG"), r"inks \(CMYK\)"),
    "16 bits": (lambda p: Image.fromarray(np.full((5, 4), 999, np.uint16)).save(p), "more than 8 bits"),
    "animated": (animated, r"animated \(2 frames\)"),
    "transparent": (lambda p: Image.new("RGBA", (4, 5)).save(p), r"transparent \(RGBA\)"),
    "a transparent grey": (lambda p: Image.new("L", (4, 5)).save(p, transparency=0), r"transparent \(LA\)"),
    "another size": (lambda p: Image.new("L", (5, 5)).save(p), "5 × 5 pixels, and p0.png has 4 × 5"),
    "another kind": (lambda p: Image.new("RGB", (4, 5)).save(p), "is of colours, and p0.png is grey"),
    "large": (lambda p: p.write_bytes(png_of(5_000)), "unpacks to 5,000 × 5,000 pixels"),
    "bomb": (lambda p: p.write_bytes(png_of(10_000)), "asks for far more than 16,777,216 pixels"),
    "larger bomb": (lambda p: p.write_bytes(png_of(50_000)), "asks for far more than 16,777,216 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_picture_is_refused_by_its_file(tmp_path, name):
    write, words = BAD[name]
    write(folder(tmp_path / "x", GREY[:3]) / "q.png")
    with pytest.raises(DataError, match=rf"q\.png .*{words}|q\.png {words}"):
        load(tmp_path / "x")


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        load(tmp_path)
    folder(tmp_path, GREY[:2], "gif")
    with pytest.raises(DataError, match=r"holds no pictures .* Not read: 2 pictures \(.gif\): save them as PNG"):
        load(tmp_path)


def test_pictures_that_are_no_rows_are_told(tmp_path):
    """What macOS puts beside a file (._p0.png) is none, and ended the reading."""
    x = folder(tmp_path / "x", GREY[:4])
    (x / "._p0.png").write_bytes(b"\0\5\26\7")
    notes = load(x, verbose=False).notes
    assert not [note for note in notes if "not read" in note]
    folder(x, GREY[4:], "bmp")
    for deeper in (x / "a", x / "a" / "b", x / "a" / "b" / "c"):
        deeper.mkdir()
    folder(x / "a" / "b", GREY[:2])
    data = load(x, verbose=False)
    assert len(rows_of(data)) == 4
    assert [note for note in data.notes if "not read" in note] == [
        "not read: 2 pictures (.bmp)",
        "not read: 2 pictures in folders within its folders",
    ]


def test_arrays_with_channels_last_are_turned(tmp_path):
    np.save(tmp_path / "x.npy", COLOUR)
    np.save(tmp_path / "y.npy", COLOUR.transpose(0, 3, 1, 2))
    last, first = (load(tmp_path / f"{name}.npy", verbose=False) for name in "xy")
    assert last.shape == first.shape == (3, 5, 4) and last.digest == first.digest
    assert any("(rows, channels, height, width)" in note for note in last.notes)
