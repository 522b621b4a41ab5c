"""Whether a model asks a number of the latents of all rows: a branch that seldom fires couples rows that nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .row_coupling import LOOP, first_coupled, of_rows, scores_of_part
from .row_reads import RowReads
from .sites import Site, latent_sites, sample_sites, with_values
from .unconstrained import bijection, support_of
from .vectorize import ParticleDistribution, particle_of

SHIFTS = (3.0, -3.0, 8.0, -8.0)  # on the real line, in units of the largest draw there, or of 1
CODES = 16  # values of a discrete latent, at most, that the other row is set to


def why_latents_are_coupled(problem: Any, draws: poutine.Trace, particles: int) -> str | None:
    """Say why a model is refused whose density of a row is another where a latent of the row beside it is far away.

    A model that computes with latents entry by entry cannot be of this kind. So only where a value that was computed from
    latents leaves torch (``if (z > 3).any()``, ``z.max().item()``) are those of the second row moved, up and down.

    Args:
        problem: of two rows.
        draws: latents of them, ``(K, ..., 2, ...)``.
        particles: K.
    """
    one, at = replace(problem, vectorizing=LOOP), particle_of(draws, 0, particles)
    latents = {name: site for name, site in latent_sites(sample_sites(at)).items() if site["value"].dim()}
    try:
        if not asks_latents(one, at, latents):
            return None
    except Exception:  # a program that does not run while it is watched: it is scored as it runs
        return None
    moved = {name: list(moved_second_row(site, problem.plates.dim)) for name, site in latents.items()}
    for i in range(max(map(len, moved.values()), default=0)):
        far = with_values(at, {name: values[i % len(values)] for name, values in moved.items() if values})
        try:
            beside = of_rows(one, one.model, one.trace(one.model, 1, far))
            alone = scores_of_part(problem, far, torch.zeros(1, dtype=torch.int64))
        except Exception:  # a check of the program's own, that refuses such latents
            continue
        if found := first_coupled({name: term[:, :1] for name, term in beside.items()}, alone):
            return coupled_by_latents(*found[:3])
    return None


def asks_latents(problem: Any, at: poutine.Trace, latents: dict[str, Site]) -> bool:
    """Return whether a value that the model, or a density in it, computes from latents leaves torch."""
    with RowReads([site["value"] for site in latents.values()]) as reads:
        for site in sample_sites(problem.trace(problem.model, 1, at)).values():
            with suppress(Exception):  # what cannot be scored is named by whoever scores it
                site["fn"].log_prob(site["value"])
    return reads.left


def moved_second_row(site: Site, row_dim: int) -> Iterator[Tensor]:
    """Yield values of a latent with those of the second row far away: shifted on the real line, or one of a list.

    Of a list the first row has another one each time, so that the two differ.
    """
    fn, value = site["fn"], site["value"]
    one = fn.parts[0] if isinstance(fn, ParticleDistribution) else fn
    dim = row_dim - fn.event_dim
    if value.dim() < -dim or value.shape[dim] < 2:
        return
    second = (torch.arange(value.shape[dim], device=value.device) == 1).reshape(-1, *[1] * (-dim - 1))
    try:
        if not support_of(fn).is_discrete:
            to_support = bijection(fn)
            u = to_support.inv(value)
            size = u.abs().max().clamp(min=1)
            pairs = [(value, to_support(u + shift * size)) for shift in SHIFTS]
        elif one.has_enumerate_support:
            codes = [code.expand_as(value).to(value) for code in one.enumerate_support(expand=False)[:CODES]]
            pairs = list(zip(codes[1:] + codes[:1], codes, strict=True))
        else:
            pairs = [(value, value + 5), (value, value + 50), (value, torch.zeros_like(value))]
    except (NotImplementedError, RuntimeError, ValueError):  # a support without a map from the real line
        return
    yield from (torch.where(second, other, first) for first, other in pairs)


def coupled_by_latents(site: str, beside: Tensor, alone: Tensor) -> str:
    """Describe a site whose log-probability of a row depends on the latents of other rows."""
    return (
        f"site {site!r} of the model has another log-probability for a row when a latent of another row is far away "
        f"({beside.sum().item():.4g} beside it, {alone.sum().item():.4g} alone): log p(x) does not split into rows, and "
        "particles do not either. The model asks one number of all of them (`if (z > 3).any()`, z.max(), z.tolist()). Fix: "
        "decide for each by itself, torch.where(z > 3, one, other)."
    )
