r"""Gradient estimators: the weight of each particle in the gradient of a bound, by way of the model, the path and the score.

With F(log w) the bound, F_k = ∂F / ∂ log w_k and F_kk its second derivative, the gradient is

    Σ_k a_k ∂_θ log p_θ(x, z_k)  +  b_k ∂_z log w_k · ∂_φ z_k  −  c_k ∂_φ log q_φ(z_k | x)

| estimator       | a (model) | b (path)     | c (score)            |
|-----------------|-----------|--------------|----------------------|
| ``pathwise``    | F_k       | F_k          | F_k                  |
| ``stl``         | F_k       | F_k          | 0                    |
| ``dreg``        | F_k       | F_k − β F_kk | 0                    |
| ``vimco``       | F_k       | F_k or none  | F_k − (F − F_{−k})   |
| ``rws``         | F_k       | 0            | −w_k / Σ_j w_j       |

β is what handlers weigh log q by within log w (1 without any). ``gdreg`` is ``dreg`` but for the prior's parameters.

An estimator is a callable ``(draw, bound) -> (value, surrogate)``, each ``(N,)``: the bound of each row, and what to
differentiate. It asks for draws by two attributes: ``detached`` (no path) and ``weighable`` (a path of another weight).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.plates import sum_rows
from pyro_vae.programs.sites import add, sum_terms
from pyro_vae.programs.wrapped import base_name

from .curvature import second
from .leave_one_out import BoundFunction, without_one
from .particles import Draw, ParticleRun, same

Result = tuple[Tensor, Tensor]


class Estimator(Protocol):
    """The gradient estimators that :class:`~pyro_vae.Bound` takes."""

    @property
    def detached(self) -> bool: ...

    @property
    def weighable(self) -> bool: ...

    def __call__(self, draw: Draw, bound: BoundFunction) -> Result: ...


@dataclass(frozen=True, repr=False)
class Estimate:
    """A gradient estimator: a function ``(draw, bound) -> (value, surrogate)``, and the kind of draw that it needs."""

    name: str
    function: Callable[[Draw, BoundFunction], Result]
    detached: bool = False
    weighable: bool = False
    needs_path: bool = True

    def __post_init__(self) -> None:
        text = getattr(self.function, "func", self.function).__doc__ or type(self).__doc__
        object.__setattr__(self, "__doc__", text)  # so that `stl?` shows what sticking the landing is

    def __call__(self, draw: Draw, bound: BoundFunction) -> Result:
        if self.needs_path and torch.is_grad_enabled() and (sites := draw.without_path()):
            kind = base_name(draw.first.q[sites[0]]["fn"])
            raise ProgramError(
                f"site {sites[0]!r} is drawn from a {kind}, which has no rsample: estimator {self.name} has no gradient for "
                "the guide there. Take estimator=vimco or rws, straight-through draws (one_hot_categorical_st), or sum the "
                "site out (TraceEnum_ELBO)."
            )
        return self.function(draw, bound)

    def __repr__(self) -> str:
        return self.name


def guide_bound(bound: BoundFunction) -> BoundFunction:
    """Return the bound that the guide's gradient follows: another one for ``piwae``."""
    return getattr(bound, "guide_bound", bound)


def first(bound: BoundFunction, log_w: Tensor) -> Tensor:
    """F_k = ∂F / ∂ log w_k, of the shape of log_w, detached; 0 in a group whose weights are all 0, where it is not defined."""
    with torch.enable_grad():  # of the bound alone: `per_row` runs under no_grad
        leaf = log_w.detach().requires_grad_()
        slope = torch.autograd.grad(bound(leaf).sum(), leaf)[0]
    return slope.masked_fill(slope.isnan() & (log_w == -math.inf), 0.0)


def doubly(draw: Draw, bound: BoundFunction, programs: tuple[str, ...] = ("guide",)) -> Tensor:
    """F_k − β F_kk, ``(*K, N)``: β, which handlers weigh log q by, weighs the score and so what replaces it."""
    run = draw.first
    beta, *more = (run.scales.inner[program, name] for program in programs for name in run.q)
    if not all(same(scale, beta) for scale in more):
        raise ProgramError(
            f"handlers weigh the latent sites {list(run.q)} unlike one another, and dreg and gdreg need one weight for all "
            "of log q (gdreg for log p(z), too): take estimator=pathwise, or one handler around all latents (Beta)."
        )
    return first(bound, draw.log_w) - run.by_row(beta) * second(bound, draw.log_w)


