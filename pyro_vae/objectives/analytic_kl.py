r"""Analytic KL: the ELBO with its KL in closed form, site by site; less noise than log q(z | x) − log p(z) at one draw."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.masks import same_mask
from pyro_vae.programs.plates import sum_rows
from pyro_vae.programs.score_sites import row_log_prob
from pyro_vae.programs.sites import latent_sites, sum_terms
from pyro_vae.programs.units import closed_kl

from .bounds import elbo
from .gradient_estimators import BoundFunction, Estimate, Result
from .particles import Draw, ParticleRun, same


@suggest_keywords
def analytic_kl(exact: bool = False) -> Estimate:
    r"""Estimator of the mean-field ELBO: 1/K Σ_k log p(x | z_k) − Σ_sites KL(q(z | x) ‖ p(z)), for ``Bound(elbo)`` alone.

    The KL of a site is in closed form where torch has one for its two distributions, and log q − log p at the draws where it
    has none. Of a hierarchy, KL(q(z2 | z1, x) ‖ p(z2 | z1)) is averaged over draws of z1; where guide and model draw their
    latents in different orders no closed form is used.

    Raises:
        ProgramError: with `exact`, a site without a closed form, in place of taking draws.
        UsageError: under another bound than ``elbo``: a KL inside a logarithm of a mean is no bound.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), appendix B, https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, Bound, elbo
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> Bound(elbo, estimator=analytic_kl(exact=True)).per_row(vae.model, vae.guide, torch.ones(5, 9)).shape
        torch.Size([5])
    """
    return Estimate("analytic_kl", partial(_mean_field, exact=exact))


def _mean_field(draw: Draw, bound: BoundFunction, exact: bool) -> Result:
    if bound is not elbo:
        raise UsageError(
            "estimator analytic_kl is of the ELBO alone: E_q[log w] splits into terms, the log of a mean of weights does "
            "not. Take Bound(elbo, estimator=analytic_kl()), or another estimator."
        )
    value = bound(draw.grouped(torch.cat([run.terms.reconstruction - kl(run, exact) for run in draw.runs])))
    return value, value


def kl(run: ParticleRun, exact: bool = False) -> Tensor:
    """KL(q(z | x) ‖ p(z)) of all sites, ``(P, N)``, weighed as handlers weigh it."""
    return sum_terms({name: site_kl(run, name, run.scales.inner["guide", name], exact) for name in run.q})


def site_kl(run: ParticleRun, name: str, scale: Any = 1.0, exact: bool = False) -> Tensor:
    """Return one site's KL times `scale`, ``(P, N)``: in closed form where there is one, or at the draws."""
    q, p = run.q[name], run.p[name]
    obstacle, plates = not_closed(run, name), run.problem.plates
    if not obstacle and (term := closed_kl(q["fn"], p["fn"])) is not None:
        return sum_rows(name, scale_and_mask(term.expand(q["fn"].batch_shape), scale=scale, mask=q["mask"]), plates)
    if exact:
        obstacle = obstacle or f"KL({type(q['fn']).__name__} ‖ {type(p['fn']).__name__}) has no closed form"
        raise ProgramError(f"site {name!r}: {obstacle}. Pass exact=False to take it at the draws.")
    inner = run.scales.inner
    scales = (scale, scale) if same_scale(run, name) else (inner["guide", name], inner["model", name])
    return row_log_prob(name, q, plates, scales[0]) - row_log_prob(name, p, plates, scales[1])


def not_closed(run: ParticleRun, name: str) -> str | None:
    """Say why a site's KL is not that of its two distributions, given the draws of the sites before it; None if it is."""
    if list(run.q) != list(latent_sites(run.p)):
        return "guide and model draw their latents in different orders"
    alike = same_scale(run, name) and same_mask(run.q[name]["mask"], run.p[name]["mask"])
    return None if alike else "handlers weigh or mask it differently in guide and model"


def same_scale(run: ParticleRun, name: str) -> bool:
    """Return whether handlers weigh log q and log p of a site alike."""
    return same(run.scales.inner["guide", name], run.scales.inner["model", name])
