"""What a config leaves to the data: the likelihood of bytes and of zeros and ones, and the units that its networks see."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Column, Data, Split
from pyro_vae.data.datasets import GREY
from pyro_vae.data.frames import blocks_of
from pyro_vae.distributions.units import real_elements
from pyro_vae.errors import DataError, UsageError
from pyro_vae.likelihoods.registry import fitting
from pyro_vae.models.standardize import units_by_shape

from .config import Config
from .custom_components import NOTHING, Components
from .registry import LIKELIHOODS, kind_of, likelihood_of, resolved
from .tabular_spec import block

ROOM = 2**18  # bytes of a config.json for its columns; one of more than a mebibyte is not read
SPREAD = 0.1  # images within [0, 1] of no less standard deviation are in units that networks start at
OF_KIND = {"binary": "bernoulli", "bytes": "discretized_logistic", "counts": "negative_binomial"}
OWN_UNITS = "normal_fixed"  # whose scale is given in the units of x


def decided(config: Config, data: Data, components: Components = NOTHING) -> Config:
    """Resolve a config, with what it leaves to the data: an "auto" likelihood, and whether x goes in standard units.

    Densities of real numbers stand in the units of the training rows, unless they are of the caller's own or have a scale that
    is given in those of x; what encoders then still see out of scale is normalized.
    """
    if config.columns is not None:
        config = of_columns(config, data)
    if config.likelihood == "auto" and config.data not in GREY and config.resolved().binarization == "none":
        config = dataclasses.replace(config, likelihood=OF_KIND.get(data.kind, "normal"))
    config = resolved(config, components)
    config = dataclasses.replace(config, model_options=kind_of(config).decide(config.model_options, data))
    standardize, normalize = config.standardize, config.normalize
    if standardize is None:
        standardize = takes_units(config, math.prod(kind_of(config).emission(data.shape)))
    config = dataclasses.replace(config, standardize=standardize)
    if normalize is None:
        normalize = not in_scale(posterior_inputs(config, data, components), kind_of(config).emission(data.shape))
    return dataclasses.replace(config, normalize=normalize)


def of_columns(config: Config, data: Data) -> Config:
    """Take the likelihoods that were found for the columns of a table, and gaps where it has some.

    Raises:
        UsageError: a family of a column that is unknown, or of whole rows; names the column.
    """
    for column in data.columns:
        name, _, options = column.family.partition(":")
        try:
            block(f"{name}:1:{options}" if options else f"{name}:1")
        except UsageError as error:
            raise UsageError(f"--columns: column {column.name!r}: {error}") from error
    blocks = config.likelihood_options.get("blocks") or blocks_of(data.columns)
    gaps = any(bool(split.x.isnan().any()) for split in (data.sample, data.validation, data.test))
    changed: dict[str, Any] = {"likelihood_options": {"blocks": blocks}, "missing": config.missing or gaps}
    return dataclasses.replace(config, likelihood="columns", **changed)


def check_blocks(config: Config, data: Data) -> None:
    """Refuse blocks beside the likelihoods that were found for the columns of a table, where they are others.

    Raises:
        UsageError: names the first column; its likelihood would be told as one, and modelled as another.
    """
    given = config.likelihood_options.get("blocks")
    if config.columns is None or not given:
        return
    found, asked = column_families(blocks_of(data.columns)), column_families(str(given))
    if found == asked:
        return
    if len(found) != len(asked):
        what = f"--likelihood.blocks are of {len(asked)} columns, and --columns {config.columns} takes {len(found)}"
    else:
        i = next(i for i, pair in enumerate(zip(found, asked, strict=True)) if pair[0] != pair[1])
        name = data.columns[i].name
        what = f"column {name!r} is {found[i]} by --columns {config.columns}, and {asked[i]} by --likelihood.blocks"
    raise UsageError(
        f"{what}: leave the blocks out, and correct a column by --columns auto,NAME=FAMILY; or leave --columns out"
    )


def column_families(blocks: str) -> list[str]:
    """List the family of each column of some blocks, options by name.

    Example:
        >>> column_families("normal:2,categorical:1:num_classes=3")
        ['normal', 'normal', 'categorical:num-classes=3']
    """
    families: list[str] = []
    for text in blocks.split(","):
        name, width, *options = text.strip().split(":")
        named = sorted(f"{key.replace('_', '-')}={value}" for key, _, value in (o.partition("=") for o in options))
        families += [":".join([name, *named])] * int(width)
    return families


def columns_told(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return what a run's folder remembers of the columns of its table; nothing of numbers so many that it has no room.

    Raises:
        DataError: so many labels that it has no room, and without which codes would mean nothing.
    """
    told = [column.to_dict() for column in columns]
    if sum(len(json.dumps(column)) for column in told) <= ROOM:
        return told
    if not any(column.codes or column.family for column in columns):
        return []  # new rows are then matched by their place
    longest = max(columns, key=lambda column: sum(map(len, column.codes)))
    raise DataError(
        f"the names and labels of {len(columns)} columns take more than {ROOM:,} bytes, which a run has no room for; column "
        f"{longest.name!r} has the most, {len(longest.codes)} labels: leave columns out (--columns auto,NAME=ignore)."
    )


