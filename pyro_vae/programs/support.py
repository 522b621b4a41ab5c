"""Support of the likelihood: check that the data lies in it. Outside it there is no log-likelihood."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.common.mapped_files import mapped_files
from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.errors import ProgramError, ShapeError, SupportError

from .determinism import identical
from .masks import kept_entries
from .missing_values import TAKE_NAN, gaps, gaps_explained
from .pair import owners, quiet
from .plates import Plates, find_plates
from .proposal_guide import on_fewest_rows
from .site_rows import frames_of
from .sites import Program, Site, observed_sites, trace_pair
from .user_errors import advise_on_shapes
from .wrapped import base_name

Batch = tuple[Tensor, ...]
MASK = TAKE_NAN  # the advice on missing values


def takes_missing(*things: Any) -> bool:
    """Return whether a module of these programs declares (``takes_missing = True``) that NaN in x means missing."""
    return any(getattr(m, "takes_missing", False) for owner in owners(*things) for m in owner.modules())


def check_support(
    model: Program,
    guide: Program,
    *args: Tensor,
    chunk_size: int = 2000,
    prepare: Callable[[Batch], Batch] | None = None,
    numbers: Sequence[int] | None = None,
    plates: Plates | None = None,
) -> frozenset[str]:
    """Run the pair once over all rows and check each observed value: its shape, and the support of its distribution.

    Returns the names of the observed sites. A support that moves with the latents (``Binomial(n, p)`` of a latent n) excludes
    no data, but some latents: there log p(x | z) is −∞, and nothing is refused.

    Args:
        model, guide, *args: as for :func:`~pyro_vae.log_weights`.
        chunk_size: rows at a time.
        prepare: the transform of a batch before training (dynamic binarization).
        numbers: the rows' numbers in messages; their position, from 0, by default.
        plates: of the pair, where sites outside its data plate are allowed; those are not looked at.

    Raises:
        ShapeError: an observed value of another shape than its distribution, which would broadcast in silence.
        SupportError: values outside the support, or on an edge of it where the density is zero or infinite (0 and 1 under
            Beta); names the site, the rows, one value, the least and the largest of all, and the way out.
        ProgramError: a pair that cannot be treated row by row, or a guide that turns missing values into NaN latents.
    """
    prepare, numbers = prepare or (lambda batch: batch), range(len(args[0])) if numbers is None else numbers
    outside: dict[str, list[int]] = defaultdict(list)  # rows by site, as `blind`
    blind: dict[str, list[int]] = defaultdict(list)
    examples: dict[str, tuple[Site, int, int]] = {}
    spans: dict[str, Span] = {}
    files = mapped_files(args) if len(args[0]) > chunk_size else ()
    with quiet(model, guide):
        # copies, so that a program that writes into x is refused before it reaches x
        find = lambda *some: find_plates(model, guide, *prepare(tuple(a.clone() for a in some)))  # noqa: E731
        seen = (
            tuple(a[:1] for a in args) if any_lazy(*args) else args
        )  # of rows on disk those that the plates are found by
        with gaps_explained(model, guide, seen, numbers):
            plates, least = (plates, 1) if plates is not None else on_fewest_rows(find, guide, args)
        dim, chunk_size = plates.dim, max(chunk_size, least)
        for start in range(0, len(args[0]), chunk_size):
            for file in files:
                file.check()
            batch = prepare(tuple(a[start : start + chunk_size] for a in args))
            with gaps_explained(model, guide, batch, numbers[start : start + chunk_size]):
                latents, sites = (of_rows(found, plates.data) for found in trace_pair(model, guide, *batch))
            for name, row in nan_latents(batch, latents, dim):
                blind[name].append(int(numbers[row + start]))
            for name, site in observed_sites(sites).items():
                rows = (~rows_inside(name, site, dim)).nonzero().flatten().tolist()
                spans[name] = span(site["value"], spans.get(name))
                if rows and not moves(name, site, model, guide, batch):
                    outside[name] += [int(numbers[row + start]) for row in rows]
                    examples.setdefault(name, (site, dim, rows[0]))
    for name, rows in outside.items():
        raise SupportError(describe(name, *examples[name], rows, len(args[0]), spans[name]) + FITTING)
    for name, rows in blind.items():
        raise ProgramError(f"site {name!r}: the guide draws NaN for rows {rows[:5]}, which have missing values. {MASK}")
    return frozenset(spans)


def of_rows(sites: dict[str, Site], data: str) -> dict[str, Site]:
    """Select the sites in the data plate."""
    return {name: site for name, site in sites.items() if data in frames_of(site)}


PROBES = 4  # further draws of the latents, by which a support that moves with them is told from a fixed one


def moves(name: str, site: Site, model: Program, guide: Program, batch: Batch) -> bool:
    """Return whether the support of an observed site has other bounds at other latents, drawn from prior and guide."""
    bounds = bounds_of(support_of_site(name, site["fn"]))
    if not any(isinstance(bound, Tensor) for bound in bounds):
        return False
    for i in range(PROBES):
        trace = poutine.trace(model).get_trace(*batch) if i % 2 else None
        again = trace.nodes[name] if trace is not None else trace_pair(model, guide, *batch)[1][name]
        others = bounds_of(support_of_site(name, again["fn"]))
        if len(others) != len(bounds) or not all(map(same_bound, bounds, others)):
            return True
    return False


def bounds_of(support: Any) -> list[Any]:
    """List the numbers and tensors that a support is made of."""
    if isinstance(support, list | tuple):
        return [bound for part in support for bound in bounds_of(part)]
    if isinstance(support, constraints.Constraint):
        return bounds_of(list(vars(support).values()))
    return [support] if isinstance(support, Tensor | float | int) else []


def same_bound(a: Any, b: Any) -> bool:
    """Compare two bounds."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return identical(a, b)
    return type(a) is type(b) and bool(a == b)


