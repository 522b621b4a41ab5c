"""Lines to be told at the end, each once."""

from __future__ import annotations


class Notes(list[str]):
    """Lines in the order in which they first came.

    Example:
        >>> notes = Notes()
        >>> for line in ("traced", "not compiled", "traced"):
        ...     notes.add(line)
        >>> notes
        ['traced', 'not compiled']
    """

    def add(self, line: str) -> None:
        """Note a line, unless it was noted before."""
        if line not in self:
            self.append(line)
