"""Progress bars on a terminal, quiet elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .processes import processes

T = TypeVar("T")


def bar(shown: bool) -> Progress:
    """Make a progress bar on standard error (results can be piped) that leaves nothing behind; on a terminal, by rank 0."""
    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(
        *columns, console=stderr, transient=True, disable=not (shown and processes().leads and stderr.is_terminal)
    )


def tracked(items: Sequence[T], description: str, shown: bool = True) -> Iterator[T]:
    """Yield the items, one by one, under a progress bar."""
    with bar(shown) as progress:
        yield from progress.track(items, description=description)
