"""Evidence in numbers: means over rows with their errors, and what the weights say of whether these are to be believed."""

from __future__ import annotations

from typing import Any

from pyro_vae.evidence.estimate import apart_se, data_se, digest_of_rows, finite, known, mean_se

from .pareto import LOW_ESS


def summarize_evidence(evidence: Any) -> dict[str, Any]:
    """Average the numbers of :class:`~pyro_vae.Evidence` over its rows: what its `summary` returns."""
    return {
        "log_px": evidence.log_px.mean().item(),
        "log_px_mc_se": mean_se(apart_se(evidence)),
        "log_px_data_se": data_se(evidence.log_px),
        "elbo": known(evidence.elbo.mean()),
        "elbo_mc_se": mean_se(apart_se(evidence, evidence.elbo_se)),
        "gap": known(evidence.gap.mean()),
        "gap_mc_se": mean_se(apart_se(evidence, evidence.gap_se)),
        "ess_median": evidence.ess.median().item(),
        "ess_min": evidence.ess.min().item(),
        "rows_of_low_ess": int((evidence.ess < LOW_ESS).sum()),
        "rows": len(evidence),
        "num_samples": evidence.num_samples,
        "seed": evidence.seed,
        "unit": "nats per row, higher is better",
        **digest_of_rows(evidence.row_ids),
        **{
            name: getattr(evidence, name)
            for name in ("method", "measure", "proposal", "noise", "vectorizing", "engine")
        },
        **summarize_weights(evidence),
    }


def summarize_weights(evidence: Any) -> dict[str, Any]:
    """Summarize k̂, the largest weights, the bias and the flags of rows; empty for evidence of an older version, without k̂."""
    if evidence.khat is None or evidence.max_share is None or evidence.jackknife is None:
        return {}
    bias, error = evidence.bias.mean().abs(), mean_se(apart_se(evidence))
    return {
        "bias": finite(evidence.bias.mean()),
        "bias_matters": bool(error is not None and bias > error / 2),  # ± Monte Carlo does not hold it
        "jackknife": finite(evidence.jackknife.mean()),
        "khat_max": finite(evidence.khat.max()),
        "khat_threshold": finite(evidence.threshold.max()),
        "max_share": finite(evidence.max_share.max()),
        "rows_flagged": len(evidence.flagged),
        "rows_too_narrow": int((evidence.steady & evidence.too_narrow).sum()),
        "rows_looked_at": 0 if evidence.spread is None else int((~evidence.spread.isnan()).sum()),
        "target_se": evidence.target_se,
    }
