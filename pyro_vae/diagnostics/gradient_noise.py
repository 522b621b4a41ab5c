r"""Gradient noise: mean, variance, signal-to-noise ratio and direction of each objective's gradient, over many draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.common.flagged import format_nats
from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import evaluation_mode, programs
from pyro_vae.programs.reached_parameters import reached
from pyro_vae.programs.sites import Program, sample_sites

Gradient = dict[str, Tensor]  # "encoder" and "decoder" to all of their coordinates, float64


@dataclass(frozen=True)
class GradientStats:
    r"""One objective's gradient with respect to one part's parameters.

    Attributes:
        mean: of the gradient over draws, ``(coordinates,)``, nats per unit of the parameter.
        variance: its variance from draw to draw, ``(coordinates,)``.
        cosine, cosine_se: mean over draws of cos(one draw, reference), NaN where either is 0; its standard error, over draws.
    """

    mean: Tensor = field(repr=False)
    variance: Tensor = field(repr=False)
    cosine: float
    cosine_se: float

    @property
    def snr(self) -> Tensor:
        """|mean| / sd of each coordinate that varies."""
        varies = self.variance > 0
        return self.mean[varies].abs() / self.variance[varies].sqrt()

    def summary(self) -> dict[str, Any]:
        """Average over coordinates; the signal-to-noise ratio over those that vary."""
        snr, variance = self.snr, self.variance
        return {
            "coordinates": len(self.mean),
            "varying": len(snr),
            "norm": self.mean.norm().item(),
            "variance": variance.mean().item() if len(variance) else None,
            "snr_mean": snr.mean().item() if len(snr) else None,
            "snr_median": snr.median().item() if len(snr) else None,
            "cosine": None if math.isnan(self.cosine) else self.cosine,
            "cosine_se": None if math.isnan(self.cosine_se) else self.cosine_se,
        }


@dataclass(frozen=True)
class GradientReport:
    """Gradients of several objectives at one point: ``report["dreg"]["encoder"].snr``; ``str(report)`` is a table.

    Attributes:
        stats: objective's name to "encoder" and "decoder" to :class:`GradientStats`.
        draws, reference_draws: how many, and how many the reference is the mean of.
        rows, seed: of the batch; of the draws.

    Example:
        >>> encoder = GradientStats(torch.tensor([0.5, -1.0]), torch.tensor([0.25, 4.0]), cosine=0.9, cosine_se=0.01)
        >>> report = GradientReport({"iwae": {"encoder": encoder}}, draws=200, reference_draws=200, rows=32, seed=0)
        >>> report["iwae"]["encoder"].snr
        tensor([1.0000, 0.5000])
        >>> print(report)
        objective  part        varying/all   variance  SNR mean  SNR median  cosine to reference
        iwae       encoder            2/2       2.12     0.750       0.500    0.900 ± 0.010
        200 draws of the gradient on 32 rows, seed 0; SNR = |mean| / sd over coordinates that vary. ...
    """

    stats: Mapping[str, Mapping[str, GradientStats]]
    draws: int
    reference_draws: int
    rows: int
    seed: int

    def __getitem__(self, name: str) -> Mapping[str, GradientStats]:
        return self.stats[name]

    @property
    def snr_floor(self) -> float:
        """√(2 / (π draws)): the average estimate of a signal-to-noise ratio of 0."""
        return math.sqrt(2 / (math.pi * self.draws))

    def to_dict(self) -> dict[str, Any]:
        """Return numbers only, ready for JSON."""
        objectives = {name: {part: s.summary() for part, s in parts.items()} for name, parts in self.stats.items()}
        totals = ("draws", "reference_draws", "rows", "seed", "snr_floor")
        return {"objectives": objectives} | {name: getattr(self, name) for name in totals}

    def __str__(self) -> str:
        width = max(map(len, ["objective", *self.stats]))
        heads = f"{'objective':{width}}  part        varying/all   variance  SNR mean  SNR median  cosine to reference"
        lines = [line(name.ljust(width), part, s) for name, parts in self.stats.items() for part, s in parts.items()]
        footer = (
            f"{self.draws} draws of the gradient on {self.rows} rows, seed {self.seed}; SNR = |mean| / sd over coordinates "
            f"that vary. An SNR of 0 shows as {self.snr_floor:.3f} (noise). The reference is a mean of {self.reference_draws} "
            "other draws."
        )
        return "\n".join([heads, *lines, footer])


def line(name: str, part: str, stats: GradientStats) -> str:
    """Format a row of the table."""
    s = stats.summary()
    numbers = [cell(s["variance"], 11, ".3g"), cell(s["snr_mean"], 10, ".3f"), cell(s["snr_median"], 12, ".3f")]
    cosine = f"{cell(s['cosine'], 7, '.3f')} ± {'-' if s['cosine_se'] is None else format_nats(s['cosine_se'])}"
    varying = f"{s['varying']}/{s['coordinates']}"
    return f"{name}  {part} {varying:>14}{''.join(numbers)}  {cosine}"


def cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


@suggest_keywords
def gradient_report(
    vae: Any,
    x: Tensor,
    *c: Tensor,
    objectives: Mapping[str, ELBO] | Sequence[ELBO],
    draws: int = 200,
    reference: ELBO | None = None,
    reference_draws: int | None = None,
    seed: int = 0,
) -> GradientReport:
    r"""Estimate mean, variance and signal-to-noise ratio \|E g\| / sd g of each objective's gradient g, and its direction.

    Of the bound, summed over rows, at the parameters as they are, in eval mode. *Encoder* are the parameters that the
    guide's draws or densities depend on (those that the model shares with it, too, as under a VampPrior), *decoder* the
    model's others. Objectives are drawn on the same seeds. Nothing is changed: no parameter, no ``.grad``, no global
    random state. Memory is that of a few gradients, whatever `draws`. The direction is the mean cosine to a reference.

    An estimated \|mean\| / sd is never 0: without any signal it is √(2 / (π draws)) on average, and its standard error is
    about 1 / √draws. A reference of R draws is noisy, too: cosines are too small by a factor of about √(1 + ρ / R), ρ the
    gradient's total variance over its squared length.

    Args:
        vae, x, *c: a VAE, or a tuple (model, guide); rows, ``(N, *event)``; what else the programs take.
        objectives: names to objectives, such as ``{"iwae": Bound(iwae, 8), "dreg": Bound(iwae, 8, estimator=dreg)}``, or
            a list of them, which are then named as they print. Any ELBO of Pyro's with a ``differentiable_loss`` will do.
        draws: how many gradients of each.
        reference: the objective whose mean gradient is the direction to compare with; None: each objective's own.
        reference_draws: how many draws that mean is of, other ones than above; None: as many as `draws`.
        seed: of all draws.

    Raises:
        UsageError: fewer than two draws, no objective, two of one name, or one without a ``differentiable_loss``.
        ProgramError: as :class:`~pyro_vae.Bound`.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, Bound, iwae, dreg
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> objectives = {"iwae": Bound(iwae, 8), "dreg": Bound(iwae, 8, estimator=dreg)}
        >>> report = gradient_report(vae, torch.ones(5, 9), objectives=objectives, draws=10)
        >>> report["dreg"]["encoder"].mean.shape == report["iwae"]["encoder"].variance.shape
        True
    """
    check_whole(draws=draws, reference_draws=reference_draws, seed=seed)
    named, others = by_name(objectives), draws if reference_draws is None else reference_draws
    if draws < 2 or others < 1:
        raise UsageError(f"a variance takes 2 draws or more, and a reference 1, got draws={draws} and {others}")
    model, guide = programs(vae)
    no_cudnn = torch.backends.cudnn.flags(enabled=False)  # its RNNs have no gradient in eval mode
    with evaluation_mode(model, guide), torch.enable_grad(), no_cudnn, seeded(seed, device=x.device):
        parts = split_parameters(model, guide, (x, *c))

        def gradient(objective: Any, *block: int) -> Gradient:
            with seeded(seed, *block, device=x.device):
                return gradient_of(-objective.differentiable_loss(model, guide, x, *c), parts)

        def stats_of(objective: Any) -> dict[str, GradientStats]:
            towards = common or mean_of(partial(gradient, objective, 1), others)
            return measure(partial(gradient, objective, 0), draws, towards)

        common = None if reference is None else mean_of(partial(gradient, reference, 1), others)
        stats = {name: stats_of(objective) for name, objective in named.items()}
    return GradientReport(stats, draws, others, len(x), seed)


def by_name(objectives: Mapping[str, ELBO] | Sequence[ELBO]) -> dict[str, Any]:
    """Name the objectives; those of a list by how they print."""
    pairs = list(objectives.items()) if isinstance(objectives, Mapping) else [(repr(o), o) for o in objectives]
    named: dict[str, Any] = dict(pairs)
    if not named or len(named) < len(pairs):
        raise UsageError(f"wanted at least one objective, and each of another name, got {[name for name, _ in pairs]}")
    for name, objective in named.items():
        if not hasattr(objective, "differentiable_loss"):
            raise UsageError(
                f"objective {name!r} is a {type(objective).__name__} without a differentiable_loss. Take a Bound, or one of "
                "Pyro's ELBOs that have one (Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO)."
            )
    return named


def split_parameters(model: Program, guide: Program, args: tuple[Any, ...]) -> dict[str, list[Tensor]]:
    """Find the parameters that the guide depends on, and the others that the model does, by autograd."""
    q = poutine.trace(guide).get_trace(*args)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
    nodes: list[Any] = [*q.nodes.values(), *p.nodes.values()]
    declared = list(dict.fromkeys(node["value"].unconstrained() for node in nodes if node["type"] == "param"))
    if not declared:
        raise UsageError("the programs declare no parameters: use pyro.param, pyro.module or a VAE.")
    q_sites, p_sites = sample_sites(q).values(), sample_sites(p).values()
    draws = [site["value"] for site in q_sites]
    of_q, of_p = ([site["fn"].log_prob(site["value"]) for site in sites] for sites in (q_sites, p_sites))
    encoder, either = reached([*of_q, *draws], declared), reached([*of_q, *draws, *of_p], declared)
    return {"encoder": encoder, "decoder": [p for p in either if all(p is not other for other in encoder)]}


def gradient_of(value: Tensor, parts: Mapping[str, list[Tensor]]) -> Gradient:
    """Concatenate ∂ value of each part's parameters; 0 where it does not depend on them. ``.grad`` is left alone."""
    parameters = [p for group in parts.values() for p in group]
    grads = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    sizes, empty = [len(group) for group in parts.values()], value.new_zeros(0)
    pieces = dict(zip(parts, (grads[: sizes[0]], grads[sizes[0] :]), strict=True))
    return {part: torch.cat([empty, *(g.flatten() for g in some)]).double() for part, some in pieces.items()}


def mean_of(draw: Callable[[int], Gradient], count: int) -> Gradient:
    """Average `count` gradients."""
    mean = draw(0)
    for i in range(1, count):
        for part, gradient in draw(i).items():
            mean[part] += (gradient - mean[part]) / (i + 1)
    return mean


def measure(draw: Callable[[int], Gradient], count: int, reference: Gradient) -> dict[str, GradientStats]:
    """Accumulate mean and variance (Welford's), and cosines."""
    cosines: dict[str, list[Tensor]] = {part: [] for part in reference}
    mean, square = ({part: torch.zeros_like(r) for part, r in reference.items()} for _ in range(2))
    for i in range(count):
        for part, gradient in draw(i).items():
            off = gradient - mean[part]
            mean[part] += off / (i + 1)
            square[part] += off * (gradient - mean[part])
            cosines[part].append(gradient @ reference[part] / (gradient.norm() * reference[part].norm()))
    each = {part: torch.stack(values) for part, values in cosines.items()}
    return {
        part: GradientStats(mean[part], square[part] / (count - 1), c.mean().item(), c.std().item() / count**0.5)
        for part, c in each.items()
    }