def columns_outside(config: Config, data: Data, part: Split) -> str:
    """Say which columns of a table have values outside the support of their own likelihood; nothing for other data."""
    if config.likelihood != "columns" or not data.columns or part.x.shape[1] != len(data.columns):
        return ""
    family, features = likelihood_of(config, len(data.columns))
    told, columns, numbers = [], list(data.columns), part.numbers
    blocks = family(torch.zeros(features)).blocks
    for block_of, values in zip(blocks, part.x.split(family.widths, -1), strict=True):
        support: Any = block_of.support
        inside = getattr(support, "base_constraint", support).check(values.nan_to_num(1.0)) | values.isnan()
        own, columns = columns[: values.shape[1]], columns[values.shape[1] :]
        for column, right, cells in zip(own, inside.expand(values.shape).T, values.T, strict=True):
            if rows := (~right).nonzero().flatten().tolist():
                told.append(
                    f"column {column.name!r} has {len(rows)} values outside the support of its likelihood"
                    f"{f' {column.family}' if column.family else ''}, such as {cells[rows[0]]:g} in row {numbers[rows[0]]}; "
                    f"families that fit it: {', '.join(fitting(cells[:, None])) or 'none'}"
                )
    return f"{'. '.join(told)}. Rows are counted from 0." if told else ""


def takes_units(config: Config, elements: int) -> bool:
    """Return whether a likelihood of the registry is a density of real numbers, at least in some columns, in no units yet."""
    if config.likelihood not in LIKELIHOODS or OWN_UNITS in config.likelihood + str(config.likelihood_options):
        return False
    family, features = likelihood_of(config, elements)
    return bool(real_elements(family(torch.zeros(features))).any())


def posterior_inputs(config: Config, data: Data, components: Components) -> Tensor:
    """Return training rows (or steps) as the posterior is given them."""
    shape = kind_of(config).emission(data.shape)
    x, elements = kind_of(config).observed(data.sample.x, data.shape), math.prod(shape)
    if not config.standardize:
        return x
    family, features = likelihood_of(config, elements, components)
    loc, scale = units_by_shape(x, real_elements(family(torch.zeros(features))), shape)
    return (x - loc) / scale


def in_scale(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether rows are in units that networks start at: standard ones, or images within [0, 1] that fill it."""
    values = x[~x.isnan()]
    if len(shape) == 3 and len(values) and values.min() >= 0 and values.max() <= 1:
        return bool(values.std() >= SPREAD)
    loc, scale = units_by_shape(x, torch.tensor(True), shape)
    constant = scale == 1
    return bool((loc.abs() < 1e-3).all() and (((scale - 1).abs() < 1e-3) | constant).all())


def choices_told(given: Config, config: Config, data: Data) -> Iterator[str]:
    """Say what was chosen by the data: the likelihood, and units that are others than those of x."""
    if config.data == "digits":
        yield "data: digits, which come with scikit-learn (--data FILE for your own)"
    if given.likelihood == "auto" and given.columns is None and config.data not in GREY:
        why = {"binary": ", as x holds zeros and ones alone", "bytes": ", as x holds whole numbers 0 to 255"}
        why |= {"counts": ", as x holds whole numbers from 0"}
        yield f"likelihood auto: {config.likelihood}{why.get(data.kind, '')}"
    yield from kind_of(config).passed_over(config.model_options, data)
    if config.missing and not given.missing:
        yield "empty cells are values that were not observed: the likelihood skips them (--missing)"
    seen = "standard units, (x - mean) / std of the training rows"
    if config.standardize and given.standardize is None:
        yield f"networks see x in {seen}; log p(x) is that of x as given (--no-standardize leaves them out)"
    if config.normalize and given.normalize is None:
        yield f"the encoder sees x in {seen} (--no-normalize leaves them out)"
