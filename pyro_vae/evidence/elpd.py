"""Evidence as ArviZ has the expected log pointwise predictive densities of its own methods."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.optional import imported
from pyro_vae.errors import DataError

from .estimate import LogPx


def to_elpd(estimate: LogPx) -> Any:
    r"""log p(x_n) as an ``ELPDData`` of arviz-stats: for ``compare``, ``plot_compare`` and ``plot_khat`` of ArviZ.

    Its ``elpd_i`` are log p(x_n), of rows that no parameter was fitted to, which is what ArviZ's leave-one-out estimates;
    ``elpd`` is their *sum* and ``se`` its data error, √N times the standard deviation with divisor N, so √((N − 1) / N) times
    that of ``summary()`` for N rows; ``p`` is 0. Errors of Monte Carlo are in neither, and are not carried over.

    Raises:
        MissingExtraError: arviz-stats is not installed.
        DataError: a row whose log p(x) is not finite.

    Example:
        >>> from pyro_vae import Exact
        >>> from pyro_vae.common.optional import installed
        >>> known = Exact.without_error(torch.tensor([-4.0, -2.0]).double(), "closed form", "continuous", "")
        >>> to_elpd(known).elpd if installed("arviz_stats") else -6.0
        -6.0
    """
    utils = imported("arviz_stats.utils", "arviz", "to_elpd")
    xarray = imported("xarray", "arviz", "to_elpd")
    log_px = estimate.log_px.detach().cpu().double()
    if bad := (~log_px.isfinite()).nonzero().flatten().tolist():
        raise DataError(
            f"log p(x) is not finite in {len(bad)} of {len(log_px)} rows, the first {bad[:5]}: no sum survives it"
        )
    khat: Tensor | None = getattr(estimate, "khat", None)
    flagged = len(getattr(estimate, "flagged", ()))
    made_as = getattr(utils, "ELPDDataLOO", None) or utils.ELPDData
    named = {"kind": "loo"} if "kind" in signature(made_as).parameters else {}  # arviz-stats 1.3 says it by the class

    def rows(values: Tensor) -> Any:
        return xarray.DataArray(values.detach().cpu().double().numpy(), dims=("data",))

    threshold = getattr(estimate, "threshold", None)
    return made_as(
        **named,
        elpd=log_px.sum().item(),
        se=(len(log_px) * log_px.var(correction=0)).sqrt().item(),
        p=0.0,
        n_samples=int(getattr(estimate, "num_samples", 1)),
        n_data_points=len(log_px),
        scale="log",
        warning=bool(flagged),
        good_k=0.7 if threshold is None else float(threshold.max()),
        elpd_i=rows(log_px),
        pareto_k=rows(torch.zeros_like(log_px) if khat is None else khat),
    )
