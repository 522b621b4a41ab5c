"""Which functions have an answer for a program at all: by what a recipe declares and a plain trace shows, not by refusals.

A function that has none is to refuse; that counts as "does not apply", not as "refused". Nothing of pyro_vae is used here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pyro
import torch
from pyro import poutine

from . import oracle
from .recipe import RECIPES, Pair

LISTED = (torch.distributions.Categorical, torch.distributions.Bernoulli, torch.distributions.OneHotCategorical)
IMPUTED = ("impute", "impute_mean")
TRAINED = ("fit", "gradient_report")
SIMULATED = ("bdmc", "sbc", "posterior_predictive", "prior_predictive", "simulate")


def applies(program: str, function: str) -> bool:
    """Return whether a function has an answer for a program."""
    return reason(program, function) is None


def reason(program: str, function: str) -> str | None:
    """Say why a function has no answer for a program; None where it has one."""
    pair = RECIPES[program].make()
    if function == "linear_gaussian" and not pair.linear:
        return "it is not jointly Gaussian with affine means"
    if function == "enumerate_latents" and not all_listed(program):
        return "a latent has no finite list of values"
    if function in IMPUTED and pair.missing is None and pair.x.is_floating_point():
        return "its networks are not written for missing values"
    if function in TRAINED and not has_parameters(program):
        return "it has no parameters"
    if function in SIMULATED and pair.reads_x and pair.as_context is None:
        return "it reads the values of x, and running it simulates none"
    if function in ("sbc", "overfitting") and pair.whole:
        return "its guide is of just these rows"
    if function == "overfitting" and pair.shared:
        return "q of what rows share is of one data set"
    if function == "decompose" and not one_prior(program):
        return "rows have priors of their own: there is no p(z) beside the mean of q(z | x)"
    return None


def plainly(pair: Pair, args: tuple[Any, ...] | None = None, at: Any = None) -> dict[str, oracle.Site]:
    """Sites of the model by a plain trace, latents typical or at those of another trace."""
    model = pair.model if at is None else poutine.replay(pair.model, trace=at)
    with oracle.evaluating(pair), oracle.Typical(), torch.random.fork_rng():
        return oracle.sample_sites(poutine.trace(model).get_trace(*(args or pair.args)))


def latent_of(sites: dict[str, oracle.Site]) -> dict[str, oracle.Site]:
    return {name: site for name, site in sites.items() if not site["is_observed"]}


def bare(fn: Any) -> Any:
    """A distribution without products, expansions and masks around it."""
    while hasattr(fn, "base_dist") and isinstance(fn, oracle.WRAPPERS):
        fn = fn.base_dist
    return fn


@cache
def all_listed(program: str) -> bool:
    with pyro.get_param_store().scope():
        sites = latent_of(plainly(RECIPES[program].make()))
        return all(isinstance(bare(site["fn"]), LISTED) for site in sites.values())


@cache
def has_parameters(program: str) -> bool:
    """A module's, or the store's after a run of both programs."""
    with pyro.get_param_store().scope():
        pair = RECIPES[program].make()
        with torch.random.fork_rng():
            q = poutine.trace(pair.guide).get_trace(*pair.args)
            poutine.trace(poutine.replay(pair.model, trace=q)).get_trace(*pair.args)
        return pair.net is not None or len(pyro.get_param_store()) > 0


@cache
def one_prior(program: str) -> bool:
    """Whether p(z) of the same z is the same, and masks are, with the rows' arguments passed round."""
    with pyro.get_param_store().scope():
        pair = RECIPES[program].make()
        sites = plainly(pair)
        if any(site["mask"] is not None or masked(site["fn"]) for site in latent_of(sites).values()):
            return False
        again = plainly(pair, tuple(a.roll(1, 0) for a in pair.args), oracle.as_trace(latent_of(sites)))
        log_p = ({n: s["fn"].log_prob(s["value"]) for n, s in latent_of(run).items()} for run in (sites, again))
        first, second = log_p
        return all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)


def masked(fn: Any) -> bool:
    while isinstance(fn, oracle.WRAPPERS):
        if isinstance(fn, pyro.distributions.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False
