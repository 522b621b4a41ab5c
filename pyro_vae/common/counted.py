"""Numbers of things in words: one row, and two rows."""

from __future__ import annotations


def counted(count: int, what: str, spec: str = "") -> str:
    """Count things in words, the number as a format asks for it.

    Example:
        >>> counted(1, "row"), counted(1797, "row", ","), counted(2, "class"), counted(0, "entry")
        ('1 row', '1,797 rows', '2 classes', '0 entries')
    """
    if count == 1:
        return f"1 {what}"
    many = f"{what[:-1]}ies" if what.endswith("y") else f"{what}es" if what.endswith("ss") else f"{what}s"
    return f"{count:{spec}} {many}"
