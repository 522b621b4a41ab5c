"""Progress bars on a terminal; elsewhere a line that says how long is to go, where that is long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .processes import processes

T = TypeVar("T")
WAIT, LONG, LEAST = (
    2.0,
    10.0,
    15.0,
)  # seconds: of a sample; of a first item that is one by itself; that are worth a line


class Pace:
    """Predict how long is to go, once, from what the first seconds of a work have done.

    The first item is left out of the sample, as it may have waited for a compiler; unless it took so `long` that nobody should
    have to wait for the second.

    Args:
        total: items of the work.
        clock: tells seconds.
        long: seconds.

    Example:
        >>> pace = Pace(100, iter([0.0, 1.0, 2.0, 3.0, 4.0]).__next__)
        >>> [pace.left(done) for done in (1, 2, 4, 5)]  # 96 to go after 4, three of which took 2 s
        [None, None, 64.0, None]
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic, long: float = LONG) -> None:
        self.total, self.clock, self.long, self.begun = total, clock, long, clock()
        self.first: tuple[int, float] | None = None
        self.told = False

    def left(self, done: int) -> float | None:
        """Return the seconds to go after so many items; None before the sample is there, after it was told, or where short."""
        if self.told or done < 1:
            return None
        now = self.clock()
        if self.first is None:
            self.first = done, now
            if now - self.begun < self.long:
                return None
            seconds = (now - self.begun) / done
        elif now - self.first[1] < WAIT or done == self.first[0]:
            return None
        else:
            seconds = (now - self.first[1]) / (done - self.first[0])
        self.told = True
        left = seconds * (self.total - done)
        return left if left >= LEAST else None


def format_duration(seconds: float) -> str:
    """Write a duration as one is spoken of.

    Example:
        >>> format_duration(43.2), format_duration(200), format_duration(7500)
        ('43 s', '3 min', '2 h 5 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def bar(shown: bool) -> Progress:
    """Make a progress bar on standard error (results can be piped) that leaves nothing behind; on a terminal, by rank 0."""
    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(
        *columns, console=stderr, transient=True, disable=not (shown and processes().leads and stderr.is_terminal)
    )


def tracked(items: Sequence[T], description: str, shown: bool = True) -> Iterator[T]:
    """Yield the items, one by one, under a progress bar; off a terminal, say once how long is to go."""
    with bar(shown) as progress:
        task, pace = progress.add_task(description, total=len(items)), Pace(len(items))
        for done, item in enumerate(items, 1):
            yield item
            progress.advance(task)
            if shown and progress.disable and processes().leads and (left := pace.left(done)) is not None:
                line = f"{description}: about {format_duration(left)} to go ({done} of {len(items)} done)"
                print(line, file=sys.stderr, flush=True)
