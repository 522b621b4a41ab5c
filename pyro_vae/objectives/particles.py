r"""K draws from the guide with their log weights, and the three ways in which a gradient reaches them.

    log w_k = log p_θ(x, z_k) − log q_φ(z_k | x),   z_k = z_φ(ε_k)

depends on the parameters *directly through the model* (θ), through the *path* z_φ, and directly through the *score*
log q_φ at fixed z. A gradient estimator is a choice of how much each particle weighs in each of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.score_sites import row_log_prob, score_sites
from pyro_vae.programs.sites import (
    PARTICLES,
    LogProbs,
    Site,
    add,
    check_sites,
    is_latent,
    latent_sites,
    observed_sites,
    sample_sites,
    sum_terms,
    with_values,
)

from .beta import BETA
from .bounds import FLOOR


class Detached(Messenger):
    """Draws are handed on without their path to the parameters they were drawn with."""

    def _pyro_post_sample(self, msg: Message) -> None:
        if is_latent(msg) and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()


@dataclass
class Path:
    """Weight of gradients along z, on their way back; a hook that held the run itself would keep it alive for good."""

    plates: Plates
    weight: Tensor | None = None

    def weigh(self, gradient: Tensor, event_dim: int) -> Tensor:
        return gradient if self.weight is None else gradient * self.plates.beside(self.weight, event_dim)


@dataclass
class ParticleRun:
    """One run of both programs: P particles a row, ``(P, N)`` wherever a tensor is spoken of."""

    problem: Problem
    particles: int  # P
    detached: bool = False  # draws have no path to φ
    weighable: bool = False  # the path of each particle can be given a weight of its own
    validated: bool = False  # a number to read, not to train by: parameters and supports are checked
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.problem.plates)
        with Detached() if self.detached else nullcontext():
            self.trace = self.problem.trace(self.problem.guide, self.particles)
        sites = sample_sites(self.trace)
        self.q, self.guide_observed = latent_sites(sites), observed_sites(sites)
        self.values = {name: self.weighed(site) for name, site in self.q.items()}
        draws = with_values(self.trace, self.values) if self.weighable else self.trace
        self.p = self.problem.sites(self.problem.model, self.particles, draws)
        check_sites(self.p, self.q)
        self.scales = Scales.of(self.p, self.q, self.problem.plates)

    def weighed(self, site: Site) -> Tensor:
        """Return the draw as the densities see it: itself, or a copy whose gradient is multiplied by `path`."""
        value: Tensor = site["value"]
        if self.weighable and value.requires_grad:
            value = value.view_as(value)
            value.register_hook(partial(self.path.weigh, event_dim=site["fn"].event_dim))
        return value

    def plain(self) -> ParticleRun:
        """Return the same draws, their paths not weighable: the model is run on them once more, if they were."""
        if not self.weighable:
            return self
        plain = copy(self)
        plain.weighable, plain.values = False, {name: site["value"] for name, site in self.q.items()}
        plain.p = self.problem.sites(self.problem.model, self.particles, self.trace)
        for cached in ("terms", "fixed_score"):
            plain.__dict__.pop(cached, None)
        return plain

    @cached_property
    def terms(self) -> LogProbs:
        """log p(x | z), log p(z) and log q(z | x) by site."""
        q = self.guide_at(self.values) if self.weighable else self.q
        scores = self.score("model", self.p, {})
        observed, prior = ({name: scores[name] for name in part(self.p)} for part in (observed_sites, latent_sites))
        return LogProbs(observed, prior, self.score("guide", q, self.values))

    def score(self, program: str, sites: Sites, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each site's log-probability at these values (its own by default), with the scale that a handler gave it."""
        scale, plates = self.scales.inner, self.problem.plates
        moved = {name: {**site, "value": values.get(name, site["value"])} for name, site in sites.items()}
        if self.validated:
            scales = {name: scale[program, name] for name in moved}
            return score_sites(moved, plates, program=program, scales=scales)
        return {name: row_log_prob(name, site, plates, scale[program, name]) for name, site in moved.items()}

    def guide_at(self, values: Mapping[str, Tensor]) -> Sites:
        """Return the guide's sites at other draws: where one latent depends on another, its parameters do, too."""
        if len(self.q) == 1:
            return self.q
        return self.problem.sites(self.problem.guide, self.particles, with_values(self.trace, values))

    @cached_property
    def fixed_score(self) -> Tensor:
        """log q_φ(z | x) at the same draws, held fixed: what depends on φ directly, and nothing else."""
        fixed = {name: site["value"].detach() for name, site in self.q.items()}
        return sum_terms(self.score("guide", self.guide_at(fixed), fixed))

    def log_q(self, names: Sequence[str]) -> Tensor:
        """log q(z | x) of these sites as they were drawn: no handler's scale, and paths of weight 1; ``(P, N)``."""
        return sum_terms({name: row_log_prob(name, self.q[name], self.problem.plates) for name in names})

    def log_q_observed(self) -> Tensor | None:
        """Σ log q of what the guide observes (``pyro.factor`` too), as handlers weigh it, a mean over particles, or None."""
        terms = [
            scale_and_mask(site["fn"].log_prob(site["value"]), scale=site["scale"], mask=site["mask"]).sum()
            for site in self.guide_observed.values()
        ]
        return add(terms) / self.particles if terms else None

    def by_row(self, weight: Any) -> Any:
        """Return a handler's scale as a number, or ``(N,)``."""
        plates = self.problem.plates
        if not isinstance(weight, Tensor) or weight.numel() == 1:
            return weight
        along = weight.movedim(plates.dim, -1) if weight.dim() >= -plates.dim else weight
        if along.shape[-1] != along.numel():
            raise ProgramError(
                f"a handler weighs sites by a tensor of shape {tuple(weight.shape)}; wanted one number, or one for each row "
                f"along the plate {plates.data!r}"
            )
        return along.reshape(-1)

    def surrogate(self, model: Tensor, path: Tensor | None, score: Tensor | None) -> Tensor:
        """As :meth:`Draw.surrogate`, with weights ``(P, N)``."""
        if path is not None:
            least = torch.finfo(path.dtype).eps ** 2 * path.abs()  # where a underflows b may not: b / a stays defined
            model = torch.where(model.abs() < least, least, model)
            self.path.weight = torch.where(model == 0, torch.zeros_like(path), path / model)
        total = model * self.terms.log_w.clamp_min(FLOOR)  # 0 · −∞ would be NaN
        if score is not None:
            total = total + (model - score) * self.fixed_score
        return total.sum(0)


