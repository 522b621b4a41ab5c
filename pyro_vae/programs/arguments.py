"""What programs take whole numbers as: an embedding wants token ids as they are, a linear layer wants counts as floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.widen import HALF
from pyro_vae.data.arrays import Dtypes, convert, head_of, integer_dtype, real_array
from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.errors import PyroVAEError

from .determinism import same_terms
from .pair import like_parameters, quiet
from .parameters import store_restored
from .sites import Program, sample_sites
from .unconditioned import undone

ROWS = 8  # that are tried
EXACT = {torch.float64: 2**53, torch.float32: 2**24, torch.float16: 2**11, torch.bfloat16: 2**8}
Terms = dict[str, Tensor]


def argument_dtypes(
    model: Program, guide: Program | None, *args: Any, device: torch.device | str | None = None
) -> Dtypes | None:
    """Choose, where x or a context holds whole numbers, what they are converted to; None is the default of each.

    By default x is converted to the dtype of the parameters, and contexts of whole numbers (labels) stay what they are. A pair
    that does not run on a few rows of that is tried with all whole numbers as they are (x as int64), then with none. Where the
    programs run on either and score the same values otherwise, or floats do not hold the numbers exactly, x stays whole, as
    :func:`~pyro_vae.log_weights` takes it. If the pair runs on nothing, the default stands, and the pair's checks say why.

    Parameters in half precision do not round x where the programs run on float32 (layers in bfloat16 that cast what they are
    given): log p is of x as it came.

    Args:
        model, guide: the programs; without a guide the model alone is tried, and what it draws decides, too.
        *args: x and its contexts, of N rows each, before conversion.
        device: where they will be; that of the parameters by default.
    """
    try:
        kinds = [integer_dtype(head_of(a, ROWS)) for a in args]
        like = like_parameters(model, guide)
        floats = torch.get_default_dtype() if like is None else like.dtype
        if not any(kinds) and floats not in HALF:
            return None
        target = device if device is not None or like is None else like.device
        rows = [
            convert(head_of(a, ROWS), "x", kind, target, missing=True)[0] for a, kind in zip(args, kinds, strict=True)
        ]
    except PyroVAEError:
        return None  # no rows: the conversion of all of them says so
    wide = floats in HALF and Trial(model, guide, torch.float32).takes_floats(rows)
    floats = torch.float32 if wide else floats
    chosen: Dtypes | None = None
    if any(kinds):
        chosen = Trial(model, guide, floats).choose(rows, exact=kinds[0] is None or holds(args[0], floats))
    if not wide:
        return chosen
    first, *rest = chosen or (None,) * len(args)
    return (
        first or floats,
        *(dtype or (None if kind else floats) for dtype, kind in zip(rest, kinds[1:], strict=True)),
    )


def holds(x: Any, floats: torch.dtype) -> bool:
    """Return whether a float dtype holds all of these whole numbers."""
    limit = EXACT.get(floats, 0)
    if isinstance(x, LazyRows):
        if x.source_dtype.kind != "b" and np.iinfo(x.source_dtype).max > limit:
            return all(
                float(part.abs().max()) <= limit for part in x.converted(torch.float64, None, False, "x").chunks()
            )
        return True
    numbers = x if isinstance(x, Tensor) else real_array(x, "x")
    if isinstance(numbers, Tensor) and numbers.dtype in (
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ):  # torch has no maximum of them
        numbers = numbers.to(torch.int64)
    return max(abs(int(numbers.max())), abs(int(numbers.min()))) <= limit


class Trial:
    """A few rows, given to the programs as floats and as whole numbers."""

    def __init__(self, model: Program, guide: Program | None, floats: torch.dtype) -> None:
        self.model, self.guide, self.floats = model, guide, floats

    def choose(self, rows: list[Tensor], exact: bool) -> Dtypes | None:
        """Return the dtypes of :func:`argument_dtypes`, for these first rows."""
        whole: Dtypes = (None if rows[0].is_floating_point() else torch.int64, *[None] * (len(rows) - 1))
        none: Dtypes = (self.floats,) * len(rows)
        with_labels = (rows[0].to(self.floats), *rows[1:])
        first = self.run(with_labels)
        if whole[0] is not None:
            other = self.run((rows[0].to(torch.int64), *rows[1:]), first)
            if other is not None and (first is None or not exact or not same_terms(first[1], other[1])):
                return whole
            if other is not None and self.guide is None and self.draws_whole(rows):
                return whole
        if first is None and self.run(tuple(r.to(self.floats) for r in rows)) is not None:
            return none
        return None

    def takes_floats(self, rows: list[Tensor]) -> bool:
        """Return whether the pair runs on these rows in its floats, whole numbers of contexts left as they are."""
        first, *rest = rows
        return (
            self.run((first.to(self.floats), *(r.to(self.floats) if r.is_floating_point() else r for r in rest)))
            is not None
        )

    def draws_whole(self, rows: list[Tensor]) -> bool:
        """Return whether the model draws whole numbers where it observes: then a template of them is one of its draws."""
        with quiet(self.model, seed=0, device=rows[0].device):
            sites = sample_sites(poutine.trace(undone(self.model)).get_trace(*rows))
        values = [site["value"] for site in sites.values() if site["infer"].get("was_observed")]
        return all(torch.equal(value, value.round()) if value.is_floating_point() else True for value in values)

    def run(
        self, args: tuple[Tensor, ...], at: tuple[poutine.Trace, Terms] | None = None
    ) -> tuple[poutine.Trace, Terms] | None:
        """Score a draw of the pair, or the one of another run; None where it does not run, or draws other sites."""
        try:
            with quiet(self.model, self.guide, seed=0, device=args[0].device), store_restored():
                return self.score(args, None if at is None else at[0])
        except Exception:  # whatever a program raises on what it was not written for
            return None

    def score(self, args: tuple[Tensor, ...], at: poutine.Trace | None) -> tuple[poutine.Trace, Terms]:
        """Return the log-probabilities of all sites by program and name, and the draw that they are of."""
        guide = self.guide or self.model
        q = poutine.trace(guide if at is None else poutine.replay(guide, trace=at)).get_trace(*args)
        p = poutine.trace(poutine.replay(self.model, trace=q)).get_trace(*args)
        sites = [(program, name, site) for program, t in (("q", q), ("p", p)) for name, site in sample_sites(t).items()]
        return q, {f"{program} {name}": site["fn"].log_prob(site["value"]) for program, name, site in sites}
