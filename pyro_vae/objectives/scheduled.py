"""Numbers that change as training goes on (β, a capacity): the contract between whoever moves them and whoever trains."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Protocol

from pyro_vae.errors import UsageError


class Scheduled(Protocol):
    """Moves numbers of its own before each training step: ``fit(..., scheduled=[beta])``.

    Every engine follows the attributes in `scheduled_names`: a traced step reads them afresh, while any other Python
    number of the programs is part of the trace.
    """

    @property
    def scheduled_names(self) -> tuple[str, ...]:
        """The attributes that `at` sets, plain numbers; a class attribute will do."""

    def at(self, done: float) -> None:
        """Set the numbers for the next step, at a fraction `done` of training, from 0 to 1."""


Number = tuple[Any, str]  # an object, and the name of a number of its own


def scheduled_numbers(scheduled: Sequence[Scheduled]) -> list[Number]:
    """List the numbers that `scheduled` moves.

    Raises:
        UsageError: no list; something without `at` or `scheduled_names`; a name that is not a plain number; one object twice.

    Example:
        >>> from pyro_vae import Beta
        >>> [name for owner, name in scheduled_numbers([Beta(4.0)])]
        ['value']
    """
    if not isinstance(scheduled, list | tuple):
        raise UsageError(f"scheduled must be a list, such as scheduled=[beta]; got a {type(scheduled).__name__}")
    for i, owner in enumerate(scheduled):
        check_scheduled(owner, f"scheduled[{i}]")
        if any(owner is other for other in scheduled[:i]):
            raise UsageError(f"scheduled[{i}] is the same {type(owner).__name__} as one before it: give it once")
    return [(owner, name) for owner in scheduled for name in owner.scheduled_names]


def check_scheduled(owner: Any, what: str) -> None:
    """Refuse an object that does not keep the contract; `what` is what messages call it."""
    kind = type(owner).__name__
    if isinstance(owner, type) or not callable(getattr(owner, "at", None)) or not hasattr(owner, "scheduled_names"):
        way_out = "a function of the fraction of training done goes to on_step="
        if hasattr(behind := getattr(owner, "__self__", None), "scheduled_names"):
            way_out = f"give the {type(behind).__name__} itself"
        raise UsageError(
            f"{what} is {owner.__name__ if isinstance(owner, type) else f'a {kind}'}, and wanted is an object with a method "
            f"at(done) and the names of the numbers that it sets, `scheduled_names`, such as a Beta: {way_out}"
        )
    names = owner.scheduled_names
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{what}: {kind}.scheduled_names must be a tuple of names, such as ('value',); got {names!r}")
    for name in names:
        if not isinstance(value := getattr(owner, name, None), Real):
            fault = f"it is a {type(value).__name__}" if hasattr(owner, name) else "there is no such attribute"
            raise UsageError(
                f"{what}: {kind}.scheduled_names lists {name!r}, which must be a plain number, and {fault}: set it in "
                "__init__, as `at` does later"
            )
