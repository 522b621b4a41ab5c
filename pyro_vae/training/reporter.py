"""What is shown of a training: a line an epoch or a progress bar, and about how long it will take."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pyro_vae.common.processes import Processes
from pyro_vae.common.progress import Pace, bar, format_duration
from pyro_vae.errors import UsageError

from .metrics import Record


class TrainingBar:
    """A progress bar on a terminal, lines elsewhere, and `on_epoch`, which is asked what joins a record."""

    def __init__(self, epochs: int, verbose: bool, on_epoch: Callable[[Record], Record | None] | None) -> None:
        self.epochs, self.on_epoch, self.verbose = epochs, on_epoch, verbose
        self.bar = bar(verbose)
        self.lines = verbose and not self.bar.console.is_terminal

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.epochs)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def joining(self, record: Record) -> Record:
        """Ask `on_epoch` what joins a record; a UsageError unless that is a dict, or None."""
        more = self.on_epoch(record) if self.on_epoch else None
        if not isinstance(more, dict | None):
            raise UsageError(f"on_epoch returned a {type(more).__name__}; wanted a dict that joins the record, or None")
        return more or {}

    def note(self, line: str) -> None:
        """Print a line that stays, on standard error."""
        if self.verbose:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Reporter(TrainingBar):
    """Called with each epoch's record: adds what `on_epoch` returns, then shows it."""

    def __call__(self, record: Record) -> None:
        record |= self.joining(record)
        if self.lines:
            line = f"epoch {record['epoch']}/{self.epochs}  {format_record(record)}"
            print(line, file=self.bar.console.file, flush=True)
        self.bar.update(self.task, advance=1, description=format_record(record))

    def expect(self, first: int, last: int) -> None:
        """Begin to take the time of the steps between these two."""
        self.first, self.pace = first, Pace(last - first, long=math.inf)  # the first step is traced, and says nothing

    def steps_done(self, step: int) -> None:
        """Tell once, in a line or beside the bar, about how long the steps that are to go will take."""
        if self.verbose and (left := self.pace.left(step - self.first)) is not None:
            line = f"training: about {format_duration(left)} to go"
            if self.lines:
                print(line, file=self.bar.console.file, flush=True)
            self.bar.update(self.task, description=line)


def format_record(record: Record) -> str:
    """Write a record in a line."""
    terms = "" if record["kl"] is None else f" = {record['reconstruction']:.3f} - KL {record['kl']:.3f}"
    elbo = "none" if record["elbo"] is None else f"{record['elbo']:.3f}"
    loss = "none (every step was skipped: not finite)" if record["loss"] is None else f"{record['loss']:.3f}"
    return f"loss {loss}  ELBO {elbo}{terms}"


def note_stop(error: Exception, here: Processes, step: int, saved: str) -> None:
    """Add to an error, which stays as it is, which process it stopped after which step, and how to go on.

    Example:
        >>> error = ValueError("mine")
        >>> note_stop(error, Processes(1, 2), 7, ". Go on with: ...")
        >>> error.__notes__
        ['rank 1 of 2 stopped after step 7. Go on with: ... (on any number of processes)']
    """
    several = here.world > 1
    if saved or several:
        who = f"rank {here.rank} of {here.world}" if several else "training"
        more = " (on any number of processes)" if saved and several else ""
        error.add_note(f"{who} stopped after step {step}{saved}{more}")
