r"""The ELBO with its KL in closed form, site by site: less noise than log q(z | x) − log p(z) at one draw."""

from __future__ import annotations

from functools import partial

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.errors import ProgramError, UsageError

from .bounds import elbo
from .draw import Draw, Run
from .estimators import BoundFunction, Estimate, Result
from .latents import closed_kl
from .weights import sum_rows, sum_terms


def analytic_kl(exact: bool = False) -> Estimate:
    r"""Estimator of the mean-field ELBO: 1/K Σ_k log p(x | z_k) − Σ_sites KL(q(z | x) ‖ p(z)), for ``Bound(elbo)`` alone.

    The KL of a site is in closed form where torch has one for its two distributions, and log q − log p at the draws where it
    has none. Of a hierarchy, KL(q(z2 | z1, x) ‖ p(z2 | z1)) is averaged over draws of z1; where guide and model draw their
    latents in different orders no closed form is used.

    Args:
        exact: refuse sites without a closed form in place of taking draws.

    Raises:
        ProgramError: with `exact`, a site without a closed form.
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
    log_w = torch.cat([run.terms.reconstruction - kl(run, exact) for run in draw.runs])
    value = bound(draw.grouped(log_w))
    return value, value


def kl(run: Run, exact: bool = False) -> Tensor:
    """KL(q(z | x) ‖ p(z)) of all sites, ``(P, N)``."""
    ordered = list(run.q) == [name for name, site in run.p.items() if not site["is_observed"]]
    found = {name: site_kl(run, name) if ordered else None for name in run.q}
    if exact and (without := [name for name, term in found.items() if term is None]):
        q, p = (type(sites[without[0]]["fn"]).__name__ for sites in (run.q, run.p))
        why = (
            f"KL({q} ‖ {p}) has no closed form" if ordered else "guide and model draw their latents in different orders"
        )
        raise ProgramError(f"site {without[0]!r}: {why}. Pass exact=False to take it at the draws.")
    terms = run.terms
    return sum_terms(
        {name: terms.posterior[name] - terms.prior[name] if term is None else term for name, term in found.items()}
    )


def site_kl(run: Run, name: str) -> Tensor | None:
    """One site's KL in closed form, ``(P, N)``, or None."""
    q, p = run.q[name], run.p[name]
    term = closed_kl(q["fn"], p["fn"])
    if term is None:
        return None
    term = term.expand(q["fn"].batch_shape)
    return sum_rows(name, scale_and_mask(term, scale=run.scales.inner["guide", name], mask=q["mask"]), run.pair.plates)
