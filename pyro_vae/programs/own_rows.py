"""Guides with parameters for each of their rows, as AutoNormal's: what they say of other rows is nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from pyro import poutine
from torch import Tensor

from .plates import WITHOUT_SIZE, frames_of
from .proposal_guide import set_up
from .sites import Program, sample_sites

MISMATCH = re.compile(
    r"Shape mismatch inside plate\('([^']*)'\) at site \S+ dim -?\d+, \d+ vs (\d+)"
)  # Pyro's own words


def own_rows(
    model: Program, guide: Program, template: Sequence[Tensor], one: Sequence[Tensor]
) -> tuple[str, int] | None:
    """Name the guide's data plate and count its rows, where they are its own; None for a guide that takes any rows.

    Judged by runs on two and on three copies of `one` row. A guide that makes its parameters in its first run makes them for
    the `template`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> own_rows(model, pyro.infer.autoguide.AutoNormal(model), [torch.zeros(5)], [torch.zeros(1)])
        ('data', 5)
    """
    set_up(guide, template)
    for came in (2, 3):
        args = [a[:1].expand(came, *a.shape[1:]).clone() for a in one]
        try:
            data = {name for name, size in plate_sizes(model, args).items() if size == came}
            sizes = sizes_of_guide(guide, args)
        except Exception:  # whatever the pair raises: it is shown as it came by whoever runs it next
            return None
        for name, size in sizes.items():
            if name in data and size not in (came, WITHOUT_SIZE):
                return name, size
    return None


def sizes_of_guide(guide: Program, args: Sequence[Tensor]) -> dict[str, int]:
    """Return the sizes of the guide's plates, of what its parameters have where they do not fit in."""
    try:
        return plate_sizes(guide, args)
    except ValueError as error:
        if (found := MISMATCH.match(str(error))) is None:
            raise
        return {found[1]: int(found[2])}


def plate_sizes(program: Program, args: Sequence[Tensor]) -> dict[str, int]:
    """Return the sizes of a program's plates, by name."""
    with torch.no_grad():
        sites = sample_sites(poutine.trace(program).get_trace(*args))
    return {frame.name: frame.size for site in sites.values() for frame in frames_of(site).values()}
