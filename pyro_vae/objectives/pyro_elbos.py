r"""Pyro's own ELBO objectives as one tensor: the loss and gradient of ``Trace_ELBO`` without reading a number back.

Stock ``loss_and_grads`` turns each site's log-probability into a Python number, which waits for a GPU and cannot be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.common.pyro_private import vectorized_traces, vectorizes
from pyro_vae.programs.sites import Program, Site, add, sample_sites

from .bound_objective import Bound

# (model, guide, *batch) -> a number whose backward() leaves the objective's gradient
TensorLoss = Callable[..., Tensor]
Traces = tuple[poutine.Trace, poutine.Trace]
ZERO: list[Any] = [0.0]  # terms of no site


def tensor_loss(objective: ELBO) -> TensorLoss | None:
    """Return the objective's loss as one differentiable tensor that nothing is read back from, or None without such a form.

    For :class:`~pyro_vae.Bound`, and for ``Trace_ELBO`` and ``TraceMeanField_ELBO`` themselves (not their subclasses, whose
    estimators are their own). The gradient is that of ``loss_and_grads``.

    References:
        Automated Variational Inference in Probabilistic Programming (Wingate & Weber, 2013; the score function's Rao-
        Blackwellised form), https://arxiv.org/abs/1301.1299

    Example:
        >>> from pyro.infer import RenyiELBO
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> tensor_loss(Trace_ELBO())(vae.model, vae.guide, torch.ones(5, 9)).requires_grad
        True
        >>> tensor_loss(RenyiELBO(num_particles=2)) is None
        True
    """
    if isinstance(objective, Bound) and type(objective).loss_and_grads is Bound.loss_and_grads:
        return objective.differentiable_loss
    forms: dict[type[ELBO], Callable[..., Tensor]] = {Trace_ELBO: trace_elbo, TraceMeanField_ELBO: mean_field}
    of_particle = forms.get(type(objective))
    if of_particle is None or (objective.vectorize_particles and not vectorizes()):
        return None

    def loss(model: Program, guide: Program, *batch: Tensor) -> Tensor:
        total = add(of_particle(*traces) for traces in unscored(objective, model, guide, batch))
        return -total / objective.num_particles

    return loss


def unscored(objective: Any, model: Program, guide: Program, batch: tuple[Tensor, ...]) -> Iterator[Traces]:
    """(model, guide) traces for the objective's particles, in its own order, with no log-probability taken yet."""
    if objective.vectorize_particles:
        yield from vectorized_traces(objective, trace_pair, model, guide, batch)
    else:
        for _ in range(objective.num_particles):
            yield trace_pair(model, guide, batch, {})


def trace_pair(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traces:
    """Return the traces of the model, replayed on the guide's draws, and of the guide; plates' own indices left out."""
    q = poutine.trace(guide).get_trace(*args, **kwargs)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args, **kwargs)
    return prune_subsample_sites(p), prune_subsample_sites(q)


def trace_elbo(p: poutine.Trace, q: poutine.Trace) -> Tensor:
    """Σ log p − Σ log q of one particle, whose gradient takes the score function where a site has no path."""
    p.compute_log_prob()
    q.compute_score_parts()
    log_p, log_q = (add([s["log_prob_sum"] for s in sample_sites(trace).values()] or ZERO) for trace in (p, q))
    surrogate, follows = log_p, True
    for site in sample_sites(q).values():
        log_prob, score, entropy = site["score_parts"]
        follows = follows and entropy is log_prob and is_identically_zero(score)
        if not is_identically_zero(entropy):
            surrogate = surrogate - entropy.sum()
        if not is_identically_zero(score):
            surrogate = surrogate + (log_ratios(p, q).sum_to(site["cond_indep_stack"]) * score).sum()
    value = log_p - log_q
    return surrogate if follows else surrogate + (value - surrogate).detach()  # the value, the surrogate's gradient


def log_ratios(p: poutine.Trace, q: poutine.Trace) -> MultiFrameTensor:
    """log p − log q of each site of the model, by the plates that it stands in: what a score is multiplied by."""
    stacks, ratios = get_plate_stacks(p), MultiFrameTensor()
    for name, site in p.nodes.items():
        if site["type"] == "sample":
            ratio = site["log_prob"] if site["is_observed"] else site["log_prob"] - q.nodes[name]["log_prob"]
            ratios.add((stacks[name], ratio.detach()))
    return ratios


def mean_field(p: poutine.Trace, q: poutine.Trace) -> Tensor:
    """Σ log p(observed) − Σ KL(q ‖ p), in closed form where torch has one, at the draw elsewhere."""
    model, guide = sample_sites(p), sample_sites(q)
    terms = [log_prob(site) if site["is_observed"] else -site_kl(guide[name], site) for name, site in model.items()]
    return add(terms + [-log_prob(site) for name, site in guide.items() if name not in model] or ZERO)


def site_kl(q: Site, p: Site) -> Tensor:
    """KL(q ‖ p) of a site, scaled and masked; at the draw where torch has no closed form."""
    try:
        kl = torch.distributions.kl_divergence(q["fn"], p["fn"])
    except NotImplementedError:
        return log_prob(q) - log_prob(p)
    return scale_and_mask(kl, scale=q["scale"], mask=q["mask"]).sum()


def log_prob(site: Site) -> Tensor:
    """Σ log-probability of a site, scaled and masked."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), scale=site["scale"], mask=site["mask"]).sum()
