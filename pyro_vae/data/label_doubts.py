"""Labels of a category that are probably something else: one label written in several ways, or numbers with a unit."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataError

from .cells import MISSING
from .columns import ASKED, NUMBER, SHOWN, Column
from .table_layout import is_number

QUANTITY = re.compile(r"(?P<before>[^\w\s.,+-]*)\s*[+-]?(\d+([.,]\d+)*|[.,]\d+)\s*(?P<after>[^\d\s]*)")  # $5, 5 kg, 5%


PARTS = r"[_ \u00a0\u2009\u202f'\u2019]"  # of thousands
NOTATION = (
    re.compile(  # of numbers, not read as such: 1/2, 0x1F, 71_000, 71 000, 71'000, 71,000.5, (71), minus signs of print
        rf"[+-]?\d+/\d+|[+-]?0(x[\da-f]+|b[01]+|o[0-7]+)|[+-]?\d{{1,3}}({PARTS}\d{{3}})+([.,]\d+)?"
        r"|[+-]?\d{1,3}((,\d{3})+\.|(\.\d{3})+,)\d+"
        r"|\(\d+([.,]\d+)*\)|[\u2010-\u2015\u2212]\d+([.,]\d+)*",
        re.IGNORECASE,
    )
)


FRACTION = re.compile(r"\d[.,]\d")
GROUPED = re.compile(r"[+-]?(\d+([.,]\d+)*|[.,]\d+)([deq][+-]?\d+)?", re.IGNORECASE)  # 3,5 and 1,014.72 and 1.5D+03


def odd_numbers(labels: Sequence[str]) -> str:
    """Say as what numbers all labels may be meant, which are not read as such; nothing where they are none.

    Example:
        >>> odd_numbers(["5 kg", "12.5 kg"]), odd_numbers(["1/2", "3/4"]), odd_numbers(["0x1F"]), odd_numbers(["1/2", "half"])
        ("numbers with 'kg' beside them", "numbers written as '1/2'", "numbers written as '0x1F'", '')
    """
    if labels and all(map(NOTATION.fullmatch, labels)):
        return f"numbers written as {labels[0]!r}"
    unit = unit_of(labels)
    return f"numbers with {unit!r} beside them" if unit else ""


def first_padded(cells: Iterable[str | None]) -> str:
    """Return the first cell that has zeros before its digits, as post codes have; nothing where there is none.

    Example:
        >>> first_padded(["94105", None, "02222"]), first_padded(["0", "0.5", "10"])
        ('02222', '')
    """
    return next((cell for cell in cells if cell and cell[0] == "0" and len(cell) > 1 and cell.isdecimal()), "")


def told_padded(padded: Mapping[str, str]) -> Iterator[str]:
    """Say which columns have such a cell, and are read as numbers."""
    if not padded:
        return
    (name, cell), more = next(iter(padded.items())), len(padded) - 1
    others = f" and {counted(more, 'other column')}" if more else ""
    yield (
        f"column {name!r}{others}: digits with zeros before them ({cell!r}), as post codes have, are read as numbers, of "
        f"which {cell} and {cell.lstrip('0') or '0'} are one: --columns {shlex.quote(f'auto,{name}=categorical')} has labels"
    )


def told_padded_labels(name: str, cells: Sequence[str]) -> Iterator[str]:
    """Say so of a column of labels (--label) that are read as numbers."""
    if (cell := first_padded(cells)) and all(is_number(cell) for cell in cells if cell not in MISSING):
        yield (
            f"labels of column {name!r}: digits with zeros before them ({cell!r}) are read as numbers, of which {cell} and "
            f"{cell.lstrip('0') or '0'} are one class: where they are two, put a letter before each"
        )


def refuse_measures(name: str, texts: Sequence[str]) -> None:
    """Refuse to take a first column for names of the rows whose texts are measures: numbers with a fraction, a currency or %.

    Raises:
        DataError: names the column, and how it is kept, or left out.
    """
    signs = {sign for text in texts for sign in text if sign == "%" or unicodedata.category(sign) == "Sc"}
    if not signs and not any(map(FRACTION.search, texts)):
        return
    what = odd_numbers(texts) or (all(map(GROUPED.fullmatch, texts)) and f"numbers written as {texts[0]!r}")
    if what:
        raise DataError(
            f"column {name!r} holds {what}, another in each row: write numbers alone, with digits and a point, to have them in "
            f"x; where they name the rows, --index {shlex.quote(name)}, or call the column id."
        )


def unit_of(labels: Sequence[str]) -> str:
    """Return the one sign or unit that stands beside a number in every label; nothing where there is none, or no number.

    Example:
        >>> unit_of(["5 kg", "12.5 kg"]), unit_of(["$3", "$4"]), unit_of(["3a", "4b"]), unit_of(["3", "4"]), unit_of(["q1"])
        ('kg', '$', '', '', '')
    """
    met = [QUANTITY.fullmatch(label) for label in labels]
    units = {match["before"] + match["after"] if match else "" for match in met}
    return units.pop() if len(units) == 1 else ""


def one_label(label: str) -> str:
    """Return what a label has in common with others that a reader takes for it: without case, spaces and Unicode's forms.

    Example:
        >>> one_label("Yes") == one_label("yes "), one_label("caf\\u00e9") == one_label("cafe\\u0301")
        (True, True)
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold()).split())


def doubts_of(column: Column, as_texts: bool = False) -> Iterator[str]:
    """Yield what should be known of the labels of a column of categories, which stay as they are written.

    Args:
        column: its labels.
        as_texts: that its table holds as texts, and declares no categories.
    """
    if column.kind != "category":
        return
    groups: dict[str, list[str]] = {}
    for label in column.labels:
        groups.setdefault(one_label(label), []).append(label)
    alike = [" and ".join(map(ascii, group)) for group in groups.values() if len(group) > 1]
    if alike:
        told = "; ".join(alike[:SHOWN]) + (f"; and {len(alike) - SHOWN} more" if len(alike) > SHOWN else "")
        yield (
            f"column {column.name!r} has labels that differ in case, spaces or Unicode's forms alone: {told}. Each is a "
            "category of its own; where they are one, write them alike"
        )
    plain = as_texts and all(map(NUMBER.fullmatch, column.labels))
    numbers = "numbers as texts" if plain else odd_numbers(column.labels)
    if numbers and not column.why.startswith(ASKED):
        yield (
            f"column {column.name!r} holds {numbers}, which are labels here: write numbers alone, with digits and a point, to "
            f"have them as numbers (--columns auto,{column.name}=categorical where labels are meant)"
        )
