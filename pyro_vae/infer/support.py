"""Is the data inside the likelihood's support? Outside it there is no log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.errors import ProgramError, PyroVAEError, ShapeError, SupportError

from .programs import evaluation_mode, owners, without_validation
from .weights import Plates, Program, Site, find_plates, trace_pair

Batch = tuple[Tensor, ...]


def takes_missing(*things: Any) -> bool:
    """Whether a module of these programs says (``takes_missing = True``) that NaN in x stands for what is missing."""
    return any(getattr(m, "takes_missing", False) for owner in owners(*things) for m in owner.modules())


def check_support(
    model: Program,
    guide: Program,
    *args: Tensor,
    chunk_size: int = 2000,
    prepare: Callable[[Batch], Batch] | None = None,
    numbers: Sequence[int] | None = None,
) -> None:
    """Runs the pair once over all rows and checks each observed value: its shape, and the support of its distribution.

    Args:
        model: as for :func:`~pyro_vae.log_weights`.
        guide: likewise.
        *args: x of shape ``(N, *event)`` and contexts with N rows.
        chunk_size: rows at a time.
        prepare: what a batch goes through before it is trained on (dynamic binarization).
        numbers: what the message calls the rows; their position, from 0, by default.

    Raises:
        ShapeError: an observed value of another shape than its distribution, which would broadcast in silence.
        SupportError: values outside the support, or on an edge of it where the density is zero or infinite (0 and 1 under
            Beta); names the site, the rows, one value, the least and the largest of all, and the way out.
        ProgramError: a pair that cannot be treated row by row, or a guide that turns missing values into NaN latents.
    """
    prepare = prepare or (lambda batch: batch)
    with evaluation_mode(model, guide), without_validation():
        dim = plates_of_one_row(model, guide, *prepare(tuple(a[:1] for a in args))).dim
        bad: dict[str, list[int]] = {}
        blind: dict[str, list[int]] = {}
        examples: dict[str, tuple[Site, int, int]] = {}
        spans: dict[str, Span] = {}
        for start in range(0, len(args[0]), chunk_size):
            batch = prepare(tuple(a[start : start + chunk_size] for a in args))
            latents, sites = trace_pair(model, guide, *batch)
            for name, row in nan_latents(batch[0], latents, dim):
                blind.setdefault(name, []).append(row + start if numbers is None else int(numbers[row + start]))
            for name, site in sites.items():
                if not site["is_observed"]:
                    continue
                inside = rows_inside(name, site, dim)
                spans[name] = span(site["value"], spans.get(name))
                if not inside.all():
                    rows = (~inside).nonzero().flatten()
                    said = [int(r if numbers is None else numbers[r]) for r in (rows + start).tolist()]
                    bad.setdefault(name, []).extend(said)
                    examples.setdefault(name, (site, dim, int(rows[0])))
    for name, where in bad.items():
        raise SupportError(describe(name, *examples[name], where, len(args[0]), spans[name]))
    for name, where in blind.items():
        raise ProgramError(
            f"site {name!r}: the guide draws NaN for rows {where[:5]}, which have missing values. {MASK}"
        )


MASK = "Give it an encoder that takes NaN: WithMask(net), whose net has 2 d inputs where x has d columns."


def nan_latents(x: Tensor, sites: dict[str, Site], dim: int) -> list[tuple[str, int]]:
    """Sites of the guide and rows of x, where x has missing values and the draw of z is NaN."""
    missing = x.isnan().flatten(1).any(1) if x.dim() > 1 else x.isnan()
    if not missing.any():
        return []
    drawn = {name: site["value"].isnan().movedim(dim - site["fn"].event_dim, 0) for name, site in sites.items()}
    return [
        (name, row)
        for name, nan in drawn.items()
        for row in (missing & nan.reshape(len(nan), -1).any(1)).nonzero().flatten().tolist()
    ]


def plates_of_one_row(model: Program, guide: Program, *args: Tensor) -> Plates:
    """`find_plates`, with what torch or Pyro say of data that the programs cannot take put down to the data's shape."""
    try:
        return find_plates(model, guide, *args)
    except PyroVAEError:
        raise
    except (ValueError, RuntimeError) as error:
        shape = tuple(args[0].shape[1:])
        raise ShapeError(
            f"the programs do not run on a row of shape {shape}. Give x the shape that they take. They said: {error}"
        ) from error


