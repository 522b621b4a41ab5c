"""Draws that mean something: invalid parameters are named before a site is drawn, and NaN that is drawn after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import ProgramError

from .kept_entries import kept_entries, layers
from .plates import frames_of
from .sites import has_density
from .support import format_support


class ValidDraws(Messenger):
    """Refuse, by site and row, parameters outside their constraints, which samplers take, or stop at without a name; and NaN.

    Entries that a mask leaves out may be anything.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with ValidDraws(), pyro.plate("data", 2):
        ...     pyro.sample("x", dist.Poisson(torch.tensor([1.0, -1.0]), validate_args=False))
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ProgramError: site 'x': Poisson has rate -1 in rows [1], wanted ...
    """

    def _pyro_sample(self, msg: Any) -> None:
        if has_density(msg):
            fn = msg["fn"]
            kept = whole_events(kept_entries({**msg, "value": torch.empty(fn.shape())}), fn.event_dim)
            for kind, name, value, wrong, constraint in invalid_parameters(fn):
                counted = wrong & kept.to(wrong.device)
                if counted.any():
                    raise ProgramError(
                        f"site {msg['name']!r}: {kind} has {name} {value:g} {in_rows(msg, counted)}, wanted "
                        f"{format_support(constraint)}. Make it so where the program computes it: softplus or exp for what is "
                        "positive, sigmoid for a probability."
                    )

    def _pyro_post_sample(self, msg: Any) -> None:
        if has_density(msg):
            refuse_nan_draws(msg["name"], msg)


def refuse_nan_draws(name: str, site: Any, first: int = 0) -> None:
    """Refuse, by site and row, NaN that a site drew where no mask leaves it out."""
    value, event_dim = site["value"], site["fn"].event_dim
    if value.is_floating_point() and value.isnan().any() and (bad := value.isnan() & kept_entries(site)).any():
        raise ProgramError(
            f"site {name!r} draws NaN {in_rows(site, whole_events(bad, event_dim), first)}: the program puts out parameters "
            "that are not finite. Look at its weights, and at what it does to extreme values."
        )


def invalid_parameters(fn: Any) -> Iterator[tuple[str, str, float, Tensor, Any]]:
    """Yield distribution, parameter, an invalid value, where in the batch shape of `fn`, and what it should satisfy."""
    for layer in layers(fn):
        declared = layer.arg_constraints if hasattr(layer, "arg_constraints") else {}
        for name, constraint in declared.items():
            value = vars(layer).get(name)
            if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
                continue
            wrong = out_of_bounds(value, constraint)
            if wrong.any():
                dims = constraint.event_dim + fn.event_dim - layer.event_dim
                yield type(layer).__name__, name, float(value[wrong][0]), whole_events(wrong, dims), constraint


def out_of_bounds(value: Tensor, constraint: Any) -> Tensor:
    """Where a parameter lies beyond the bounds of its constraint, or is no whole number; never where it is NaN.

    The end of an open bound passes, where a network's exp has underflowed; and so does a sum that rounding takes from 1.
    """
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    low, high = (getattr(constraint, f"{end}_bound", None) for end in ("lower", "upper"))
    low = 0.0 if isinstance(constraint, type(constraints.simplex)) else low
    wrong = torch.zeros_like(value, dtype=torch.bool)
    wrong = wrong if low is None else wrong | (value < low)
    wrong = wrong if high is None else wrong | (value > high)
    whole = constraint.is_discrete and value.is_floating_point()
    return wrong | ((value % 1 != 0) & value.isfinite()) if whole else wrong


def whole_events(mask: Tensor, event_dim: int) -> Tensor:
    """Whether a mask holds anywhere in an event, of `event_dim` dimensions on the right."""
    return mask.flatten(-event_dim).any(-1) if event_dim and mask.dim() >= event_dim else mask


def in_rows(site: Any, wrong: Tensor, first: int = 0) -> str:
    """Name up to five rows where a mask in the batch shape of a site holds."""
    frames = frames_of(site)
    frame = frames.get("data") or next(iter(frames.values()), None)
    if frame is None or frame.dim is None or wrong.dim() < -frame.dim:
        return "in every row"
    by_row = wrong.movedim(frame.dim, 0).reshape(wrong.shape[frame.dim], -1).any(1)
    return f"in rows {[first + row for row in by_row.nonzero().flatten()[:5].tolist()]}"
