"""Evidence in words: in one line, with errors or, where too many rows are flagged, as a bound; and why rows are flagged."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_bound, format_gap, is_loose, why_loose
from pyro_vae.evidence.estimate import format_nats

from .pareto import LEAST, LOW_ESS

NEXT = "ais(model, guide, x), or log_likelihood(..., proposal=defensive(), target_se=0.1)"  # where too many are flagged
TOO_NARROW = (
    "the proposal is too narrow: draws of the posterior show larger weights than its own draws, and a larger error"
)


class Sampled(Protocol):
    """What is told of :class:`~pyro_vae.Evidence`."""

    @property
    def method(self) -> str: ...

    @property
    def measure(self) -> str | None: ...

    @property
    def proposal(self) -> str: ...

    @property
    def vectorizing(self) -> str: ...

    @property
    def num_samples(self) -> int: ...

    @property
    def target_se(self) -> float | None: ...

    @property
    def threshold(self) -> Tensor: ...

    @property
    def steady(self) -> Tensor: ...

    @property
    def too_narrow(self) -> Tensor: ...

    @property
    def hopeless(self) -> Tensor: ...

    @property
    def unmet(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def summary(self) -> dict[str, Any]: ...


def format_evidence(evidence: Sampled) -> str:
    """Format all that is to be known of evidence."""
    s = evidence.summary()
    mean, elbo, end = (format_loose if is_loose(s) else format_errors)(s)
    measure = f", {evidence.measure}" if evidence.measure else ""
    return (
        f"log p(x) {mean} | {evidence.method} from the {evidence.proposal}{measure}{format_vectorizing(evidence)} | {elbo} | "
        f"ESS median {s['ess_median']:.0f}, least {s['ess_min']:.1f} of {s['num_samples']} | "
        f"{counted(s['rows'], 'row')}, {s['rows_of_low_ess']} with ESS below {LOW_ESS}{format_flagged(evidence, s)}{end}"
    )


def format_errors(s: dict[str, Any]) -> tuple[str, str, str]:
    """Format the mean, with its errors, and the ELBO and gap."""
    mean = (
        f"{s['log_px']:.3f} ± {format_nats(s['log_px_mc_se'])} (Monte Carlo) "
        f"± {format_nats(s['log_px_data_se'])} (data) nats"
    )
    elbo = f"ELBO {format_nats(s['elbo'])} ± {format_nats(s['elbo_mc_se'])} | gap {format_gap(s)}"
    return mean, elbo, ""


def format_loose(s: dict[str, Any]) -> tuple[str, str, str]:
    """Format the mean as a bound, as :func:`format_errors` does where errors are believed; and what to run next."""
    elbo = f"ELBO {format_nats(s['elbo'])} (standard error {format_nats(s['elbo_mc_se'])})"
    elbo += " | gap unknown" if s["gap"] is None else f" | gap at least {format_nats(s['gap'])}"
    return f"{format_bound(s)} nats ({why_loose(s)})", elbo, f" | next: {NEXT}"


def format_vectorizing(evidence: Sampled) -> str:
    """Format how particles were run, where it was not under a plate of them."""
    how = evidence.vectorizing
    return "" if how == "plate" else f", particles run in a way that means the same ({how})"


def format_flagged(evidence: Sampled, s: dict[str, Any]) -> str:
    """Format how many rows are flagged, and the jackknife beside the bound."""
    if "rows_flagged" not in s:
        return ""
    why = f"k̂ above {s['khat_threshold']:.2f}" if evidence.num_samples >= LEAST else f"k̂ takes {LEAST} particles"
    target = "" if evidence.target_se is None else f" or Monte Carlo error above {evidence.target_se:g}"
    narrow = f" or proposal too narrow: {s['rows_too_narrow']}" if s["rows_too_narrow"] else ""
    bias = f" | bias about {s['bias']:.3f}, which ± leaves out" if s["bias_matters"] else ""
    jackknife = f" | jackknife {format_nats(s['jackknife'])} (no bound)"
    return f", {s['rows_flagged']} flagged ({why}{target}{narrow}){bias}{jackknife}"


def explain_flags(evidence: Sampled) -> str:
    """Explain which rows are flagged, why, and what to do."""
    few = f"K is below {LEAST}, too few for a k̂"
    unsteady = few if evidence.num_samples < LEAST else f"k̂ is above {evidence.threshold.max():.2f}, or not known"
    parts = []
    for rows, why in (
        (evidence.hopeless.nonzero(), "no particle explains the row: log p̂ is −∞, and log p(x) may be anything"),
        ((~evidence.steady & ~evidence.hopeless).nonzero(), unsteady),
        ((evidence.steady & evidence.too_narrow).nonzero(), TOO_NARROW),
        (evidence.unmet.nonzero(), f"the Monte Carlo error is above target_se={evidence.target_se}"),
    ):
        if len(rows):
            parts.append(f"in {len(rows)} of {len(evidence)} rows, the first {rows.flatten().tolist()[:5]}, {why}")
    return (
        f"log p(x) is not to be believed: {'; '.join(parts)} (K up to {evidence.num_samples}, {evidence.proposal}). Add "
        "particles (resume=, max_samples=), or take another proposal (defensive(), widened()) or a guide that fits better."
    )
