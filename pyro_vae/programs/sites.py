"""The sample sites of a trace and their log-probabilities, row by row."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.common.pyro_private import is_deterministic, is_intervened
from pyro_vae.errors import MarkedError, ProgramError, ShapeError

from .masks import check_same_masks
from .one_measure import check_measure
from .user_errors import GUIDE, MODEL, explained

Program = Callable[..., Any]
Site = dict[str, Any]
PARTICLES = "particles of pyro_vae"  # a program may have a plate called "particles" of its own
DATA_SETS = "data sets"  # the plate around the programs of a WholeDataSet, of size 1


@dataclass(frozen=True)
class LogProbs:
    r"""The terms of log w, site by site, each ``(K, N)`` in nats; unscaled (plate sizes and ``poutine.scale`` left out)."""

    observed: dict[str, Tensor]  # log p(x | z) of each observed site of the model
    prior: dict[str, Tensor]  # log p(z) of each latent site
    posterior: dict[str, Tensor]  # log q(z | x) of each latent site

    @property
    def reconstruction(self) -> Tensor:
        """log p(x | z), summed over observed sites."""
        return sum_terms(self.observed)

    @property
    def kl(self) -> Tensor:
        """log q(z | x) − log p(z): one draw of KL(q(z | x) ‖ p(z)) for each particle."""
        return sum_terms(self.posterior) - sum_terms(self.prior)

    @property
    def log_w(self) -> Tensor:
        """log p(x, z) − log q(z | x)."""
        return self.reconstruction - self.kl


def add(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors, at least one, without a leading zero."""
    return reduce(operator.add, terms)


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the sites' terms."""
    return add(terms.values())


def trace_pair(model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[dict[str, Site], dict[str, Site]]:
    """Return the sites of the guide, and of the model replayed on the guide's draws."""
    with explained(GUIDE, *args):
        q = poutine.trace(guide).get_trace(*args, **kwargs)
    drawn = q.copy()
    for name in observed_sites(sample_sites(q)):
        drawn.remove_node(name)
    with explained(MODEL, *args):
        p = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    return sample_sites(q), sample_sites(p)


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the sites that carry a density: no parameters, plates' own indices or deterministic values."""
    samples: dict[str, Any] = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in samples.items() if has_density(site)}


def with_values(trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    """Return a copy of a trace with other latent values."""
    other = trace.copy()
    for name, value in values.items():
        other.nodes[name] = {**other.nodes[name], "value": value}
    return other


def has_density(site: Any) -> bool:
    """Return whether a sample site is neither a plate's indices nor deterministic."""
    return not (site_is_subsample(site) or is_deterministic(site))


def is_latent(site: Any) -> bool:
    """Return whether a site (of a trace, or a message on its way) is drawn from a density, and no observation."""
    return not site["is_observed"] and has_density(site)


def latent_sites(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the sites that are drawn."""
    return {name: site for name, site in sites.items() if not site["is_observed"]}


def observed_sites(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the sites that hold data."""
    return {name: site for name, site in sites.items() if site["is_observed"]}


def proposal_sites(q: Mapping[str, Site], p: Mapping[str, Site]) -> dict[str, Site]:
    """Return the sites of a guide that z is drawn at: not what it observes, ``pyro.factor``, or auxiliary draws."""
    return {name: site for name, site in latent_sites(q).items() if name in p or not is_auxiliary(site)}


def is_auxiliary(site: Site) -> bool:
    """Return whether a program marks a site as no latent of the model: ``infer={"is_auxiliary": True}``."""
    return bool((site["infer"] or {}).get("is_auxiliary"))


def check_pair(p: dict[str, Site], q: dict[str, Site]) -> None:
    """Refuse, by site, pairs whose weights would not be p(x, z) / q(z | x); masks that are tensors are not compared."""
    check_measure(latent_sites(p), latent_sites(q))
    check_same_masks(latent_sites(p), latent_sites(q), values=False)
    check_sites(p, q)


def check_sites(p: dict[str, Site], q: dict[str, Site]) -> None:
    """Refuse, by site, programs that are no pair: latents of one alone, enumerated, or of two shapes; nothing seen or drawn."""
    for program, sites in (("model", p), ("guide", q)):
        for name, site in sites.items():
            if site["infer"].get("enumerate"):
                raise MarkedError(
                    f"site {name!r} of the {program} is marked for enumeration: it is summed over, not drawn, so it has no "
                    "importance weight. Train with TraceEnum_ELBO; to score, drop the mark so that the guide draws it, or use "
                    "enumerate_latents, where all latents are discrete."
                )
    check_names(p, q)
    latent = latent_sites(p)
    for name in sorted(latent):
        wide, narrow = (tuple(site[name]["fn"].event_shape) for site in (p, q))
        if wide != narrow:
            raise ShapeError(
                f"site {name!r}: the prior draws values of shape {wide}, the posterior {narrow}. Give prior and posterior the "
                "same number of dimensions."
            )
    if not observed_sites(p):
        raise ProgramError("the model observes nothing: pass the data as pyro.sample(..., obs=x).")
    if not latent:
        raise ProgramError(
            "the model has no latent site: there is nothing to infer, and log p(x) is the log-probability of what it observes, "
            "poutine.trace(model).get_trace(x).log_prob_sum(). Draw the latents in model and guide, pyro.sample('z', ...)."
        )


def check_names(p: dict[str, Site], q: dict[str, Site]) -> None:
    """Refuse latents of one program alone, and say what made them so."""
    latent = set(latent_sites(p))
    guided = set(proposal_sites(q, p))
    if missing := sorted(latent - guided):
        if is_intervened(p[missing[0]]):
            raise ProgramError(
                f"latent site {missing[0]!r} of the model is set by poutine.do, which still draws it from its prior, beside "
                "the value that the program goes on with, and the guide does not draw it. Nothing reads that draw: hide it, "
                f"poutine.block(poutine.do(model, data=...), hide=[{missing[0]!r}]), for log p(x | do({missing[0]}))."
            )
        raise ProgramError(
            f"latent site {missing[0]!r} is in the model but not in the guide. Give it a pyro.sample of that name there, "
            "or observe it."
        )
    if extra := sorted(guided - latent):
        if extra[0] in observed_sites(p):
            raise ProgramError(
                f"site {extra[0]!r} is drawn by the guide, and observed by the model (obs=, poutine.condition), so that its "
                f"draws mean nothing. Leave it out of the guide for log p of x and of this value of {extra[0]!r} together, one "
                "value a row; or observe it in neither."
            )
        raise ProgramError(
            f"site {extra[0]!r} is in the guide but is no latent of the model. Rename it, sample it in the model too, "
            'or mark it infer={"is_auxiliary": True}, if a Delta makes a latent of it or an ELBO knows it.'
        )
