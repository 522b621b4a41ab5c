"""Cells of a text file as columns: numbers (with a point or a decimal comma), booleans, labels; dates are refused."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from pyro_vae.common.counted import counted
from pyro_vae.common.plain_text import is_plain
from pyro_vae.errors import DataError

from .columns import BOOLEANS, RawColumn, left_out, too_large
from .table_layout import is_number

SHOWN_SIGNS = 60  # of a cell, in a message
DIGITS = 15  # of whole numbers that float64 surely tells apart
MISSING = ("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")  # "None" may be a label
COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
MONTHS = "jan(uary)? feb(ruary)? mar(ch)? apr(il)? may june? july? aug(ust)? sept?(ember)? oct(ober)? nov(ember)? dec(ember)?"
MONTH = rf"({'|'.join(MONTHS.split())})\.?"
PARTED = r"(, |[ ./-])"
DATE = re.compile(
    r"\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}:\d{2}.*)?|\d{1,2}[./]\d{1,2}[./](\d{4}|\d{2})( \d{1,2}:\d{2}.*)?"
    r"|\d{4}/\d{1,2}/\d{1,2}.*|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
    rf"|\d{{1,2}}(st|nd|rd|th)?{PARTED}{MONTH}({PARTED}(\d{{4}}|\d{{2}})( \d{{1,2}}:\d{{2}}.*)?)?"
    rf"|{MONTH}{PARTED}\d{{1,2}}(st|nd|rd|th)?(,? ?\d{{4}}.*)?|{MONTH}{PARTED}\d{{4}}",
    re.IGNORECASE,
)
DATES = "make numbers of it (days since the first, the month, the hour)"


def cells_of(name: str, cells: Sequence[str]) -> RawColumn:
    """Take cells as a column, untyped: None where nothing stands, or a word for it."""
    return RawColumn(name, [None if cell in MISSING else cell for cell in cells], "cells")


def typed(raw: RawColumn) -> RawColumn:
    """Find the type of a column's cells: numbers, booleans, or labels.

    Raises:
        DataError: dates; numbers and texts in one column; names the first row.
    """
    if raw.trouble:
        raise DataError(raw.trouble)
    if raw.kind != "cells":
        return raw
    texts = [text for text in raw.texts() if text is not None]
    refuse_dates(raw.name, texts)
    if texts and {text.lower() for text in texts} <= {*BOOLEANS}:
        return RawColumn(raw.name, booleans_of(raw), "boolean", as_spelled(texts))
    numeric = [is_numeric(text) for text in texts]
    if texts and not any(numeric):
        return RawColumn(raw.name, raw.values, "category")
    if all(numeric):
        return RawColumn(raw.name, numbers_of(raw))
    few = sum(numeric) * 2 < len(numeric)
    odd = next(i for i, t in enumerate(raw.texts()) if t is not None and is_numeric(t) is few)
    words = {text for text in texts if not is_numeric(text)}
    code = (
        f"where it stands for a missing value: --missing-value={shlex.quote(*words)}; "
        if len(words) == 1 and not few and is_plain(*words) and repr(*words) == shown_cell(*words)
        else ""
    )
    raise DataError(
        f"column {raw.name!r} mixes {counted(sum(numeric), 'number')} and {counted(len(numeric) - sum(numeric), 'text')}: "
        f"{shown_cell(raw.values[odd])} in row {odd} (counted from 0) is {'a number' if few else 'none'}. Mend the cell or "
        f"leave it empty; {code}where the numbers are labels, too: --columns auto,{raw.name}=categorical; or leave the column "
        f"out: {left_out(raw.name)}."
    )


def as_spelled(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return false and true as cells spell them, most often; None where that is in small letters, as anywhere else.

    Example:
        >>> as_spelled(["True", "FALSE", "True"]), as_spelled(["TRUE"]), as_spelled(["true", "false"])
        (('FALSE', 'True'), ('FALSE', 'TRUE'), None)
    """
    spelled = [Counter(text for text in texts if text.lower() == word).most_common(1) for word in BOOLEANS]
    style = next(found[0][0] for found in spelled if found)
    like = str.upper if style.isupper() else str.title if style.istitle() else str.lower
    labels = tuple(found[0][0] if found else like(word) for found, word in zip(spelled, BOOLEANS, strict=True))
    return None if labels == BOOLEANS else labels


def refuse_dates(name: str, texts: Sequence[str]) -> None:
    """Refuse texts all of which are dates or times."""
    if texts and all(map(DATE.fullmatch, texts)):
        raise DataError(f"column {name!r} holds dates or times ({texts[0]!r}): {DATES}, or {left_out(name)}.")


def is_numeric(cell: str) -> bool:
    """Return whether a cell is a number, with a point or with a decimal comma."""
    return is_number(cell) or bool(COMMA.fullmatch(cell)) or bool(THOUSANDS.fullmatch(cell))


