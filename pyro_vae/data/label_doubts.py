"""Labels of a category that are probably something else: one label written in several ways, or numbers with a unit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from .columns import SHOWN, Column

QUANTITY = re.compile(r"(?P<before>[^\w\s.,+-]*)\s*[+-]?(\d+([.,]\d+)*|[.,]\d+)\s*(?P<after>[^\d\s]*)")  # $5, 5 kg, 5%


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


def doubts_of(column: Column) -> Iterator[str]:
    """Yield what should be known of the labels of a column of categories, which stay as they are written."""
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
    if unit := unit_of(column.labels):
        yield (
            f"column {column.name!r} holds numbers with {unit!r} beside them, which are labels here: write numbers alone to "
            "have them as numbers"
        )
