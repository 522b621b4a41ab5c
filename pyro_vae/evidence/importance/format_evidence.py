"""Evidence in one line: the mean with its errors, or, where too many rows are flagged, as a bound with what to run next."""

from __future__ import annotations

from typing import Any, Protocol

from pyro_vae.common.flagged import format_bound, is_loose, why_loose
from pyro_vae.evidence.estimate import format_nats

from .pareto import LEAST, LOW_ESS

NEXT = "ais(model, guide, x), or log_likelihood(..., proposal=defensive(), target_se=0.1)"  # where too many are flagged


class Sampled(Protocol):
    """What is printed of :class:`~pyro_vae.Evidence`."""

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

    def summary(self) -> dict[str, Any]: ...


def format_evidence(evidence: Sampled) -> str:
    """Format all that is to be known of evidence."""
    s = evidence.summary()
    mean, elbo, end = (format_loose if is_loose(s) else format_errors)(s)
    measure = f", {evidence.measure}" if evidence.measure else ""
    return (
        f"log p(x) {mean} | {evidence.method} from the {evidence.proposal}{measure}{format_vectorizing(evidence)} | {elbo} | "
        f"ESS median {s['ess_median']:.0f}, least {s['ess_min']:.1f} of {s['num_samples']} | "
        f"{s['rows']} rows, {s['rows_of_low_ess']} with ESS below {LOW_ESS}{format_flagged(evidence, s)}{end}"
    )


def format_errors(s: dict[str, Any]) -> tuple[str, str, str]:
    """Format the mean, with its errors, and the ELBO and gap."""
    mean = (
        f"{s['log_px']:.3f} ± {format_nats(s['log_px_mc_se'])} (Monte Carlo) "
        f"± {format_nats(s['log_px_data_se'])} (data) nats"
    )
    elbo = f"ELBO {format_nats(s['elbo'])} ± {format_nats(s['elbo_mc_se'])} | gap {format_nats(s['gap'])}"
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