def numbers_of(raw: RawColumn, where: str = "") -> np.ndarray:
    """Read a column as numbers, NaN where nothing stands.

    Raises:
        DataError: a text, two ways of writing fractions, or a comma that may part thousands; names the row.
    """
    if isinstance(raw.values, np.ndarray):
        return raw.values
    commas = [i for i, cell in enumerate(raw.values) if cell is not None and not is_number(cell)]
    for i in commas:
        if not is_numeric(str(raw.values[i])):
            raise DataError(f"column {raw.name!r}, row {i} (counted from 0): {raw.values[i]!r} is no number{where}.")
    if commas:
        check_commas(raw.name, raw.values, commas)
    values = np.array([np.nan if c is None else float(c.replace(",", ".")) for c in raw.values], dtype=np.float64)
    whole = {digits for c in raw.values if c is not None and len(c) > DIGITS and (digits := whole_digits(c))}
    if len({float(n) for n in whole}) < len(whole):
        raise too_large(raw.name, f"up to {shortened(max(whole, key=lambda n: (len(n), n)))}")
    return values


def whole_digits(cell: str) -> str:
    """Return a whole number as its digits, without zeros before them; nothing of any other cell.

    Example:
        >>> whole_digits("+0012"), whole_digits("-7"), whole_digits("1.5")
        ('12', '-7', '')
    """
    digits = cell.lstrip("+-")
    if not digits.isdecimal():
        return ""
    return ("-" if cell.startswith("-") else "") + (digits.lstrip("0") or "0")


def shortened(digits: str) -> str:
    """Write a whole number of so many digits that nobody reads them by its first ones."""
    return digits if len(digits) <= 40 else f"{digits[:10]}… ({len(digits)} digits)"


def shown_cell(cell: object) -> str:
    """Show a cell in a message; the beginning of one that runs on over lines, as where a quote is not closed.

    Example:
        >>> shown_cell("abc"), shown_cell("1.5\\n2,3,4\\n")
        ("'abc'", "'1.5' and more lines (is a quote not closed?)")
    """
    text = str(cell)
    if "\n" in text:
        return f"{text.splitlines()[0][:SHOWN_SIGNS]!r} and more lines (is a quote not closed?)"
    return repr(cell) if len(text) <= SHOWN_SIGNS else f"{text[:SHOWN_SIGNS]!r}… ({len(text):,} signs)"


def check_commas(name: str, cells: Sequence[str | None], commas: Sequence[int]) -> None:
    """Refuse commas that do not say whether they part fractions or thousands, and points beside them."""
    first = cells[commas[0]]
    points = [i for i, cell in enumerate(cells) if cell is not None and "." in cell]
    if points:
        raise DataError(
            f"column {name!r} writes fractions with a comma ({first!r}, row {commas[0]}) and with a point "
            f"({cells[points[0]]!r}, row {points[0]}; counted from 0): write them alike."
        )
    if all(THOUSANDS.fullmatch(str(cells[i])) for i in commas) or any(str(cells[i]).count(",") > 1 for i in commas):
        raise DataError(
            f"column {name!r}: the comma in {first!r} (row {commas[0]}, counted from 0) may part thousands or a fraction, as "
            "all have three digits after it. Write numbers without thousands separators, and fractions with a point."
        )


def booleans_of(raw: RawColumn) -> np.ndarray:
    """Read a column as 0 and 1 of false and true (or 0 and 1), NaN where nothing stands.

    Raises:
        DataError: anything else; names the row.
    """
    values = [None if text is None else text.lower() for text in raw.texts()]
    codes = {"false": 0.0, "true": 1.0, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, None: np.nan}
    for row, value in enumerate(values):
        if value not in codes:
            raise DataError(
                f"column {raw.name!r}, row {row} (counted from 0): {raw.texts()[row]!r} is neither true nor false. "
                "Write it so (or 1 and 0), or leave the cell empty (missing)."
            )
    return np.array([codes[value] for value in values], dtype=np.float64)


def separator_of(lines: Sequence[str], suffix: str) -> str:
    """Find what parts the cells of a text file: a tab in a .tsv; in a .csv a comma, or what each line has alike in its place.

    That is a semicolon, or, where not each line has as many commas, a tab or a bar.

    Example:
        >>> separator_of(["a;b", "1,5;2", "2,5;3"], ".csv"), separator_of(["a,b", "1,x;y"], ".csv")
        (';', ',')
        >>> separator_of(["a|b", "1|2"], ".csv"), separator_of(["a,b", "1|2,3"], ".csv")
        ('|', ',')
    """
    if suffix == ".tsv":
        return "\t"
    written = [line for line in lines if line.strip()]
    alike = [sign for sign in ";,\t|" if same_count(written, sign)]
    return alike[0] if alike else ","


def same_count(lines: Sequence[str], sign: str) -> bool:
    """Return whether a sign stands in each line, as often in all, outside of quotes."""
    counts = {len(list(outside_quotes(line, sign))) for line in lines}
    return len(counts) == 1 and counts != {0}


def outside_quotes(line: str, sign: str) -> Iterator[int]:
    """Yield where a sign stands outside of quotes."""
    quoted = False
    for i, letter in enumerate(line):
        quoted ^= letter == '"'
        if letter == sign and not quoted:
            yield i
