"""What the programs as written mean: plain traces, one row at a time, and closed forms. Nothing of pyro_vae is used here.

`Typical` draws each latent at a fixed place of its own distribution, so that a run has no noise, whatever its layout: with it,
our figures must equal the plain trace's to rounding. Log p(x) is the pair's closed form, or importance sampling over rows that
were copied (which is held against rows alone in the tests): no dimension of particles anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .recipe import Pair

Site = dict[str, Any]
WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution)


class OracleError(Exception):
    """The judge itself failed: a fault of these tests."""


class Typical(Messenger):
    """Draw latents at a fixed place of their own distribution."""

    def _pyro_sample(self, msg):
        if msg["value"] is None and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = typical(msg["fn"])


def typical(fn: Any) -> Tensor:
    """A value in the middle of a distribution, of its full shape."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.TransformedDistribution) and not hasattr(fn, "loc"):
        value = typical(fn.base_dist)
        for transform in fn.transforms:
            value = transform(value)
        return value
    logits = getattr(fn, "logits", None)
    if isinstance(fn, torch.distributions.OneHotCategorical | dist.RelaxedOneHotCategoricalStraightThrough):
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)
    if type(fn).__name__ == "ExpRelaxedCategorical":
        return logits.log_softmax(-1)
    if isinstance(fn, torch.distributions.Categorical):
        return logits.argmax(-1)
    if isinstance(fn, torch.distributions.Bernoulli):
        return (fn.probs > 0.5).to(fn.probs)
    value = fn.mean
    return value + 0.3 * fn.stddev if fn.support is torch.distributions.constraints.real else value


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Sites with a density."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


@contextmanager
def evaluating(pair: Pair) -> Iterator[None]:
    """No gradients, no dropout, no validation: as one would score by hand."""
    modules = [] if pair.net is None else [m for m in pair.net.modules() if m.training]
    for module in modules:
        module.training = False
    try:
        with torch.no_grad(), pyro.validation_enabled(False):
            yield
    finally:
        for module in modules:
            module.training = True


def run(
    pair: Pair, args: tuple[Tensor, ...], guide: Any = None, at: Any = None
) -> tuple[dict[str, Site], dict[str, Site]]:
    """Sites of the guide, and of the model at its draws (or at those of another trace)."""
    model, own = pair.written
    proposal = guide or pair.proposal or own
    q = poutine.trace(proposal if at is None else poutine.replay(proposal, trace=at)).get_trace(*args)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
    return sample_sites(q), sample_sites(p)


def proposed(q: dict[str, Site], p: dict[str, Site]) -> dict[str, Site]:
    """Sites of the guide that z is drawn at: not those that hold data, and no factors."""
    drawn = {name: site for name, site in q.items() if not site["is_observed"]}
    missing = {name for name, site in p.items() if not site["is_observed"]} - set(drawn)
    if missing:
        raise OracleError(f"the guide draws no {missing}")
    return drawn


def total(sites: dict[str, Site], weighed: bool = False) -> Tensor:
    """log-probability of sites, all summed to one number, in float64."""
    each = [(scale_and_mask(s["fn"].log_prob(s["value"]), mask=s["mask"]), s["scale"]) for s in sites.values()]
    return torch.stack([log_prob.double().sum() * (scale if weighed else 1.0) for log_prob, scale in each]).sum()


def as_trace(sites: Mapping[str, Site]) -> poutine.Trace:
    """A trace of some sites, to replay."""
    trace = poutine.Trace()
    for name, site in sites.items():
        trace.add_node(name, **{key: value for key, value in site.items() if key != "name"})
    return trace


def row(pair: Pair, n: int) -> tuple[Tensor, ...]:
    """The arguments of one row."""
    return tuple(a[n : n + 1] for a in pair.args)


def row_weights(pair: Pair, weighed: bool = False) -> Tensor:
    """log p(x_n, z_n) − log q(z_n | x_n) at typical latents, by a plain trace of each row alone: ``(N,)``.

    `weighed` times what ``poutine.scale`` says of each site.
    """
    with evaluating(pair), Typical():
        weights = []
        for n in range(len(pair.x)):
            q, p = run(pair, row(pair, n))
            weights.append(total(p, weighed) - total(proposed(q, p), weighed))
    return torch.stack(weights)


def joint_weight(pair: Pair) -> Tensor:
    """The same of all rows together, for latents that they share."""
    with evaluating(pair), Typical():
        q, p = run(pair, pair.args)
        return total(p) - total(proposed(q, p))


def data_dim(*programs: dict[str, Site]) -> int:
    """The dim of the plate that all sites lie in."""
    stacks = [{f.name: f.dim for f in s["cond_indep_stack"]} for sites in programs for s in sites.values()]
    shared = set.intersection(*map(set, stacks))
    (name,) = shared
    return stacks[0][name]


def by_row(sites: dict[str, Site], dim: int) -> Tensor:
    """log-probability of sites, summed over all but rows."""
    terms = []
    for site in sites.values():
        log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"]).double()
        shape = torch.broadcast_shapes(log_prob.shape, (1,) * -dim)
        rows = log_prob.expand(shape).movedim(dim, 0)
        terms.append(rows.reshape(len(rows), -1).sum(-1))
    return sum(terms[1:], terms[0]) if terms else torch.zeros(1)


