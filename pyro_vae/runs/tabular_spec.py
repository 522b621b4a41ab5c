"""Tabular likelihoods by name, as a config writes them: ``normal:3,poisson:2,categorical:1:num-classes=4``."""

from __future__ import annotations

from dataclasses import replace

from pyro_vae.common.keywords import suggest
from pyro_vae.distributions.conditional import Family
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods.registry import FAMILIES, columns

from .custom_components import read_options

SINGLE = [name for name in FAMILIES if name not in ("columns", "multinomial")]
FORM = (
    "blocks are NAME:WIDTH or NAME:WIDTH:OPTION=VALUE, one after the other with commas between: "
    "--likelihood.blocks normal:3,poisson:2,categorical:1:num-classes=4"
)


def named_columns(blocks: str = "") -> Family:
    """Build the family :func:`~pyro_vae.likelihoods.columns` of blocks of columns, each by the name of its family.

    Raises:
        UsageError: what is no block, a family that is unknown or of whole rows, an option that it lacks.

    Example:
        >>> named_columns("normal:3,categorical:1:num-classes=4").__name__
        'columns(normal x 3, categorical(4) x 1)'
    """
    if not blocks:
        raise UsageError(f"likelihood 'columns' is of blocks of columns, and there are none: {FORM}; or --columns auto")
    return columns([block(text.strip()) for text in blocks.split(",")])


def block(text: str) -> tuple[Family, int, int]:
    """Read one block: (family, features in all, columns)."""
    name, width, *options = text.split(":") if ":" in text else (text, "")
    if not width.isdecimal() or not int(width) or not all("=" in option for option in options):
        raise UsageError(f"block {text!r}: {FORM}")
    if name not in SINGLE:
        raise UsageError(f"block {text!r}: no family {name!r} of single columns; {suggest(name, SINGLE, 2)}")
    spec = FAMILIES[name]
    known = {option: default for option, default in spec.options.items() if option != "dim"}
    given = dict(option.split("=", 1) for option in options)
    values = read_options(f"block {text!r}: {name}", known, given, f"{text}:NAME=VALUE")
    if "dim" in spec.options:
        values["dim"] = int(width)
    return spec.make(**values), spec.num_features(**values) * int(width), int(width)


COLUMNS = replace(
    FAMILIES["columns"],
    make=named_columns,
    options={"blocks": ""},
    reference="Nazabal, Olmos, Ghahramani & Valera, 2020, https://arxiv.org/abs/1807.03653",
)
