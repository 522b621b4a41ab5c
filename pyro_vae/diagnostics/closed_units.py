"""Latent units whose KL and mean are closed forms of x alone: any draw of the latents shows them."""

from __future__ import annotations

from pyro_vae.programs.masks import mask_of_site
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.proposal_guide import as_written
from pyro_vae.programs.units import by_row, closed_kl, univariate

from .drawn_sites import Drawn
from .latent_usage import posterior_mean


def without_noise(q: Sites, p: Sites, problem: Problem) -> dict[str, Drawn] | None:
    """Measure the one latent site of a pair from a draw made for something else; None where its figures depend on the draw.

    They do not where KLs and means are closed forms of x alone: one site of independent units, never masked, under a guide
    that draws nothing on the way.
    """
    (name, site), *further = q.items()
    if further or problem.vectorizing.random_guide or problem.guide is not as_written(problem.guide):
        return None
    prior = p[name]
    bases = univariate(site["fn"]), univariate(prior["fn"])
    if None in bases or any(mask_of_site(each) is not True for each in (site, prior)):
        return None
    kl, (mean, closed) = closed_kl(*bases), posterior_mean(site)
    if kl is None or not closed:
        return None
    kl, mean = (by_row(a, site["fn"].event_dim, problem.plates)[0] for a in (kl, mean))
    return {name: Drawn(kl, None, mean, None, None, (True, True, True))}
