"""Result of an annealed run, with its errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_bound, is_loose, why_loose
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.estimate import RowEstimates, data_se, digest_of_rows, format_nats, mean_se
from pyro_vae.evidence.importance.accumulator import WeightSums

from .point import Point
from .schedule import AISSettings, AnnealingPath

LOW_ESS = 5  # chains that count; with fewer the error is unknown
FEWEST = 10  # chains for an error
BY_TEMPERATURE = ("log_z", "ratio", "acceptance")
MOST = 1.5  # times the delta method's error: the square of a spread that few chains measure may be anything


def student(degrees: int) -> float:
    """t / z at 97.5 per cent, by Cornish and Fisher's expansion to second order (within 1 per cent from 5 degrees on).

    Example:
        >>> round(1.96 * student(15), 3), round(1.96 * student(1000), 3)
        (2.131, 1.962)
    """
    z, n = 1.96, max(degrees, 1)
    return 1 + (z**2 + 1) / (4 * n) + (5 * z**4 + 16 * z**2 + 3) / (96 * n**2)


def lognormal_se(log_w: Tensor) -> Tensor:
    r"""√(s² / C + s⁴ / 2 (C − 1)): error of the log mean of lognormal weights, m + s² / 2, of C log weights, ``(C, N)``.

    s² is twice the mean square above the median: chains that were left behind, whose weights count for nothing, are not in it.

    References:
        Confidence Intervals for the Log-normal Mean (Zhou & Gao, 1997; Cox's method),
        https://doi.org/10.1002/(SICI)1097-0258(19970415)16:7%3C783::AID-SIM488%3E3.0.CO;2-2

    Example:
        >>> quantiles = torch.distributions.Normal(0.0, 0.5).icdf((torch.arange(1000.0) + 0.5) / 1000)
        >>> round(lognormal_se(quantiles[:, None]).item() * 1000**0.5, 2)    # √(1/4 + 1/32)
        0.53
    """
    chains = len(log_w)
    middle = [log_w.kthvalue(k, 0).values for k in ((chains + 1) // 2, chains // 2 + 1)]
    above = (log_w - (middle[0] + middle[1]) / 2).clamp_min(0).nan_to_num(0)  # NaN where most weights are 0
    variance = 2 * above.square().mean(0)
    return (variance / chains + variance.square() / (2 * (chains - 1))).sqrt()


def mean_error(mc_se: Tensor, chains: int) -> float | None:
    """√(Σ_n se_n²) / N, with Student's t of all N (C − 1) degrees in place of each row's own C − 1; None if not known.

    Example:
        >>> round(mean_error(torch.full((4,), student(15)), 16) / student(60) * 2, 6)
        1.0
    """
    error, degrees = mean_se(mc_se), chains - 1
    return None if error is None else error * student(len(mc_se) * degrees) / student(degrees)


@dataclass
class AnnealedRun:
    """One weighted run of C chains for each of N rows, as it goes along its path of T + 1 temperatures."""

    path: AnnealingPath
    u: Tensor  # the chains, (C, N, D)
    log_w: Tensor  # (C, N) in float64
    log_z: list[Tensor] = field(default_factory=list)  # log mean weight at each temperature, (N,)
    ratio: list[Tensor] = field(default_factory=list)  # weighted mean of log ratio, likewise
    acceptance: list[Tensor] = field(default_factory=list)  # mean over chains of each transition, likewise

    def add(self, point: Point, log_w: Tensor, acceptance: Tensor | None = None) -> None:
        """Add log Ẑ_β and Σ w ratio / Σ w at one temperature; there is no `acceptance` before the first transition."""
        self.u, self.log_w = point.u, log_w
        if acceptance is not None:
            self.acceptance.append(acceptance.mean(0))
        w = log_w.softmax(0)
        self.log_z.append(log_w.logsumexp(0) - math.log(len(log_w)))
        self.ratio.append(torch.where(w > 0, w * point.ratio, 0).sum(0))

    def at_its_end(self) -> AnnealedRun:
        """Bring what it holds of each temperature to the host, all at once: a GPU would wait for each."""
        for name in BY_TEMPERATURE:
            setattr(self, name, list(torch.stack(getattr(self, name)).cpu()))
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Name all that it holds but the spread of its path's pilot, as a process gives it to another."""
        by_temperature = {name: torch.stack(getattr(self, name)) for name in BY_TEMPERATURE}
        return {"betas": self.path.betas, "steps": self.path.steps, "u": self.u, "log_w": self.log_w} | by_temperature

    @classmethod
    def of_tensors(cls, named: Mapping[str, Tensor]) -> AnnealedRun:
        """Build a run of what :meth:`tensors` named."""
        path = AnnealingPath(named["betas"], named["steps"])
        return cls(path, named["u"], named["log_w"], *(list(named[name]) for name in BY_TEMPERATURE))

    @classmethod
    def of_all_chains(cls, runs: list[AnnealedRun]) -> AnnealedRun:
        """Join runs of some chains each of the same rows; step sizes are their mean."""
        if len(runs) == 1:
            return runs[0]
        u, log_w = torch.cat([r.u for r in runs]), torch.cat([r.log_w for r in runs])
        part = torch.tensor([len(r.log_w) / len(log_w) for r in runs], dtype=torch.float64).view(-1, 1, 1)
        log_z, ratio, acceptance = (
            torch.stack([torch.stack(getattr(r, name)) for r in runs]) for name in BY_TEMPERATURE
        )
        steps = torch.stack([r.path.steps for r in runs])
        log_sums = log_z + part.log()  # of a part's weights, of all chains
        weight = log_sums.softmax(0)
        joined = {
            "log_z": log_sums.logsumexp(0),
            "ratio": torch.where(weight > 0, weight * ratio, 0.0).sum(0),
            "acceptance": (part * acceptance).sum(0),
        }
        path = AnnealingPath(runs[0].path.betas, (part.to(steps) * steps).sum(0))
        return cls(path, u, log_w, *(list(joined[name]) for name in BY_TEMPERATURE))

    @classmethod
    def joined(cls, runs: list[AnnealedRun]) -> AnnealedRun:
        """Join runs of chunks of rows; a ProgramError if a weight is neither finite nor zero."""
        steps, u, log_w = (
            torch.cat(parts, 1) for parts in zip(*((r.path.steps, r.u, r.log_w) for r in runs), strict=True)
        )
        if (bad := (log_w.isnan() | (log_w == torch.inf)).any(0)).any():
            raise ProgramError(
                f"annealed log weights are NaN or +inf for rows {bad.nonzero().flatten().tolist()[:5]}: model or guide put "
                "out non-finite log-probabilities on the way. Look at those rows, and at the densities near the start."
            )
        by_temperature = (
            [torch.cat(rows) for rows in zip(*(getattr(r, name) for r in runs), strict=True)] for name in BY_TEMPERATURE
        )
        return cls(AnnealingPath(runs[0].path.betas, steps), u, log_w, *by_temperature)

    def result(self, settings: AISSettings, measure: str) -> Annealed:
        """Return what the user reads."""
        sums = self.sums
        path = self.log_w.cpu(), self.path.betas, self.path.steps.cpu()
        acceptance, log_z, ratio = (torch.stack(rows) for rows in (self.acceptance, self.log_z, self.ratio))
        return Annealed(sums.log_px, self.mc_se, sums.ess, acceptance, *path, log_z, ratio, settings, measure)

    @property
    def mc_se(self) -> Tensor:
        r"""Standard error of log p̂, times t / z: 1.96 of it are Student's 95 per cent of C − 1 degrees.

        That of the delta method, or that of lognormal weights whose log spreads as much above its median as here
        (:func:`lognormal_se`), whichever is larger, and at most half as much again. Of 16 weights of a skewed kind the largest
        have often not come: then log p̂ and the delta method's error are both small, and the interval misses on one side. An
        error that is taken from 16 chains is itself uncertain by a fifth, hence Student's.
        """
        delta, lognormal = self.sums.mc_se, lognormal_se(self.log_w).cpu()
        return student(len(self.log_w) - 1) * lognormal.clamp(delta, MOST * delta)

    @property
    def sums(self) -> WeightSums:
        """Sums of the weights, for their mean with its error and the ESS."""
        sums = WeightSums(self.log_w.shape[1])
        sums.add(self.log_w)
        return sums


@dataclass(frozen=True, eq=False, repr=False)
class Annealed(RowEstimates):
    r"""log p̂(x) of each row by annealed importance sampling: a lower bound in expectation, E[p̂] = p(x); nats.

    Attributes:
        log_px, mc_se: log mean weight, ``(N,)`` in float64, and its Monte Carlo standard error (:attr:`AnnealedRun.mc_se`).
        ess: effective number of chains of each row, between 1 and C.
        acceptance_by_temperature: mean over chains of each transition, ``(T, N)``.
        log_w: the weights, ``(C, N)``.
        betas, steps: the path, ``(T + 1,)``, and its step sizes, ``(T + 1, N)`` (their mean, where chains of a row were
            run in parts).
        log_z: log Ẑ_β of each row at each temperature, ``(T + 1, N)``; the last is `log_px`.
        ratio: E_β[log p(x, z) − log start], ``(T + 1, N)``: with the prior as start, E_β[log p(x | z)].
        settings: that it was run with.
        measure: that log p(x) is a density with respect to; "score" for one of no distribution (``pyro.factor``).
        row_ids: which rows it is of, as for :class:`~pyro_vae.Evidence`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import ais
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.9))
        >>> annealed = ais(
        ...     model, guide, torch.zeros(2), start="prior", num_temperatures=4, num_chains=12, step_size=0.5, verbose=False
        ... )
        >>> annealed.log_w.shape, annealed.acceptance.shape, annealed.method
        (torch.Size([12, 2]), torch.Size([2]), 'annealed importance sampling from the prior')
        >>> betas, rate, distortion = annealed.rate_distortion()
        >>> bool((rate[-1] + distortion[-1] + annealed.log_px.mean()).abs() < 1e-6)
        True
    """

    log_px: Tensor
    mc_se: Tensor
    ess: Tensor
    acceptance_by_temperature: Tensor
    log_w: Tensor
    betas: Tensor
    steps: Tensor
    log_z: Tensor
    ratio: Tensor
    settings: AISSettings
    measure: str
    row_ids: RowIds | None = None

    @property
    def method(self) -> str:
        """Name of the method."""
        return f"annealed importance sampling from the {self.settings.start}"

    @property
    def reliable(self) -> Tensor:
        """Rows of 10 chains or more whose ESS is at least 5, and a third of the chains; none where the median is below half.

        The errors of others are too small. A row alone cannot tell: its ESS is high where its largest weights have not come.
        """
        chains = len(self.log_w)
        enough = chains >= FEWEST and self.ess.median().item() >= chains / 2
        return (self.ess >= max(LOW_ESS, chains / 3)) & enough

    @property
    def flagged(self) -> Tensor:
        """Numbers of the rows whose error is not to be believed: not `reliable`."""
        return (~self.reliable).nonzero().flatten()

    @property
    def acceptance(self) -> Tensor:
        """Mean acceptance of each row, ``(N,)``."""
        return self.acceptance_by_temperature.mean(0)

    def rate_distortion(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""(β, R(β), D(β)), each ``(T + 1,)``, nats, means over rows, for π_β ∝ p(z) p(x | z)^β.

            D(β) = −E_β[log p(x | z)],  R(β) = KL(π_β ‖ p(z)) = −β D(β) − log Z_β

        The best rate at each distortion that any encoder could reach with this prior and decoder. log Ẑ_β is a lower bound in
        expectation, so rates lean upwards. R(1) + D(1) = −log p̂(x).

        Raises:
            UsageError: the chains started at the guide, whose path is another one.

        References:
            Evaluating Lossy Compression Rates of Deep Generative Models (Huang, Makhzani, Cao & Grosse, 2020),
            https://arxiv.org/abs/2008.06653
        """
        if self.settings.start != "prior":
            raise UsageError(
                f"the rate–distortion curve runs along prior · likelihood^β; chains started at the {self.settings.start}. "
                "Run ais(..., start='prior')."
            )
        distortion = -self.ratio.mean(1)
        rate = -self.betas * distortion - self.log_z.mean(1)
        rate[0] = 0  # π_0 is the prior, and 0 · ∞ would be NaN
        return self.betas, rate, distortion

    def summary(self) -> dict[str, Any]:
        """Average over rows, errors apart: Monte Carlo (more chains or temperatures shrink it) and data (more rows do)."""
        names = ("num_chains", "num_temperatures", "leapfrog_steps", "start", "schedule", "chunk_size", "seed")
        return {
            "log_px": self.log_px.mean().item(),
            "log_px_mc_se": mean_error(self.mc_se, len(self.log_w)),
            "log_px_data_se": data_se(self.log_px),
            "ess_median": self.ess.median().item(),
            "ess_min": self.ess.min().item(),
            "rows_flagged": len(self.flagged),
            "acceptance": self.acceptance.mean().item(),
            "acceptance_min": self.acceptance.min().item(),
            "rows": len(self),
            **{name: getattr(self.settings, name) for name in names},
            "method": self.method,
            "measure": self.measure,
            **digest_of_rows(self.row_ids),
            "unit": "nats per row, higher is better; a lower bound in expectation",
        }

    def __str__(self) -> str:
        s = self.summary()
        mean = (
            f"≥ {s['log_px']:.3f} ± {format_nats(s['log_px_mc_se'])} (Monte Carlo) "
            f"± {format_nats(s['log_px_data_se'])} (data) nats"
        )
        if is_loose(s):
            mean = f"{format_bound(s)} nats ({why_loose(s)})"
        return (
            f"log p(x) {mean} | AIS from the {s['start']}, {counted(s['num_chains'], 'chain')} × "
            f"{counted(s['num_temperatures'], 'temperature')} × "
            f"{s['leapfrog_steps']} leapfrogs | ESS median {s['ess_median']:.1f}, least {s['ess_min']:.1f}, "
            f"{counted(s['rows_flagged'], 'row')} flagged (too few chains count for an error) | "
            f"acceptance {s['acceptance']:.2f}, least {s['acceptance_min']:.2f} | {counted(s['rows'], 'row')}, {self.measure}"
        )
