r"""One tensor from any (model, guide) pair: log_w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n), in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import plate, poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.common.pyro_private import is_deterministic
from pyro_vae.errors import ProgramError, ShapeError

Program = Callable[..., Any]
Site = dict[str, Any]
PARTICLES = "particles"


@dataclass(frozen=True)
class LogProbs:
    r"""The terms of log w, site by site, each ``(K, N)`` in nats; unscaled (plate sizes and ``poutine.scale`` left out).

    Attributes:
        observed: log p(x | z) for each observed site of the model.
        prior: log p(z) for each latent site.
        posterior: log q(z | x) for each latent site.
    """

    observed: dict[str, Tensor]
    prior: dict[str, Tensor]
    posterior: dict[str, Tensor]

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


def sum_terms(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the sites' terms, without a leading zero tensor."""
    first, *rest = terms.values()
    for term in rest:
        first = first + term
    return first


@dataclass(frozen=True)
class Plates:
    """Where a pair of programs keeps its data: the plate's name and dim, and how many dims its plates take in all."""

    data: str
    dim: int
    nesting: int


def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, vectorize_particles: bool = True, **kwargs: Any
) -> Tensor:
    r"""log w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n) for z_kn ~ q(z | x_n), shape ``(K, N)``, nats.

    Traces the guide, replays the model on its draws, and adds up the sites' log-probabilities, row by row. Sizes of
    subsampled plates and ``poutine.scale`` do not enter (they weigh a loss, not a density); masks do.

    Args:
        model: a Pyro program whose sites all lie in one plate over the rows of the data (inner plates are summed).
        guide: a Pyro program for the same latent sites.
        *args: what both programs take, usually x of shape ``(N, *event)`` and contexts with N rows.
        num_particles: K.
        vectorize_particles: run both programs once, under a plate of K particles on the left; ``False`` runs them K times,
            for programs that do not broadcast.
        **kwargs: what both programs take.

    Raises:
        ProgramError: a pair without such a plate, with a latent or an observation outside it, with a latent in one
            program only, or with enumerated sites; the message names the site.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import log_weights
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact_posterior(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0])
        >>> log_weights(model, exact_posterior, x, num_particles=2)   # the exact posterior makes every weight p(x)
        tensor([[-1.2655, -1.5155], [-1.2655, -1.5155]])
    """
    return log_probs(
        model, guide, *args, num_particles=num_particles, vectorize_particles=vectorize_particles, **kwargs
    ).log_w


def log_probs(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    vectorize_particles: bool = True,
    plates: Plates | None = None,
    **kwargs: Any,
) -> LogProbs:
    """The terms of :func:`log_weights`, site by site: log p(x | z), log p(z) and log q(z | x), each ``(K, N)``.

    `plates`, from :func:`find_plates`, saves the run that finds them when many calls follow one another.
    """
    plates = plates or find_plates(model, guide, *args, **kwargs)
    if not vectorize_particles and num_particles > 1:
        runs = [log_probs(model, guide, *args, plates=plates, **kwargs) for _ in range(num_particles)]
        return LogProbs(
            *(
                {site: torch.cat([getattr(run, field)[site] for run in runs]) for site in getattr(runs[0], field)}
                for field in ("observed", "prior", "posterior")
            )
        )
    with plate(PARTICLES, num_particles, dim=-1 - plates.nesting):
        q, p = trace_pair(model, guide, *args, **kwargs)
    check_pair(p, q)

    def score(sites: dict[str, Site]) -> dict[str, Tensor]:
        return {name: row_log_prob(name, site, plates) for name, site in sites.items()}

    observed = {name: site for name, site in p.items() if site["is_observed"]}
    latent = {name: site for name, site in p.items() if not site["is_observed"]}
    return LogProbs(score(observed), score(latent), score(q))


def trace_pair(model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[dict[str, Site], dict[str, Site]]:
    """Sites of the guide, and of the model replayed on the guide's draws."""
    q = poutine.trace(guide).get_trace(*args, **kwargs)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args, **kwargs)
    return sample_sites(q), sample_sites(p)


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sites that carry a density: no parameters, plates' own indices or deterministic values."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)
    }


def row_log_prob(name: str, site: Site, plates: Plates, scale: Any = 1.0) -> Tensor:
    """One site's log-probability times `scale`, summed over inner plates: ``(K, N)``."""
    return sum_rows(name, scale_and_mask(site["fn"].log_prob(site["value"]), scale=scale, mask=site["mask"]), plates)


