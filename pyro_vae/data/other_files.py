"""Files that are something else than their name says, told by their first bytes: a web page, JSON, a spreadsheet, a pickle."""

from __future__ import annotations

import re
from pathlib import Path

LOOKED_AT = 4096  # bytes
SIGNATURES: dict[bytes, tuple[str, str]] = {  # what a file is, and what to do; by how it begins
    b"version https://git-lfs": (
        "a pointer of Git LFS to a file that is not here",
        "fetch it, git lfs pull, or download the file itself",
    ),
    b"\x1f\x8b": ("packed by gzip", "unpack it first"),
    b"BZh": ("packed by bzip2", "unpack it first"),
    b"\xfd7zXZ": ("packed by xz", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it first"),
    b"7z\xbc\xaf\x27\x1c": ("packed by 7-Zip", "unpack it first"),
    b"PK\x03\x04": ("a spreadsheet, or packed by zip", "save the sheet as CSV UTF-8, or unpack it first"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet", "save the sheet as CSV UTF-8"),
    b"\x93NUMPY": ("an array of numpy", "call it .npy"),
    b"PAR1": ("a Parquet file", "call it .parquet"),
    b"\x89HDF\r\n": ("a file of HDF5", "call it .h5ad if it is an AnnData, or save its array as .npy"),
    b"ARROW1": ("a file of Arrow (Feather)", "save it as .parquet"),
    b"SQLite format 3": ("a database of SQLite", "save the table as CSV"),
    b"\x89PNG": ("a picture (PNG)", "name the folder of the pictures"),
    b"\xff\xd8\xff": ("a picture (JPEG)", "name the folder of the pictures"),
    b"%PDF": ("a document (PDF)", "save its table as CSV"),
    b"\xff\xfe": ("text in UTF-16", "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"),
    b"\xfe\xff": ("text in UTF-16", "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"),
}
PAGES = {  # which are text, and of which some line may look like a row; names in brackets (<DATE>) are none
    re.compile(rb"(<!--.*?-->\s*)*<(!doctype|html|head|body|table)\b", re.IGNORECASE | re.DOTALL): (
        "a web page (HTML)",
        "download the file itself (the raw one), or save its table as CSV",
    ),
    re.compile(rb"<\?xml\b", re.IGNORECASE): ("a file of XML", "save its table as CSV"),
    re.compile(rb'\{\s*["}]|\[\s*[{\["]'): (
        "JSON",
        "save it as CSV: pandas.read_json(path).to_csv('rows.csv', index=False), with lines=True if each line is an object",
    ),
}
PICKLE = re.compile(rb"\x80[\x02-\x05]")  # of Python
NUMPY = (b"\x93NUMPY", b"PK\x03\x04")  # numpy reads either under either name
OWN = {".npy": NUMPY, ".npz": NUMPY, ".parquet": (b"PAR1",)}  # how files of that name begin


def other_kind(path: Path) -> str:
    """Say what a file is where its name says otherwise, and what to do; nothing of one that may be what it is called."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except OSError:  # whoever reads it says so
        return ""
    own = OWN.get(path.suffix.lower(), ())
    if own and head.startswith(own):
        return ""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = [told for sign, told in SIGNATURES.items() if head.startswith(sign)]
    found += [told for page, told in PAGES.items() if page.match(text)]
    if own is not NUMPY and PICKLE.match(head):  # of which numpy's reader has words of its own
        found.append(("a pickle, which is never loaded, as it can run code", "save it as .csv, .npy or .parquet"))
    return f"{path} is {found[0][0]}: {found[0][1]}." if found else ""
