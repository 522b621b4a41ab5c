"""Discrete sites of the rows of a data set: summed out row by row, inside of the programs whose one row the data set is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.errors import ProgramError

from .log_density import log_density
from .plates import Plates
from .site_rows import frames_of
from .sites import Program, Site, latent_sites, sample_sites
from .sum_over_codes import NEAR, SummedOut, SumOut
from .vectorize import repeated

ASSIGNED = 2, 16  # assignments of codes to rows at least and, of few rows, at most: their differences are compared
FEW = 64  # rows


@runtime_checkable
class AroundRows(Protocol):
    """A program of one data set, around one of its rows (:class:`~pyro_vae.programs.data_set.AsOneRow`)."""

    program: Program

    def rows_inside(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what the program around which it is takes."""

    def around(self, model: Program, guide: Program | None) -> tuple[Program, Program | None]:
        """Return other programs of rows as ones of a data set."""


def plate_of_rows(names: Sequence[str], sites: Mapping[str, Site], rows: int) -> CondIndepStackFrame:
    """Return the one plate of as many rows that all of these sites lie in; a ProgramError names one that lies in none."""
    stacks = {name: frames_of(sites[name]) for name in names}
    for name, stack in stacks.items():
        if not any(f.size == rows for f in stack.values()):
            raise ProgramError(
                f"site {name!r} is discrete and drawn once for the data set, beside other latents: it is summed out of rows "
                "alone. Have the guide draw it, without a mark, and use log_likelihood with method='importance'."
            )
    every = [f for f in stacks[names[0]].values() if f.size == rows and all(f.name in s for s in stacks.values())]
    every = [f for f in every if f.name == "data"] or every
    if len(every) != 1:
        raise ProgramError(
            f"sites {', '.join(map(repr, names))} are discrete, and which plate runs over the {rows} rows of the data set is "
            f'open: {sorted({name for stack in stacks.values() for name in stack})}. Name that plate "data".'
        )
    return every[0]


def check_alone(marginal: SummedOut, args: tuple[Any, ...]) -> None:
    """Refuse rows that see the codes of other rows, or how many rows there are: a sum over each row's codes is wrong then.

    Each row under a code drawn for it alone must have the density that it has in C · N rows, which share a code; and so must
    what all rows share.
    """
    plates, codes, names = marginal.plates, marginal.codes, ", ".join(map(repr, marginal.codes.values))
    handler = SumOut(codes, plates)
    with handler:
        trace = poutine.trace(marginal.program).get_trace(*repeated(args, len(codes)))
    handler.settle()
    assert handler.log_weights is not None
    shown = sample_sites(trace)
    each = handler.left.split(handler.log_weights).movedim(
        plates.dim, -1
    )  # entries of a plate within a row share its code
    each = each.reshape(len(codes), -1, len(args[0])).sum(1)
    values = {n: s["value"] for n, s in handler.shown.items()} | shared_values(shown, plates)
    times = max(ASSIGNED[0], min(ASSIGNED[1], FEW // len(args[0])))
    assigned = torch.randint(len(codes), (times, len(args[0])), device=each.device)
    alone = [of_assigned(marginal, args, values, codes_of_rows, handler.shapes) for codes_of_rows in assigned]
    wanted = [each.gather(0, codes_of_rows.unsqueeze(0)).squeeze(0) for codes_of_rows in assigned]
    same = all(close(a[0] - alone[0][0], w - wanted[0]) for a, w in zip(alone[1:], wanted[1:], strict=True))
    if not same or not all(close(total_of(shown[name]), term) for _, terms in alone for name, term in terms.items()):
        raise ProgramError(
            f"site {names}: a row's density depends on the discrete values of other rows, or on how many rows there are, so "
            "that they cannot be summed out row by row. Have the guide draw them, without marks, and use log_likelihood with "
            "method='importance'."
        )


def close(got: Tensor, wanted: Tensor) -> bool:
    """Return whether sums are the same but for rounding."""
    return bool(((got - wanted).abs() <= 10 * NEAR * (1 + wanted.abs())).all())


def shared_values(sites: Mapping[str, Site], plates: Plates) -> dict[str, Tensor]:
    """Return the values of latents outside the plate of rows."""
    return {n: s["value"] for n, s in latent_sites(sites).items() if plates.data not in frames_of(s)}


def total_of(site: Site) -> Tensor:
    """Σ log-probability of a site, masked and unscaled."""
    return scale_and_mask(log_density(site["fn"], site["value"]), mask=site["mask"]).sum()


def of_assigned(
    marginal: SummedOut, args: tuple[Any, ...], values: Mapping[str, Tensor], codes_of_rows: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """log-probability of each row under a code of its own, ``(N,)``, and of each latent outside of rows."""
    plates, own = marginal.plates, {}
    for name, value in marginal.codes.values.items():
        shape = list(shapes[name])
        shape[plates.dim] = len(codes_of_rows)
        each = value[codes_of_rows]
        own[name] = each.reshape(len(each), *[1] * (-plates.dim - 1), *each.shape[1:]).expand(*shape, *each.shape[1:])
    sites = sample_sites(poutine.trace(poutine.condition(marginal.program, data={**values, **own})).get_trace(*args))
    rows = torch.zeros(len(args[0]), device=codes_of_rows.device)
    for site in (s for s in sites.values() if plates.data in frames_of(s)):
        term = scale_and_mask(log_density(site["fn"], site["value"], not site["is_observed"]), mask=site["mask"])
        rows = rows + term.expand(torch.broadcast_shapes(term.shape, (len(rows), *[1] * (-plates.dim - 1)))).movedim(
            plates.dim, 0
        ).reshape(len(rows), -1).sum(-1)
    shared = {n: total_of(s) for n, s in sites.items() if n in values and plates.data not in frames_of(s)}
    return rows, shared