def nan_latents(args: Batch, sites: dict[str, Site], dim: int) -> list[tuple[str, int]]:
    """Find sites of the guide and rows, where x or a context has missing values and the draw of z is NaN."""
    missing = gaps(*args)
    if not missing.any():
        return []
    drawn = {name: site["value"].isnan().movedim(dim - site["fn"].event_dim, 0) for name, site in sites.items()}
    blind = {name: missing & nan.reshape(len(nan), -1).any(1) for name, nan in drawn.items()}
    return [(name, row) for name, rows in blind.items() for row in rows.nonzero().flatten().tolist()]


def rows_inside(name: str, site: Site, dim: int) -> Tensor:
    """Check which rows of an observed site lie in the support, ``(N,)``; a ProgramError where it declares none."""
    value, fn = site["value"], site["fn"]
    if value.shape != fn.shape():
        raise ShapeError(
            f"site {name!r}: the data has shape {tuple(value.shape)}, its distribution {tuple(fn.shape())} (batch "
            f"{tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}). {advise_on_shapes(value.shape, fn)}"
        )
    inside = allowed_where_kept(site, support_of_site(name, fn))
    return inside.movedim(dim, 0).flatten(1).all(1) if inside.dim() > 1 else inside


def allowed_where_kept(site: Site, support: Any) -> Tensor:
    """:func:`allowed`, of the entries that no mask leaves out: the others are no data, whatever stands there."""
    kept, dims = kept_entries(site), 0
    if kept.all():
        return allowed(site, support)
    while isinstance(support, constraints.independent):
        support, dims = support.base_constraint, dims + support.reinterpreted_batch_ndims
    kept = kept.flatten(-support.event_dim).any(-1) if support.event_dim else kept
    inside = allowed(site, support) | ~kept
    return inside.flatten(-dims).all(-1) if dims else inside


FITTING = " pyro_vae.likelihoods.fitting(x) lists the families that fit."
EDGES = {"Beta": (0.0, 1.0), "Dirichlet": (0.0,)}  # torch's support holds them; the density there is zero or infinite
OPEN = {
    "Beta": "squeeze x into the open interval, as in (x (n - 1) + 0.5) / n, or choose a likelihood with mass there.",
    "Dirichlet": "replace zeros by a little more (x + 0.5 / n, divided by its sum), or model the counts (multinomial).",
}
Span = tuple[float, float]


def support_of_site(name: str, fn: Any) -> Any:
    """Look up the support that a site's distribution declares; a ProgramError that names the site if it declares none."""
    try:
        return fn.support
    except (NotImplementedError, AttributeError) as error:
        raise ProgramError(
            f"site {name!r}: {base_name(fn)} does not say what its support is. Give its class one, as in "
            "support = pyro.distributions.constraints.real_vector."
        ) from error


def allowed(site: Site, support: Any) -> Tensor:
    """Return which values of a site have a density: those in the support, without its open edges."""
    value, inside = site["value"], support.check(site["value"])
    if not (edges := EDGES.get(base_name(site["fn"]))):
        return inside
    return inside & ~torch.isin(value, torch.tensor(edges).to(value)).unsqueeze(-1).flatten(inside.dim()).any(-1)


