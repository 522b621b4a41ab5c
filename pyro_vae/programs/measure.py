"""Measure of a density, counting or length: log p(x) of different measures cannot be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, constraints

from .one_measure import UNNORMALISED
from .proposal_guide import as_written
from .sites import Program, observed_sites, trace_pair
from .support import support_of_site
from .wrapped import bare, base_name, elements

COUNTING = ("binary", "categories", "counts", "counts, dequantised")  # the last a bound, by Evidence.of_counts
DOMINATING = dict.fromkeys(COUNTING, "counting") | {"continuous": "Lebesgue"}
CATEGORIES = ("Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough")


def measure_of(model: Program, guide: Program, *args: Tensor) -> str:
    """Name what log p(x) is a density with respect to, judged by the supports of the observed sites.

    "binary", "categories" and "counts" are probabilities (log p(x) ≤ 0); "continuous" is a density per unit of x, which moves
    by log |scale| with each rescaled column; "score" is a term of no distribution (``pyro.factor``), which makes the sum no
    log-likelihood. Several are joined by " x ".
    One row of x and contexts is enough.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 3), bernoulli), Conditional(MLP(3, 2), normal))
        >>> measure_of(vae.model, vae.guide, torch.zeros(1, 3))
        'binary'
    """
    with torch.no_grad():
        _, sites = trace_pair(model, as_written(guide), *args)
    kinds = [kind for name, site in observed_sites(sites).items() for kind in measures_of(name, site["fn"])]
    return " x ".join(sorted(set(kinds)))


def dominating(measure: str) -> str:
    """Name the dominating measure, counting, length or both: numbers are comparable only under the same.

    Example:
        >>> dominating("binary"), dominating("counts"), dominating("binary x continuous")
        ('counting', 'counting', 'Lebesgue x counting')
    """
    return " x ".join(sorted({DOMINATING.get(kind, kind) for kind in measure.split(" x ")}))


def measures_of(name: str, fn: Any) -> list[str]:
    """Name the measures of the distribution of a site, block by block if it has blocks of columns; missing values aside."""
    if base_name(fn) in UNNORMALISED:
        return ["score"]
    support = bare(support_of_site(name, fn))
    if isinstance(part := elements(fn), MixtureSameFamily):
        return measures_of(name, part.component_distribution)
    if blocks := getattr(part, "blocks", None):
        return [kind for block in blocks for kind in measures_of(name, block)]
    if not support.is_discrete:
        return ["continuous"]
    if isinstance(support, type(constraints.boolean)):
        return ["binary"]
    return ["categories" if base_name(fn) in CATEGORIES else "counts"]
