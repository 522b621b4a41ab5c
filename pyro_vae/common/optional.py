"""Packages that an extra brings: imported where they are wanted, and missed by name."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from pyro_vae.errors import MissingExtraError


def imported(name: str, extra: str, who: str) -> ModuleType:
    """Import a module of an extra.

    Raises:
        MissingExtraError: it is not there.

    Example:
        >>> imported("json", "arviz", "to_elpd").__name__
        'json'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{who} needs {name.partition('.')[0]}, which is not installed ({error}): pip install 'pyro-vae[{extra}]'"
        ) from error


def installed(name: str) -> bool:
    """Return whether a package is there, without importing it."""
    return importlib.util.find_spec(name) is not None