@dataclass
class Draw:
    """All particles of a row, in one run of the programs or several; ``(*K, N)`` is ``(K, N)``, or ``(M, K, N)`` in groups."""

    runs: list[ParticleRun]
    groups: int | None = None  # M

    @cached_property
    def terms(self) -> LogProbs:
        """log p(x | z), log p(z) and log q(z | x) by site, ``(P, N)`` with all P particles in one dimension."""
        if len(self.runs) == 1:
            return self.runs[0].terms
        terms = [vars(run.terms) for run in self.runs]
        first = terms[0]
        return LogProbs(
            **{kind: {n: torch.cat([run[kind][n] for run in terms]) for n in first[kind]} for kind in first}
        )

    @cached_property
    def log_w(self) -> Tensor:
        """log p(x, z) − log q(z | x), ``(*K, N)``, nats."""
        return self.grouped(self.terms.log_w)

    def grouped(self, flat: Tensor) -> Tensor:
        """``(P, N)`` as ``(*K, N)``."""
        return flat if self.groups is None else flat.reshape(self.groups, -1, flat.shape[-1])

    @property
    def first(self) -> ParticleRun:
        """The first run, whose sites are those of all."""
        return self.runs[0]

    def plain(self) -> Draw:
        """Return the same draws with the paths that they were drawn with, which an added term is differentiated through."""
        return Draw([run.plain() for run in self.runs], self.groups)

    def without_path(self) -> list[str]:
        """Return the latent sites whose draws carry no gradient of φ: no ``rsample``."""
        return [name for name, site in self.first.q.items() if not getattr(site["fn"], "has_rsample", False)]

    def log_q_observed(self) -> Tensor | None:
        """Σ log q of what the guide observes, over rows and as handlers weigh it, a mean over particles; None of nothing."""
        terms = [run.particles * term for run in self.runs if (term := run.log_q_observed()) is not None]
        return add(terms) / sum(run.particles for run in self.runs) if terms else None

    def split(self, weights: Tensor) -> list[Tensor]:
        """Return weights ``(*K, N)`` as ``(P, N)`` for each run, detached."""
        sizes = [run.particles for run in self.runs]
        return list(weights.detach().reshape(sum(sizes), -1).split(sizes))

    def surrogate(self, model: Tensor, path: Tensor | None = None, score: Tensor | None = None) -> Tensor:
        r"""``(N,)``, whose gradient is Σ_k a_k ∂_θ log p_θ(x, z_k) + b_k ∂_z log w_k · ∂_φ z_k − c_k ∂_φ log q_φ(z_k | x).

        Weights are ``(*K, N)``: a of the model, b of the path, c of the score (a by default; another b needs weighable draws).
        """
        none: list[Tensor | None] = [None] * len(self.runs)
        b, c = (none if weights is None else self.split(weights) for weights in (path, score))
        return add(map(ParticleRun.surrogate, self.runs, self.split(model), b, c))


