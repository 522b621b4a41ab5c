"""Sites marked for enumeration: TraceEnum_ELBO and the exact oracles sum over them, others draw them."""

from __future__ import annotations

from collections.abc import Mapping

from pyro import poutine

from .sites import Program, Site


def enumerated(sites: Mapping[str, Site]) -> list[str]:
    """Name the sites marked for enumeration, ``infer={"enumerate": ...}`` or by ``config_enumerate``."""
    return [name for name, site in sites.items() if (site["infer"] or {}).get("enumerate")]


def unmarked(program: Program) -> Program:
    """Return the program without such marks: all of its latents are drawn."""
    drawn: Program = poutine.infer_config(program, config_fn=lambda site: {"enumerate": None})  # type: ignore[typeddict-item]
    return drawn


def prior_of(model: Program) -> Program:
    """Return the model without its observations: a guide that draws every latent from its prior."""
    prior: Program = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    return prior
