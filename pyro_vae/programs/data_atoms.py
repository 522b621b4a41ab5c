"""Values that stand again and again in x: a density whose width is learned can be driven up on them without end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .findings import Finding
from .sites import Site
from .wrapped import elements, parts

LEAST = 16  # rows: fewer repeat values by chance
OFTEN = 0.2  # of the rows
NAMED = 5  # columns
PLACES = ("loc", "mean", "logits", "probs", "mixture_logits")  # parameters that place mass, and make no density narrow
WHY = "a density can be driven up there without end, so its log p(x) says little of the fit"
FIX = (
    "leave constant columns out; give counts and classes a likelihood of their own (columns([...]), categorical, poisson, "
    "discretized_logistic), or pass transform=dequantize(levels)"
)


def atoms_of(name: str, site: Site, rows: int) -> Iterator[Finding]:
    """Find columns of one value, of whole numbers, or with one value again and again, under a density that can narrow there.

    The site must have been run with gradients: a scale that nothing trains cannot narrow, and nothing is said of it.

    Example:
        >>> import pyro.distributions as dist
        >>> scale = torch.ones(20, 2, requires_grad=True)
        >>> x = torch.stack([torch.arange(20.0), torch.randn(20)], 1)
        >>> [found] = atoms_of("x", {"fn": dist.Normal(0.0, scale).to_event(1), "value": x}, 20)
        >>> print(found.what)
        of x column 0 holds whole numbers: a density can be driven up there without end, so its log p(x) says little of the fit
    """
    value = site["value"]
    if not (value.dim() > 0 and len(value) == rows >= LEAST):
        return
    x = value.detach().reshape(rows, -1).double()
    dense = narrowing(site["fn"]).to(x.device)
    if len(dense) not in (1, x.shape[1]) or not dense.any():
        return
    if told := repeated_values(x, dense.expand(x.shape[1])):
        yield Finding("atoms", f"site {name!r}", f"of x {told}: {WHY}", FIX, "warning")


def narrowing(fn: Any) -> Tensor:
    """Mark the elements of one event under densities whose width is trained; one entry for all, where they are alike."""
    fn = getattr(elements(fn), "base_dist", fn) if hasattr(getattr(elements(fn), "base_dist", None), "blocks") else fn
    blocks, widths = getattr(elements(fn), "blocks", None), getattr(elements(fn), "widths", None)
    if blocks is not None and widths is not None:
        return torch.cat([narrowing(block).expand(width) for block, width in zip(blocks, widths, strict=True)])
    try:
        dense = not fn.support.is_discrete
    except NotImplementedError:
        dense = False
    return torch.tensor([dense and is_trained(fn)])


def is_trained(fn: Any) -> bool:
    """Return whether gradients reach a parameter of a distribution that makes it narrow or wide."""
    tensors = ((n, v) for part in parts(fn) for n, v in vars(part).items() if isinstance(v, Tensor))
    return any(v.requires_grad for n, v in tensors if n.lstrip("_") not in PLACES)


def repeated_values(x: Tensor, dense: Tensor) -> str:
    """Describe the columns of ``(N, d)`` that repeat values, of those that are `dense`; "" where none does."""
    columns: dict[str, list[int]] = {
        "one value": [],
        "whole numbers": [],
        "one value in a fifth of the rows or more": [],
    }
    for i in dense.nonzero().flatten().tolist():
        known = x[:, i][~x[:, i].isnan()]
        if len(known) < LEAST:
            continue
        counts = known.unique(return_counts=True)[1]
        if len(counts) == 1:
            columns["one value"].append(i)
        elif bool((known == known.round()).all()):
            columns["whole numbers"].append(i)
        elif counts.max() >= OFTEN * len(known):
            columns["one value in a fifth of the rows or more"].append(i)
    return ", ".join(f"{numbered(found)} {what}" for what, found in columns.items() if found)


def numbered(found: list[int]) -> str:
    """Number some columns for a sentence."""
    if len(found) == 1:
        return f"column {found[0]} holds"
    more = f", … ({len(found)} in all)" if len(found) > NAMED else ""
    return f"columns {', '.join(map(str, found[:NAMED]))}{more} hold"
