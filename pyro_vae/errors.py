"""The tree of errors. Every message says what came, what was wanted, where, and how to go on.

Each class carries the exit code that the command line ends with.
"""

from __future__ import annotations

from typing import Any


class PyroVAEError(Exception):
    """Base of every error that pyro_vae raises on purpose."""

    exit_code = 1


class UsageError(PyroVAEError, ValueError):
    """An option, a config key or an argument that cannot be used as given."""

    exit_code = 2


class KeywordError(UsageError, TypeError):
    """A keyword that a function does not have: names the function, and the keyword that was meant."""


class DeviceError(UsageError):
    """A device that was asked for and is not there."""


class ProgramError(UsageError):
    """A (model, guide) pair that a function here cannot treat: names the site and the reason."""


class MarkedError(ProgramError):
    """A site that is marked for enumeration, where sites are drawn: its values are summed over, if there are other latents."""


class NoWeightError(ProgramError):
    """A pair whose p(x, z) / q(z | x) is no importance weight: a point, a rounded draw, another measure, another mask."""


class OtherMaskError(NoWeightError):
    """A latent that is masked in one program and not in the other: the ELBO is another number, too."""


class DataError(PyroVAEError, ValueError):
    """Data that cannot be used as given: names the rows."""

    exit_code = 3


class ShapeError(DataError):
    """Data, or what a network is fed, of another shape than was wanted."""


class SupportError(DataError):
    """Data outside the support of the likelihood: it has no log-likelihood there."""


class MissingExtraError(PyroVAEError, ImportError):
    """A package that an extra brings, and that is not installed: names the extra."""


class RunFolderError(PyroVAEError):
    """A run folder that is missing, foreign, damaged, or in the way."""

    exit_code = 4


class CheckpointError(RunFolderError):
    """A checkpoint that cannot be resumed: damaged, of another model, or of a run with other options."""


class ErrorWithResult(PyroVAEError):
    """An error that hands over what there is so far, as `result`."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class DivergedError(ErrorWithResult, ArithmeticError):
    """A non-finite loss or gradient in training; the model holds its last good weights. `result` is the run so far."""

    exit_code = 5


class StorageError(PyroVAEError):
    """A file that could not be written: the disk is full, read-only or gone. What was saved before is as it was."""

    exit_code = 6


class DeviceMemoryError(PyroVAEError, MemoryError):
    """A step, or the smallest chunk of an evaluation, that the memory of its device, or of the host, does not hold."""

    exit_code = 7


class DeviceLostError(ErrorWithResult, RuntimeError):
    """A device that failed while something ran on it: in this process it answers no more. What was saved before is as it was.

    `result` is the training or the evaluation so far, of what had left the device; weights on it cannot be read.
    """

    exit_code = 9


class ProcessesError(ErrorWithResult):
    """Processes of one run that do not meet, or of which one died, left or hangs: names its rank, and where.

    `result` is what an evaluation has so far, if there is any.
    """

    exit_code = 8


class BusyError(PyroVAEError):
    """A run folder that another process is writing to; the message names it."""

    exit_code = 75


class UnreliableError(ErrorWithResult, ArithmeticError):
    """An estimate whose own diagnostics say not to believe it, where `strict` was asked for. `result` is the estimate."""

    exit_code = 5


class Interrupted(ErrorWithResult, KeyboardInterrupt):
    """Ctrl-C in training, when the model holds its best weights so far, or in evaluation. `result` is what there is so far."""

    exit_code = 130

    @staticmethod
    def kind(signal: KeyboardInterrupt) -> type[Interrupted]:
        """Return the class to raise for a signal: Ctrl-C, or a SIGTERM or SIGHUP that came as such."""
        if getattr(signal, "hung_up", False):
            return HungUp
        return Terminated if getattr(signal, "terminated", False) else Interrupted


class Terminated(Interrupted):
    """SIGTERM, where Ctrl-C raises `Interrupted`."""

    exit_code = 143
    terminated = True  # for `kind` of one that is raised on, with more of the result


class HungUp(Terminated):
    """SIGHUP: the terminal was closed, or the connection to it lost."""

    exit_code = 129
    hung_up = True


class OverBudgetError(ProgramError):
    """An exact method applies, but takes more runs of the model than it was given."""


class OracleWarning(UserWarning):
    """An exact method applied, but its result was not believed, or took too long: another one was taken."""


class CoupledGuideWarning(UserWarning):
    """A guide reads other rows than the one it is of: its ELBO is of a row among those that it was run with."""


class DataConversionWarning(UserWarning):
    """Data that was converted (a copy; the caller's array is left as it was)."""


class UnknownProgramsWarning(UserWarning):
    """Evidence of an older version, which does not say which programs it is of, was put together with more."""


class FlaggedWarning(UserWarning):
    """Numbers were handed out bare, where their diagnostics say not to believe more than a tenth of them."""


class IdleProcessesWarning(UserWarning):
    """Processes that had nothing to do, as there was less work than processes."""
