r"""One tensor from any (model, guide) pair: log_w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n), in nats."""

from __future__ import annotations

from typing import Any

import torch
from pyro import plate
from torch import Tensor

from .plates import Plates, find_plates, row_log_prob
from .sites import PARTICLES, LogProbs, Program, Site, check_pair, trace_pair


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
