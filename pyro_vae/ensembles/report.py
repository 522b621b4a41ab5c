"""The progress of an ensemble: a line an epoch, with the mean over members and their spread."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

from pyro_vae.common.counted import counted
from pyro_vae.common.progress import Pace, format_duration
from pyro_vae.training.reporter import TrainingBar
from pyro_vae.training.training_state import FitResult

Record = dict[str, Any]


class EnsembleReporter(TrainingBar):
    """Called with the record of each member after each epoch: adds what `on_epoch` returns, then shows all in a line."""

    def __init__(self, epochs: int, verbose: bool, on_epoch: Callable[[Record], Record | None] | None) -> None:
        super().__init__(epochs, verbose, on_epoch)
        self.records: list[Record] = []
        self.pace = Pace(epochs)

    def member(self, seed: int, record: Record) -> None:
        """Take a member's record, and give it to `on_epoch`, its seed beside it."""
        self.records.append(record)
        record |= self.joining(record | {"seed": seed})

    def expect_in_turn(self, members: int) -> None:
        """Begin to take the time of members that are trained one after the other: all their epochs are one work."""
        self.total, self.epochs_done = members * self.epochs, 0
        self.pace = Pace(self.total)
        self.bar.update(self.task, total=self.total)

    def alone(self, seed: int, record: Record) -> Record:
        """Take the record of a member that is trained by itself; return what joins it."""
        more = self.joining(record | {"seed": seed})
        self.done_in_turn(self.epochs_done + 1)
        return more

    def done_in_turn(self, epochs: int) -> None:
        """Show that so many epochs are done, of all members together; tell once about how long the others will take."""
        self.epochs_done = epochs
        self.bar.update(self.task, completed=epochs)
        if self.lines and (left := self.pace.left(epochs)) is not None:
            line = (
                f"training: about {format_duration(left)} to go ({epochs} of {self.total} epochs of all members done)"
            )
            print(line, file=self.bar.console.file, flush=True)

    def member_done(self, seed: int, result: FitResult) -> None:
        """Show that a member that is trained by itself has ended."""
        self.done_in_turn(-(-self.epochs_done // self.epochs) * self.epochs)  # a member that stopped early has no more
        line = f"seed {seed}: {result.stopped or 'diverged'}"
        if self.lines:
            print(f"{line}  {format_records(result.history[-1:])}", file=self.bar.console.file, flush=True)

    def epoch_done(self, epoch: int) -> None:
        """Show the epoch."""
        line = format_records(self.records)
        if self.lines:
            print(f"epoch {epoch}/{self.epochs}  {line}", file=self.bar.console.file, flush=True)
        self.bar.update(self.task, advance=1, description=line)
        self.records = []
        if self.lines and (left := self.pace.left(epoch)) is not None:
            print(f"training: about {format_duration(left)} to go", file=self.bar.console.file, flush=True)

    def notes_of(self, seed: int) -> Any:
        """Return what takes the notes on one member."""
        return MemberNotes(self, seed)


class MemberNotes(EnsembleReporter):
    """Names the member whose note it is."""

    def __init__(self, reporter: EnsembleReporter, seed: int) -> None:
        self.reporter, self.seed = reporter, seed

    def note(self, line: str) -> None:
        self.reporter.note(f"seed {self.seed}: {line}")


def format_records(records: list[Record]) -> str:
    """Write the members' records in a line.

    Example:
        >>> format_records([{"loss": 2.0, "elbo": -1.0}, {"loss": 4.0, "elbo": -3.0}])
        '2 members  loss 3.000  ELBO -2.000 (sd over seeds 1.414)'
    """
    losses = [r["loss"] for r in records if r["loss"] is not None]
    elbos = [r["elbo"] for r in records if r["elbo"] is not None]
    parts = [f"{counted(len(records), 'member')}"]
    parts += [f"loss {mean(losses):.3f}"] if losses else []
    parts += [f"ELBO {mean(elbos):.3f}"] if elbos else ["ELBO none"]
    spread = f" (sd over seeds {stdev(elbos):.3f})" if len(elbos) > 1 else ""
    return "  ".join(parts) + spread