def terms(pair: Pair, sites: dict[str, Site], *others: dict[str, Site]) -> Tensor:
    """log-probability of sites for each row, ``(rows,)``; the plate of rows is that of the `others`, too."""
    if pair.together:
        return total(sites).reshape(1) if sites else torch.zeros(1).double()
    return by_row(sites, data_dim(*others))


@dataclass
class Draws:
    """K draws of each row by copies of the rows: terms ``(K, N)`` in float64."""

    log_lik: Tensor
    log_prior: Tensor
    log_q: Tensor

    @property
    def log_w(self) -> Tensor:
        return self.log_lik + self.log_prior - self.log_q


def copies(args: tuple[Tensor, ...], num: int) -> tuple[Tensor, ...]:
    """Each argument `num` times, one whole copy after the other."""
    return tuple(a.repeat(num, *[1] * (a.dim() - 1)) for a in args)


def drawn(pair: Pair, args: tuple[Tensor, ...], num: int, seed: int, guide: Any = None) -> Draws:
    """Draw from the guide on copies of the rows (of a guide that is of these rows: in so many runs), and score."""
    if (pair.whole or pair.together) and num > 1:
        runs = [drawn(pair, args, 1, seed + i, guide) for i in range(min(num, 200))]
        return Draws(*(torch.cat([getattr(run, part) for run in runs]) for part in ("log_lik", "log_prior", "log_q")))
    with evaluating(pair), torch.random.fork_rng():
        torch.manual_seed(seed)
        q, p = run(pair, copies(args, num), guide)
        latent = proposed(q, p)
        parts = (
            {n: s for n, s in p.items() if s["is_observed"]},
            {n: s for n, s in p.items() if not s["is_observed"]},
            latent,
        )
        return Draws(*(terms(pair, part, p).reshape(num, len(args[0])) for part in parts))


@dataclass
class Figure:
    """Numbers and their standard errors."""

    value: Tensor
    se: Tensor


def log_mean(log_w: Tensor) -> Figure:
    """log mean weight, with its standard error."""
    k = len(log_w)
    value = log_w.logsumexp(0) - math.log(k)
    w = (log_w - value).exp()
    return Figure(value, w.std(0) / k**0.5)


def ess(log_w: Tensor) -> Tensor:
    """Effective sample size."""
    w = log_w.softmax(0)
    return 1 / w.square().sum(0)


def prior_of(pair: Pair) -> Any:
    """A guide that draws from the prior."""
    return poutine.block(pair.written[0], hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


def log_px(pair: Pair, args: tuple[Tensor, ...], num: int = 4000, seed: int = 7) -> Figure:
    """log p(x_n): in closed form, else by importance sampling over copies of the rows."""
    try:
        if pair.exact is not None:
            with evaluating(pair):
                value = pair.exact(*args)
            value = value.double()
            if len(value) > len(pair.x):  # weights of draws
                return log_mean(value)
            return Figure(value, torch.zeros_like(value))
        choices = [drawn(pair, args, num, seed, guide).log_w for guide in (None, prior_of(pair))]
        return log_mean(max(choices, key=lambda log_w: ess(log_w).min()))
    except Exception as error:
        raise OracleError(f"{type(error).__name__}: {error}") from error


def simulated(pair: Pair, num: int, seed: int = 11) -> tuple[Tensor, dict[str, Tensor]]:
    """x and latents of `num` copies of the rows, drawn from the model with its observations undone."""
    if pair.together and num > 1:
        runs = [simulated(pair, 1, seed + i) for i in range(num)]
        x, sites = torch.cat([x for x, _ in runs]), [latent for _, latent in runs]
        return x, {name: torch.stack([latent[name] for latent in sites]) for name in sites[0]}
    with evaluating(pair), torch.random.fork_rng():
        torch.manual_seed(seed)
        sites = sample_sites(poutine.trace(poutine.uncondition(pair.written[0])).get_trace(*copies(pair.args, num)))
    observed = redrawn(sites)
    latent = {n: s["value"] for n, s in sites.items() if not s["infer"].get("was_observed")}
    return pair.simulated(observed), latent


def redrawn(sites: dict[str, Site]) -> dict[str, Tensor]:
    """What sites drew whose observations were undone; what a mask leaves out is no data, and stays as it was."""
    was = {name: site for name, site in sites.items() if site["infer"].get("was_observed")}
    return {n: torch.where(kept(s), s["value"], s["infer"]["obs"]) for n, s in was.items()}


def kept(site: Site) -> Tensor:
    """Where no mask leaves a value out, of the value's shape or one that broadcasts to it."""
    dims, fn, there = site["value"].dim(), site["fn"], [on_left(site["mask"], site["fn"].event_dim)]
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            there.append(on_left(fn._mask, dims - len(fn.batch_shape)))
        fn = fn.base_dist
    return torch.stack(torch.broadcast_tensors(*there)).all(0)


def on_left(mask: Any, event_dim: int) -> Tensor:
    """A mask with a dimension of one for each of the event's."""
    mask = torch.as_tensor(True if mask is None else mask)
    return mask.reshape(*mask.shape, *[1] * event_dim) if mask.dim() else mask
