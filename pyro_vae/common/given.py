"""What was given for an argument: whole numbers checked, other things described in a message."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

from pyro_vae.errors import UsageError


def whole(name: str, given: Any, least: int | None = None) -> int:
    """Return a whole number as an int; refuse fractions, strings and truth values, and numbers below the least."""
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool):
        raise UsageError(
            f"{name} must be a whole number{'' if least is None else f' from {least}'}, got {described(given)}"
        )
    if least is not None and number < least:
        raise UsageError(f"{name} must be at least {least}, got {number}")
    return number


def positive(name: str, given: Any) -> float:
    """Return a number above 0 as a float; refuse strings and truth values, NaN and what is not finite.

    Example:
        >>> positive("target_se", 1)
        1.0
        >>> positive("target_se", True)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.UsageError: target_se must be a number above 0, got True
    """
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 < float(given) < math.inf:
        raise UsageError(f"{name} must be a number above 0, got {described(given)}")
    return float(given)


def check_whole(**given: Any) -> None:
    """Refuse fractions, strings and truth values among arguments that count something; None is one that was not given.

    Example:
        >>> check_whole(num_samples=10, chunk_size=None)
        >>> check_whole(num_samples=1.5)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.UsageError: num_samples must be a whole number, got 1.5
    """
    for name, number in given.items():
        if number is not None:
            whole(name, number)


def described(thing: Any) -> str:
    """Say what came: a class by its name, a string as it is, other things by their type."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    return repr(thing) if isinstance(thing, str | int | float | bool | None) else f"a {type(thing).__name__}"