def _pathwise(draw: Draw, bound: BoundFunction) -> Result:
    r"""∇ F(log w(z_φ(ε))): the reparameterised gradient, through the path and the score alike.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro_vae import Bound, elbo, pathwise
        >>> Bound(elbo, 1, estimator=pathwise)
        Bound(elbo, num_particles=1, estimator=pathwise)
    """
    if guide_bound(bound) is not bound:
        return _two_bounds(draw, bound)
    value = bound(draw.log_w)
    return value, value


def _two_bounds(draw: Draw, bound: BoundFunction) -> Result:
    """Let the model follow one bound, and the guide another (PIWAE)."""
    b = None if guide_bound(bound) is bound else first(guide_bound(bound), draw.log_w)
    return bound(draw.log_w), draw.surrogate(first(bound, draw.log_w), b, b)


def _stl(draw: Draw, bound: BoundFunction) -> Result:
    r"""F_k for model and path, nothing for the score: the path derivative, zero where q(z | x) is the exact posterior.

    Unbiased for the ELBO. For other bounds the score's expectation is not zero, and the guide's gradient is biased: take
    ``dreg``, which is not.

    References:
        Sticking the Landing (Roeder, Wu & Duvenaud, 2017), https://arxiv.org/abs/1703.09194

    Example:
        >>> from pyro_vae import Bound, elbo, stl
        >>> Bound(elbo, 1, estimator=stl)
        Bound(elbo, num_particles=1, estimator=stl)
    """
    b = None if guide_bound(bound) is bound else first(guide_bound(bound), draw.log_w)
    return bound(draw.log_w), draw.surrogate(first(bound, draw.log_w), b, torch.zeros_like(draw.log_w))


def _dreg(draw: Draw, bound: BoundFunction) -> Result:
    r"""F_k for the model, F_k − F_kk for the path: the score, reparameterised once more. For ``iwae`` these are w̃_k and w̃_k².

    Unbiased for any bound that is twice differentiable in log w: E[F_k ∂_φ log q] = E[F_kk ∂_z log w_k · ∂_φ z_k]. Under
    ``Beta`` the score is β ∂_φ log q, and the path's weight F_k − β F_kk.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019),
        https://arxiv.org/abs/1810.04152

    Example:
        >>> from pyro_vae import Bound, iwae, dreg
        >>> Bound(iwae, 8, estimator=dreg)
        Bound(iwae, num_particles=8, estimator=dreg)
    """
    a, b = first(bound, draw.log_w), doubly(draw, guide_bound(bound))
    return bound(draw.log_w), draw.surrogate(a, b, torch.zeros_like(a))


def _gdreg(draw: Draw, bound: BoundFunction) -> Result:
    r"""DReG with the prior's parameters reparameterised, too: p_θ(z)'s gradient flows through z = loc_θ + scale_θ ε.

        (F_k ∂_z log p(x | z_k) − (F_k − F_kk) ∂_z log w_k) · ∂_θ z_θ(ε),  ε = (z_k − loc_θ) / scale_θ held

    in place of F_k ∂_θ log p_θ(z_k). For one latent site, whose prior is of a location-scale family.

    References:
        Generalized Doubly Reparameterized Gradient Estimators (Bauer & Mnih, 2021), https://arxiv.org/abs/2101.11046

    Example:
        >>> from pyro_vae import Bound, iwae, gdreg
        >>> Bound(iwae, 8, estimator=gdreg)
        Bound(iwae, num_particles=8, estimator=gdreg)
    """
    a, path = first(bound, draw.log_w), doubly(draw, guide_bound(bound))
    parts = zip(draw.runs, draw.split(a), draw.split(doubly(draw, bound, ("guide", "model"))), strict=True)
    moved = add([moved_prior(*part) for part in parts])  # before paths are weighed
    return bound(draw.log_w), draw.surrogate(a, path, torch.zeros_like(a)) + moved


