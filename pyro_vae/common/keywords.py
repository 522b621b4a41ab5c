"""Keywords that a function does not have, refused in the function's own name, with the one that was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from pyro_vae.errors import KeywordError

P = ParamSpec("P")
R = TypeVar("R")


def suggest(name: str, known: Iterable[str], most: int = 1, otherwise: str = "known:") -> str:
    """Name the nearest of the known names, at most so many; all of them, after `otherwise`, where none is near.

    Example:
        >>> suggest("num_sample", ["num_samples", "seed"]), suggest("lr", [], otherwise="it has")
        ("did you mean 'num_samples'?", 'it has none')
    """
    close = difflib.get_close_matches(name, known := list(known), most)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"{otherwise} {', '.join(known) or 'none'}"


def suggest_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse a keyword that `function` does not have before it runs, and suggest the nearest that it has.

    The function returned raises :class:`~pyro_vae.errors.KeywordError`, a TypeError like Python's own.

    Example:
        >>> @suggest_keywords
        ... def score(x, *, num_samples=10):
        ...     return num_samples
        >>> score(0, num_sample=5)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.KeywordError: score() has no argument 'num_sample'; did you mean 'num_samples'?
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                hint = suggest(name, known, otherwise="it has")
                raise KeywordError(f"{function.__name__}() has no argument {name!r}; {hint}")
        return function(*args, **kwargs)

    return checked
