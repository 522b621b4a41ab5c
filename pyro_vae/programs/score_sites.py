"""Log-probabilities of sites, row by row: of valid parameters, inside supports."""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Mapping
from functools import reduce
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.common.doubts import putting_off

from .log_density import bounded, fixed, inside_density, known_support
from .plates import Plates, sum_rows
from .sites import Site
from .valid_parameters import check_site_parameters
from .wide_scoring import check_digits, wide_enough, wide_log_prob


def row_log_prob(name: str, site: Site, plates: Plates, scale: Any = 1.0) -> Tensor:
    """Return one site's log-probability times `scale`, summed over inner plates: ``(K, N)``; no support is looked at."""
    log_prob = wide_log_prob(site["fn"], site["value"], not site["is_observed"], name)
    return sum_rows(name, scale_and_mask(log_prob, scale=scale, mask=site["mask"]), plates)


def row_log_density(name: str, site: Site, plates: Plates, checked: bool = False, scale: Any = 1.0) -> Tensor:
    """Return one site's :func:`log_density` times `scale`, summed over inner plates and masked: ``(K, N)``.

    `checked`: the site's value was found in its support before; only a support that moves with the latents is checked again.
    What cancels in float32 is scored, and summed, in float64.
    """
    latent = not site["is_observed"]
    fn, value = wide_enough(site["fn"], site["value"], latent, name)
    as_it_is = not bounded(fn, latent) or (checked and fixed(known_support(fn, latent)))
    log_prob = fn.log_prob(value) if as_it_is else inside_density(fn, value, latent)
    check_digits(fn, log_prob, name)
    if isinstance(scale, float | int) and scale == 0:
        log_prob = torch.zeros_like(log_prob)  # 0 · −∞ would be NaN
    return sum_rows(name, scale_and_mask(log_prob, scale=scale, mask=site["mask"]), plates)


def score_sites(
    sites: Mapping[str, Site],
    plates: Plates,
    *,
    first: int = 0,
    program: str = "",
    checked: Container[str] = (),
    scales: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Score sites at their values, ``(K, N)`` each, inside their supports; a ProgramError for invalid parameters.

    Where a latent of these sites lies outside its support p(z) is 0, and what the program computes from it counts for
    nothing: invalid parameters there are no error, and NaN is −∞.

    Args:
        first: number of the first row, for messages.
        program: "model" or "guide", likewise.
        checked: sites whose data was found in its support.
        scales: a factor by site.
    """
    weights = scales or {}
    terms = {n: row_log_density(n, site, plates, n in checked, weights.get(n, 1.0)) for n, site in sites.items()}
    finite = all(map(surely_finite, terms.values()))
    nowhere = () if finite else [terms[n] == -math.inf for n, site in sites.items() if not site["is_observed"]]
    dead = reduce(operator.or_, nowhere) if nowhere else None
    check_site_parameters(sites, plates.dim, first=first, program=program, dead=dead, plates=plates, finite=finite)
    if dead is None:
        return terms
    return {name: torch.where(dead & term.isnan(), -math.inf, term) for name, term in terms.items()}


def surely_finite(term: Tensor) -> bool:
    """Return whether all entries are finite, where nothing needs to wait for it: then their sum is."""
    if putting_off() or term.device.type != "cpu":
        return False
    return math.isfinite(term.detach().sum().item())