def sum_rows(name: str, log_prob: Tensor, plates: Plates) -> Tensor:
    """What a site has along its plates, summed over inner ones: ``(K, N)``."""
    particle_dim = -1 - plates.nesting
    if log_prob.dim() != plates.nesting + 1:
        raise ProgramError(
            f"site {name!r} has batch shape {tuple(log_prob.shape)} under plates of {plates.nesting + 1} dimensions "
            "(particles and data). Declare what belongs to one row with .to_event(...), "
            "or pass vectorize_particles=False if the program does not broadcast."
        )
    summed = [d for d in range(particle_dim, 0) if d not in (particle_dim, plates.dim)]
    return log_prob.sum(summed) if summed else log_prob


def find_plates(model: Program, guide: Program, *args: Any, **kwargs: Any) -> Plates:
    """Runs the pair once, checks that it can be treated row by row, and says where its data plate is.

    Raises:
        ProgramError: as :func:`log_weights`.
    """
    with torch.no_grad():
        q, p = trace_pair(model, guide, *args, **kwargs)
    check_pair(p, q)
    sites = [*p.items(), *((f"{name} (guide)", site) for name, site in q.items())]
    frames = {name: [f for f in site["cond_indep_stack"] if f.vectorized] for name, site in sites}
    data = data_plate(frames)
    dims = {f.name: f.dim for stack in frames.values() for f in stack if f.dim is not None}
    return Plates(data.name, dims[data.name], max(-dim for dim in dims.values()))


def data_plate(frames: dict[str, list[CondIndepStackFrame]]) -> CondIndepStackFrame:
    """The one plate that encloses every site."""
    everywhere = {f.name: f for stack in frames.values() for f in stack}
    shared = [f for f in everywhere.values() if all(f.name in {g.name for g in stack} for stack in frames.values())]
    if len(shared) == 1:
        return shared[0]
    if named := [f for f in shared if f.name == "data"]:
        return named[0]
    if shared:
        raise ProgramError(
            f"plates {sorted(f.name for f in shared)} each enclose every site, so which of them runs over the rows of the "
            'data is open. Name that plate "data".'
        )
    if not everywhere:
        raise ProgramError(
            "no data plate: no site lies in a pyro.plate, so nothing says which dimension runs over rows. "
            'Put the sites of model and guide under `with pyro.plate("data", len(x)):`.'
        )
    widest = max(everywhere.values(), key=lambda f: sum(f.name in {g.name for g in stack} for stack in frames.values()))
    outside = [name for name, stack in frames.items() if widest.name not in {f.name for f in stack}]
    raise ProgramError(
        f"site {outside[0]!r} lies outside the plate {widest.name!r}: it is shared by all rows, so log p(x) does not split "
        "into rows. Move it into the plate, make it a parameter (pyro.param), or score the pair with Pyro's Trace_ELBO."
    )


def check_pair(p: dict[str, Site], q: dict[str, Site]) -> None:
    """Refuses, by site, pairs whose weights would not be p(x, z) / q(z | x)."""
    for program, sites in (("model", p), ("guide", q)):
        for name, site in sites.items():
            if site["infer"].get("enumerate"):
                raise ProgramError(
                    f"site {name!r} of the {program} is marked for enumeration: it is summed over, not drawn, so it has no "
                    "importance weight. Train with TraceEnum_ELBO; to score, drop the mark so that the guide draws it."
                )
    latent = {name for name, site in p.items() if not site["is_observed"]}
    guided = {name for name, site in q.items() if not site["is_observed"]}
    if missing := sorted(latent - guided):
        raise ProgramError(
            f"latent site {missing[0]!r} is in the model but not in the guide. Give it a pyro.sample of that name there, "
            "or observe it."
        )
    if extra := sorted(guided - latent):
        raise ProgramError(
            f"site {extra[0]!r} is in the guide but is no latent of the model. Rename it, sample it in the model too, "
            'or mark it infer={"is_auxiliary": True} and score with an ELBO that knows auxiliary sites.'
        )
    for name in sorted(latent):
        wide, narrow = (tuple(site[name]["fn"].event_shape) for site in (p, q))
        if wide != narrow:
            raise ShapeError(
                f"site {name!r}: the prior draws values of shape {wide}, the posterior {narrow}. Give prior and posterior the "
                "same number of dimensions."
            )
    if not any(site["is_observed"] for site in p.values()):
        raise ProgramError("the model observes nothing: pass the data as pyro.sample(..., obs=x).")
