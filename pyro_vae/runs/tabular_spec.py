"""Tabular likelihoods by name, as a config writes them: ``normal:3,poisson:2,categorical:1:num-classes=4``."""

from __future__ import annotations

import difflib
from dataclasses import replace

from pyro_vae.common.spec import REQUIRED
from pyro_vae.distributions.conditional import Family
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods.registry import FAMILIES, columns

from .custom_components import read

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
    return columns([block(text.strip()) for text in blocks.split(",")])


def block(text: str) -> tuple[Family, int, int]:
    """Read one block: (family, features in all, columns)."""
    name, width, *options = text.split(":") if ":" in text else (text, "")
    if not width.isdecimal() or not int(width) or not all("=" in option for option in options):
        raise UsageError(f"block {text!r}: {FORM}")
    if name not in SINGLE:
        close = difflib.get_close_matches(name, SINGLE, 2)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(SINGLE)}"
        raise UsageError(f"block {text!r}: no family {name!r} of single columns; {hint}")
    made = options_of(text, name, dict(option.split("=", 1) for option in options), int(width))
    return FAMILIES[name].make(**made), FAMILIES[name].num_features(**made) * int(width), int(width)


def options_of(text: str, family: str, given: dict[str, str], width: int) -> dict[str, object]:
    """A block's options, each of the type of its default."""
    options = FAMILIES[family].options
    known = {k: v for k, v in options.items() if k != "dim"}
    made: dict[str, object] = {"dim": width} if "dim" in options else {}
    for key, value in given.items():
        if (name := key.replace("-", "_")) not in known:
            raise UsageError(f"block {text!r}: {family} has no option {key!r}; it has {', '.join(known) or 'none'}")
        made[name] = read(f"block {text!r}: option {key!r}", value, known[name])
    for name, default in known.items():
        if default is REQUIRED and name not in made:
            raise UsageError(
                f"block {text!r}: {family} needs {name.replace('_', '-')}: {text}:{name.replace('_', '-')}=VALUE"
            )
    return made


COLUMNS = replace(
    FAMILIES["columns"],
    make=named_columns,
    options={"blocks": ""},
    reference="Nazabal, Olmos, Ghahramani & Valera, 2020, https://arxiv.org/abs/1807.03653",
)
