"""Progress on a terminal, quiet elsewhere. On the ground floor: anything may import it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def console() -> Console:
    """Where progress goes: standard error, so that results can be piped."""
    return Console(stderr=True)


def bar(shown: bool) -> Progress:
    """A progress bar that leaves nothing behind; not shown off a terminal."""
    where = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=where, transient=True, disable=not (shown and where.is_terminal))


def tracked(items: Sequence[T], description: str, shown: bool = True) -> Iterator[T]:
    """The items, one by one, under a progress bar."""
    with bar(shown) as progress:
        yield from progress.track(items, description=description)