def rows_inside(name: str, site: Site, dim: int) -> Tensor:
    """Which rows of an observed site lie in the support, ``(N,)``."""
    value, fn = site["value"], site["fn"]
    if value.shape != fn.shape():
        raise ShapeError(
            f"site {name!r}: the data has shape {tuple(value.shape)}, its distribution {tuple(fn.shape())} (batch "
            f"{tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}). Give x the shape of what the likelihood generates."
        )
    inside = allowed(site, fn.support)
    other = [d for d in range(-inside.dim(), 0) if d != dim]
    return inside.movedim(dim, 0).flatten(1).all(1) if other else inside


EDGES = {"Beta": (0.0, 1.0)}  # torch's support holds them, but the density there is zero or infinite
OPEN = (
    "squeeze x into the open interval, as in (x (n - 1) + 0.5) / n for [0, 1], or choose a likelihood with mass there."
)
Span = tuple[float, float]


def base_name(d: Any) -> str:
    """The class of a distribution, to_event and masks looked through."""
    while hasattr(d, "base_dist"):
        d = d.base_dist
    return type(d).__name__


def allowed(site: Site, support: Any) -> Tensor:
    """Which values of a site have a density: those in the support, its open edges left out."""
    value, inside = site["value"], support.check(site["value"])
    if not (edges := EDGES.get(base_name(site["fn"]))):
        return inside
    edge = torch.isin(value, torch.tensor(edges).to(value))
    return inside & ~edge.unsqueeze(-1).flatten(inside.dim()).any(-1)


def span(value: Tensor, so_far: Span | None = None) -> Span:
    """The least and the largest value, NaN left out."""
    known = value[~value.isnan()]
    low, high = so_far or (float("inf"), float("-inf"))
    return (min(low, known.min().item()), max(high, known.max().item())) if known.numel() else (low, high)


def describe(name: str, site: Site, dim: int, row: int, rows: list[int], total: int, whole: Span | None = None) -> str:
    """What came, what was wanted, which rows, how to go on; `whole` is the span of all rows, if the site has not them all."""
    fn, support = site["fn"], site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    holds, advice = "is one", _advice(getattr(support, "observed", support))
    if support.event_dim == 0:
        holds, advice = _value(site, dim, row, support, advice)
    elif isinstance(support, type(constraints.simplex)):
        sums = site["value"].movedim(dim - fn.event_dim, 0)[row].sum(-1).flatten()
        holds = f"sums to {sums[(sums - 1).abs().argmax()].item():g}"
    listed = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    low, high = whole or span(site["value"])
    return (
        f"site {name!r}: {len(rows)} of {total} rows lie outside the support of {base_name(fn)} ({_say(support)}"
        f"{_excluded(fn, support)}): row {rows[0]} {holds} (rows {listed}; values go from {low:g} to {high:g}). {advice}"
    )


def _value(site: Site, dim: int, row: int, support: Any, advice: str) -> tuple[str, str]:
    """The first value of a row that is outside a support which is checked value by value, and what to do about it."""
    pair = torch.stack([site["value"], allowed(site, support).to(site["value"])])
    value, inside = pair.movedim(dim - site["fn"].event_dim, 1)[:, row].reshape(2, -1)
    column = int((inside == 0).nonzero()[0])
    if value[column].isnan():
        advice = "Wrap the likelihood in SkipMissing, or drop these rows."
    elif value[column].item() in EDGES.get(base_name(site["fn"]), ()):
        advice = f"The density there is zero or infinite: {OPEN}"
    return f"holds {value[column].item():g}{f' in column {column}' if site['value'].dim() > 1 else ''}", advice


def _excluded(fn: Any, support: Any) -> str:
    """What a support forgets to say of its edges."""
    edges = EDGES.get(base_name(fn))
    return ", both excluded" if edges and bool(support.check(torch.tensor(edges)).all()) else ""


def _say(support: Any) -> str:
    if hasattr(support, "observed"):
        return f"{_say(support.observed)}, or NaN where missing"
    if isinstance(support, type(constraints.boolean)):
        return "0 or 1"
    if isinstance(support, constraints.integer_interval):
        low, high = (torch.as_tensor(b).max().item() for b in (support.lower_bound, support.upper_bound))
        return f"whole numbers {low:g} to {high:g}"
    return str(support)


def _advice(support: Any) -> str:
    if isinstance(support, type(constraints.boolean)):
        return (
            "Grey values have no Bernoulli likelihood: binarize them (pyro_vae.binarize, or --binarization dynamic), "
            "or choose a likelihood whose support they lie in."
        )
    if isinstance(support, constraints.integer_interval):
        return (
            "Give counts in that range, or choose another likelihood (binomial takes total_count, the largest count)."
        )
    return "Remove or repair these rows, or choose a likelihood whose support they lie in."