def moved_prior(run: ParticleRun, a: Tensor, b: Tensor) -> Tensor:
    """Replace a_k ∂_θ log p_θ(z_k) by a gradient through z = loc_θ + scale_θ ε, ``(N,)``."""
    name, base = location_scale(run)
    site, z = run.p[name], run.values[name]
    if not z.requires_grad:  # a guide without parameters: nothing to differentiate along, and nothing to replace
        return torch.zeros_like(a[0])
    direct = a * run.score("model", {name: site}, {name: z.detach()})[name]
    gradient = torch.autograd.grad((a * run.terms.reconstruction - b * run.terms.log_w).sum(), z, retain_graph=True)[0]
    noise = ((z - base.loc) / base.scale).detach()
    moved = gradient * (base.loc + base.scale * noise)  # z again, now a function of θ
    if event := site["fn"].event_dim:
        moved = moved.flatten(-event).sum(-1)
    return (sum_rows(name, moved, run.problem.plates) - direct).sum(0)


def location_scale(run: ParticleRun) -> tuple[str, Any]:
    """Return the one latent site, and its prior's base distribution."""
    name, *more = run.q
    if more:
        raise ProgramError(f"gdreg treats one latent site, and here are {[name, *more]}: take estimator=dreg.")
    base = run.p[name]["fn"]
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, (torch.distributions.Normal, torch.distributions.Laplace, torch.distributions.StudentT)):
        raise ProgramError(
            f"site {name!r} has a prior {type(base).__name__}, which gdreg cannot write as loc + scale ε (it can for Normal, "
            "Laplace and StudentT): take estimator=dreg."
        )
    return name, base


def _vimco(draw: Draw, bound: BoundFunction) -> Result:
    r"""VIMCO: (F − F_{−k}) ∂_φ log q(z_k | x) for latents without a path, F_k ∂ log w_k for all else.

    F_{−k} is the bound with log w_k replaced by the mean of the others: for the ELBO that is the leave-one-out baseline
    of REINFORCE. Latents with ``rsample`` keep their path. Needs at least two particles.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), https://arxiv.org/abs/1602.06725

    Example:
        >>> from pyro_vae import Bound, iwae, vimco
        >>> Bound(iwae, 8, estimator=vimco)
        Bound(iwae, num_particles=8, estimator=vimco)
    """
    value, surrogate = _two_bounds(draw, bound)
    if sites := draw.without_path():
        follow, log_w = guide_bound(bound), draw.log_w.detach()
        signal = draw.split(follow(log_w) - without_one(follow, log_w))
        surrogate = surrogate + add([(s * run.log_q(sites)).sum(0) for run, s in zip(draw.runs, signal, strict=True)])
    return value, surrogate


def _rws(draw: Draw, bound: BoundFunction) -> Result:
    r"""Wake phases, per row: F_k ∂_θ log p for the model, Σ_k w̃_k ∂_φ log q(z_k | x) for the guide.

    The guide descends KL(p(z | x) ‖ q(z | x)), not the bound: it covers what the posterior does (under ``Beta``, that of the
    prior p(z)^β). No ``rsample`` is needed, and more particles make both gradients better.

    References:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2015), https://arxiv.org/abs/1406.2751
        Revisiting Reweighted Wake-Sleep (Le et al., 2019), https://arxiv.org/abs/1805.10469

    Example:
        >>> from pyro_vae import Bound, iwae, rws
        >>> Bound(iwae, 8, estimator=rws)
        Bound(iwae, num_particles=8, estimator=rws)
    """
    a = first(bound, draw.log_w)
    log_q = torch.cat([run.log_q(list(run.q)) for run in draw.runs])  # draws have no path here: φ comes in directly
    wake = (draw.terms.reconstruction + sum_terms(draw.terms.prior) - log_q).detach().softmax(0)
    return bound(draw.log_w), draw.surrogate(a, score=torch.zeros_like(a)) + (wake * log_q).sum(0)


pathwise = Estimate("pathwise", _pathwise)
stl = Estimate("stl", _stl)
dreg = Estimate("dreg", _dreg, weighable=True)
gdreg = Estimate("gdreg", _gdreg, weighable=True)
vimco = Estimate("vimco", _vimco, needs_path=False)
rws = Estimate("rws", _rws, detached=True, needs_path=False)
ESTIMATORS = {e.name: e for e in (pathwise, stl, dreg, gdreg, vimco, rws)}