def span(value: Tensor, so_far: Span | None = None) -> Span:
    """Return the least and the largest value, NaN left out."""
    known = value[~value.isnan()]
    low, high = so_far or (float("inf"), float("-inf"))
    return (min(low, known.min().item()), max(high, known.max().item())) if known.numel() else (low, high)


def describe(name: str, site: Site, dim: int, row: int, rows: list[int], total: int, extent: Span | None = None) -> str:
    """Describe the values and rows outside, and the way out; `extent` spans all rows, where the site holds but some."""
    fn, support = site["fn"], site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    observed = getattr(support, "observed", support)
    content, advice = "is one", next((text for kind, text in ADVICE.items() if isinstance(observed, kind)), REPAIR)
    if support.event_dim == 0:
        content, advice = _value(site, dim, row, support, advice)
    elif support.event_dim == 1 and not hasattr(support, "supports"):
        content, advice = _vector(site, dim, row, advice)
    edges, excluded = EDGES.get(base_name(fn)), ""
    if edges and (support.event_dim or bool(support.check(torch.tensor(edges, device=site["value"].device)).all())):
        excluded = ", both excluded" if len(edges) > 1 else f", {edges[0]:g} excluded"
    first_rows = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    low, high = extent or span(site["value"])
    return (
        f"site {name!r}: {len(rows)} of {total} rows lie outside the support of {base_name(fn)} ({format_support(support)}"
        f"{excluded}): row {rows[0]} {content} (rows {first_rows}; values go from {low:g} to {high:g}). {advice}"
    )


def _value(site: Site, dim: int, row: int, support: Any, advice: str) -> tuple[str, str]:
    """Describe the first value of a row outside a support that is checked value by value, and the way out."""
    pair = torch.stack([site["value"], allowed(site, support).to(site["value"])])
    value, inside = pair.movedim(dim - site["fn"].event_dim, 1)[:, row].reshape(2, -1)
    column = int((inside == 0).nonzero()[0])
    if value[column].isnan():
        advice = "Wrap the likelihood in SkipMissing, or drop these rows."
    elif value[column].item() in EDGES.get(base_name(site["fn"]), ()):
        advice = f"The density there is zero or infinite: {OPEN[base_name(site['fn'])]}"
    return f"holds {value[column].item():g}{f' in column {column}' if site['value'].dim() > 1 else ''}", advice


def _vector(site: Site, dim: int, row: int, advice: str) -> tuple[str, str]:
    """Describe a row outside a support of whole vectors, and the way out."""
    fn = site["fn"]
    vectors = site["value"].movedim(dim - fn.event_dim, 0)[row].reshape(-1, fn.event_shape[-1])
    inside = fn.support.check(site["value"]).movedim(dim, 0)[row].flatten()
    if inside.all():
        return f"holds {EDGES[base_name(fn)][0]:g}", f"The density there is zero or infinite: {OPEN[base_name(fn)]}"
    first = vectors[int((~inside).nonzero()[0])]
    least = f", its least value is {first.min().item():g}" if first.min() < 0 else ""
    return f"sums to {first.sum().item():g}{least}", advice


WORDS = {
    type(constraints.boolean): "0 or 1",
    type(constraints.real): "finite numbers",
    type(constraints.simplex): "numbers from 0 that sum to 1",
    type(constraints.sphere): "vectors of length 1",
    type(constraints.one_hot): "one-hot vectors",
    constraints.integer_interval: "whole numbers {lower:g} to {upper:g}",
    type(constraints.nonnegative_integer): "whole numbers from {lower:g}",
    type(constraints.positive): "numbers above {lower:g}",
    type(constraints.nonnegative): "numbers from {lower:g}",
    type(constraints.unit_interval): "numbers {lower:g} to {upper:g}",
}
ADVICE = {
    type(constraints.boolean): "Grey values have no Bernoulli likelihood: binarize them (pyro_vae.binarize, or "
    "--binarization dynamic), or choose a likelihood whose support they lie in.",
    constraints.integer_interval: "Give values in that range, or widen it: the largest value is binomial's total_count, "
    "categorical's num_classes - 1, discretized_logistic's levels - 1.",
}
REPAIR = "Remove or repair these rows, or choose a likelihood whose support they lie in."


def format_support(support: Any) -> str:
    """Describe a support in words."""
    if hasattr(support, "observed"):
        return f"{format_support(support.observed)}, or NaN where missing"
    words = next((words for kind, words in WORDS.items() if isinstance(support, kind)), str(support))
    ends = {end: torch.as_tensor(getattr(support, f"{end}_bound", 0)).max().item() for end in ("lower", "upper")}
    return words.format(**ends)