@dataclass(frozen=True)
class Scales:
    """How much the rows weigh in a loss (`outer`), and how much each site weighs in its row (`inner`).

    A subsampled plate counts each row N / B times, and a handler over the whole program weighs all sites alike: both
    multiply a row's bound from outside. :class:`~pyro_vae.Beta`, and what a handler does to some sites only, change the bound.
    """

    outer: Any
    inner: Mapping[tuple[str, str], Any]

    @classmethod
    def of(cls, p: Sites, q: Sites, plates: Plates) -> Scales:
        sites = {("model", n): s for n, s in p.items()} | {("guide", n): s for n, s in q.items()}
        beta = {key: site["infer"].get(BETA, 1.0) for key, site in sites.items()}
        outer = next(iter(observed_sites(p).values()))["scale"]  # β is of latents
        if all(same(site["scale"], outer if beta[key] == 1 else outer * beta[key]) for key, site in sites.items()):
            return cls(outer, beta)
        frame = next(f for f in next(iter(sites.values()))["cond_indep_stack"] if f.name == plates.data)
        ratio = float(frame.size if frame.full_size is None else frame.full_size) / float(frame.size)
        return cls(ratio, {key: scaled(site["scale"], ratio) for key, site in sites.items()})


def scaled(scale: Any, ratio: float) -> Any:
    """scale / ratio; exactly 1.0 where only rounding keeps it from that."""
    value = scale if ratio == 1 else scale / ratio
    return 1.0 if isinstance(value, float | int) and abs(value - 1) < 1e-12 else value


def same(a: Any, b: Any) -> bool:
    """Compare two scales, but for rounding. Values of tensors are read only where both are: that waits for a GPU."""
    if isinstance(a, Tensor) != isinstance(b, Tensor):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=0)
    if isinstance(a, float | int) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-12)
    return bool(a == b)


def check_inner_plates(run: ParticleRun, bound: Callable[[Tensor], Tensor]) -> None:
    """Refuse subsampled plates within a row under a bound that is not linear in log w."""
    for site in [*run.p.values(), *run.q.values()]:
        for frame in site["cond_indep_stack"]:
            if frame.name not in (run.problem.plates.data, PARTICLES) and frame.full_size not in (None, frame.size):
                raise ProgramError(
                    f"site {site['name']!r} lies in the plate {frame.name!r}, which subsamples {frame.size} of "
                    f"{frame.full_size} within a row: its scaled sum is unbiased for log p, so Bound(elbo) is right and "
                    f"{bound} is not. Take Bound(elbo), or the whole plate."
                )
