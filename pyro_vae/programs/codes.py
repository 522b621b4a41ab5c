"""Codes of discrete latents: every combination of the values of a program's discrete sites, numbered, for one row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

from .plates import Plates
from .site_rows import frames_of
from .sites import Site
from .unconstrained import is_discrete
from .wrapped import base_name, elements

MOST = 10_000  # codes that are summed out beside continuous latents: the programs run on as many times N rows
WHOLE = ("Categorical", "Bernoulli", "OneHotCategorical")  # whose values are all listed, whatever their parameters


def listed(name: str, fn: Any) -> Tensor:
    """List every value of one element of a discrete site, ``(V, *event of the element)``.

    Raises:
        ProgramError: a continuous site, or one of infinitely many values.
    """
    fn = elements(fn)
    if not is_discrete(name, fn):
        raise ProgramError(
            f"site {name!r} is continuous ({base_name(fn)}): it cannot be enumerated. Where all latents are continuous and "
            "few, quadrature integrates over them."
        )
    try:
        if not fn.has_enumerate_support:
            raise NotImplementedError("infinitely many values")
        values: Tensor = fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ProgramError(f"site {name!r} ({base_name(fn)}) has no list of values: {error}.") from error
    return values.reshape(len(values), *fn.event_shape)


def enumerable(name: str, fn: Any) -> bool:
    """Return whether a site is discrete, with a finite list of values."""
    try:
        return is_discrete(name, elements(fn)) and len(listed(name, fn)) > 0
    except ProgramError:
        return False


@dataclass(frozen=True, eq=False)
class Codes:
    """All combinations of the values of discrete sites, ``(C, *value of a row)`` by site; C counts the whole combinations.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro_vae.programs.plates import Plates
        >>> def model():
        ...     with pyro.plate("data", 5):
        ...         pyro.sample("y", dist.Categorical(torch.ones(3)))
        ...         pyro.sample("s", dist.Bernoulli(torch.ones(2)).to_event(1))
        >>> codes = Codes.of(poutine.trace(model).get_trace().nodes, ["y", "s"], Plates("data", -1, 1))
        >>> len(codes), codes.values["y"].shape, codes.values["s"].shape
        (12, torch.Size([12]), torch.Size([12, 2]))
    """

    values: Mapping[str, Tensor]  # of one row, by site
    sizes: Mapping[str, int]  # V, of one element of a site
    elements: Mapping[str, int]  # of an event of a site
    within: Mapping[str, int] = field(
        default_factory=dict
    )  # plates within a row, by dim: a code is of one of their entries

    @classmethod
    def of(
        cls, sites: Mapping[str, Site], names: list[str], plates: Plates, most: int = MOST, apart: bool = False
    ) -> Codes:
        """List the codes of some sites of a trace without particles; a ProgramError for more than `most`.

        Where a site lies in a plate within a row, it is refused; or, if `apart`, codes are those of one entry of that plate,
        which all of the sites lie in.
        """
        lists = {name: listed(name, sites[name]["fn"]) for name in names}
        within = plates_within(names, sites, plates) if apart else {}
        shapes = {name: row_shape(name, sites[name], plates, within) for name in names}
        elements = {n: math.prod(shapes[n]) // math.prod(v.shape[1:]) for n, v in lists.items()}
        counts = {n: len(v) ** elements[n] for n, v in lists.items()}
        if (total := math.prod(counts.values())) > most:
            by_site = ", ".join(f"{name!r} {count:.6g}" for name, count in counts.items())
            raise ProgramError(
                f"the discrete latents have {total:.6g} codes in all ({by_site}), and up to {most} are summed out of a joint "
                "with continuous latents. Have the guide draw them, without marks, and use log_likelihood with "
                "method='importance'."
            )
        columns, numbers = {}, torch.arange(total, device=next(iter(lists.values())).device)
        for name, support in lists.items():
            radix = len(support) ** torch.arange(elements[name], device=numbers.device)
            columns[name] = support[numbers.unsqueeze(-1) // radix % len(support)].reshape(total, *shapes[name])
            numbers = numbers // counts[name]
        return cls(columns, {name: len(support) for name, support in lists.items()}, elements, within)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def count(self, name: str) -> int:
        """Count the codes of one site."""
        return int(self.sizes[name] ** self.elements[name])

    def only(self, names: Iterable[str]) -> Codes:
        """Return the codes of some of the sites alone."""
        chosen = list(names)
        rows = [self.values[name].reshape(len(self), -1).double() for name in chosen]
        kept = first_of_each(torch.cat(rows, 1))
        sizes, counts = ({n: table[n] for n in chosen} for table in (self.sizes, self.elements))
        return Codes({name: self.values[name][kept] for name in chosen}, sizes, counts, self.within)


def first_of_each(rows: Tensor) -> Tensor:
    """Number the first of each set of equal rows, in order.

    Example:
        >>> first_of_each(torch.tensor([[0.0], [1.0], [0.0]]))
        tensor([0, 1])
    """
    _, which = rows.unique(dim=0, return_inverse=True)
    numbers = torch.full((int(which.max()) + 1,), len(rows), dtype=torch.long, device=rows.device)
    positions = torch.arange(len(rows), device=rows.device)
    return numbers.scatter_reduce(0, which, positions, "amin").sort().values


def plates_within(names: list[str], sites: Mapping[str, Site], plates: Plates) -> dict[str, int]:
    """Return the plates within a row, by dim, that all of these sites lie in; a ProgramError where they differ."""
    frames = {name: frames_of(sites[name]).values() for name in names}
    each = {n: {f.name: f.dim for f in fs if f.name != plates.data and f.dim is not None} for n, fs in frames.items()}
    first = each[names[0]]
    for name, own in each.items():
        if own != first:
            raise ProgramError(
                f"sites {names[0]!r} and {name!r} are discrete and lie in different plates within a row, "
                f"{sorted(first) or 'none'} and {sorted(own) or 'none'}: they are not summed out together. Have the guide draw "
                "them, without marks, and use log_likelihood with method='importance'."
            )
    return first


def row_shape(name: str, site: Site, plates: Plates, within: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """Return the shape of a site's value for one row, or an entry of plates `within` it; a ProgramError for others."""
    shape, dims = list(site["value"].shape), site["value"].dim() - site["fn"].event_dim
    for dim in (within or {}).values():
        if dims >= -dim:
            shape[dim - site["fn"].event_dim] = 1
    del shape[plates.dim - site["fn"].event_dim]
    if math.prod(shape[: dims - 1]) > 1:
        raise ProgramError(
            f"site {name!r} is discrete and lies in a plate within a row, of shape {tuple(shape[: dims - 1])}: it is summed "
            "out of a row as a whole. Declare its entries as one event, .to_event(1), in the place of that plate."
        )
    return tuple(shape[dims - 1 :])
