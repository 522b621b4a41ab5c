r"""Simulation-based calibration (SBC): test q(z | x) against the posterior, on data whose z is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import NoWeightError, UsageError
from pyro_vae.programs.data_map import data_map_of_few
from pyro_vae.programs.own_rows import own_rows
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.row_coupling import refuse_guide_reading_rows
from pyro_vae.programs.simulate import draw
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors

from .block_ranks import LEFT_OUT, block_ranks
from .rank_uniformity import Band, band, cumulative, holm, moments, p_values

NOTABLE = 2.576  # standard errors, 1 per cent two-sided: for the words alone, which the p-value has licensed before


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the true z among draws of q(z | x), for each latent coordinate and for log p(x, z).

    Made by :func:`simulation_based_calibration` and :func:`data_set_calibration`; uniform ranks speak for q. Printed, it says
    which quantities' are not, with p-values corrected for their number.

    Attributes:
        names: of the Q quantities: ``z[0]`` …, and ``log p(x, z)``.
        ranks: how many of the draws lie below the truth, ``(N, Q)``, whole numbers 0..L, ties broken at random; and
            ``LEFT_OUT``, -1, where a mask leaves the quantity out of the density of that row.
        num_draws, level, seed: L, draws of q a row; α, of the verdict; of everything drawn.

    Example:
        >>> uniform, at_the_ends = torch.arange(100) % 10, torch.arange(100) // 50 * 9   # of 9 draws: ranks 0 to 9
        >>> ranks = torch.stack([uniform, at_the_ends], 1)
        >>> calibration = Calibration(("z", "log p(x, z)"), ranks, num_draws=9, level=0.05, seed=0)
        >>> calibration.words, calibration.rejected
        (('uniform', 'too narrow'), ('log p(x, z)',))
    """

    names: tuple[str, ...]
    ranks: Tensor
    num_draws: int
    level: float
    seed: int

    def __len__(self) -> int:
        return len(self.ranks)

    @cached_property
    def p_value(self) -> Tensor:
        """Exact p-value of uniform ranks for each quantity alone, ``(Q,)``; 1 for one that is masked in all rows."""
        each = [
            p_values(part, self.num_draws + 1) if len(part) else torch.ones(1).double() for part in self.by_quantity
        ]
        return torch.cat(each) if self.some_left_out else p_values(self.ranks, self.num_draws + 1)

    @property
    def some_left_out(self) -> bool:
        """Whether a mask leaves a quantity out of some rows."""
        return bool((self.ranks == LEFT_OUT).any())

    @property
    def by_quantity(self) -> list[Tensor]:
        """The ranks of each quantity, ``(rows that have it, 1)``."""
        return [column[column != LEFT_OUT].unsqueeze(1) for column in self.ranks.T]

    @property
    def rows_ranked(self) -> Tensor:
        """Rows in which each quantity is ranked, ``(Q,)``: all, but for masks."""
        return (self.ranks != LEFT_OUT).sum(0)

    @property
    def adjusted(self) -> Tensor:
        """p-values corrected for their number (Holm), ``(Q,)``."""
        return holm(self.p_value)

    @property
    def rejected(self) -> tuple[str, ...]:
        """Quantities whose adjusted p-value is at most `level`."""
        return tuple(name for name, p in zip(self.names, self.adjusted.tolist(), strict=True) if p <= self.level)

    @property
    def passed(self) -> bool:
        """True where nothing is rejected. With few rows that says little: see :func:`simulation_based_calibration`."""
        return not self.rejected

    @property
    def words(self) -> tuple[str, ...]:
        """Verdict for each quantity: "uniform", or how q's draws differ from the posterior."""
        parts = self.by_quantity if self.some_left_out else [self.ranks]
        both = [moments(part, self.num_draws + 1) if len(part) else (torch.zeros(1),) * 2 for part in parts]
        shift, spread = (torch.cat(each).tolist() for each in zip(*both, strict=True))
        verdicts = zip(self.adjusted.tolist(), shift, spread, self.rows_ranked.tolist(), strict=True)
        return tuple(
            ("uniform" if p > self.level else describe(a, b)) if rows else "masked in all rows"
            for p, a, b, rows in verdicts
        )

    @property
    def band(self) -> Band:
        """Bounds of one quantity's counts #{rank < i}, all at once, with probability 1 − level if it is calibrated.

        Of a quantity that all rows have; one that masks leave out of some rows has wider bounds, ``bands``.
        """
        return band(len(self), self.num_draws + 1, 1 - self.level)

    @property
    def bands(self) -> list[Band]:
        """The `band` of each quantity, of as many rows as it is ranked in (1 at least)."""
        return [band(max(1, int(rows)), self.num_draws + 1, 1 - self.level) for rows in self.rows_ranked]

    def to_dict(self) -> dict[str, Any]:
        """Return plain names and numbers, for JSON and for :func:`~pyro_vae.plots.calibration.ecdf_differences`."""
        ranks = self.num_draws + 1
        uniform = torch.arange(1, ranks, dtype=torch.float64) / ranks
        limits, per_quantity = self.band, {}
        counts = torch.cat([cumulative(part, ranks) for part in self.by_quantity])
        if self.some_left_out:
            sizes = self.rows_ranked.clamp_min(1).unsqueeze(1)
            lower, upper = (torch.stack([getattr(b, end) for b in self.bands]) for end in ("lower", "upper"))
            per_quantity = {
                "rows_ranked": self.rows_ranked.tolist(),
                "lower_by_quantity": (lower / sizes - uniform).tolist(),
                "upper_by_quantity": (upper / sizes - uniform).tolist(),
            }
        return per_quantity | {
            "names": list(self.names),
            "differences": (counts / self.rows_ranked.clamp_min(1).unsqueeze(1) - uniform).tolist(),
            "lower": (limits.lower / len(self) - uniform).tolist(),
            "upper": (limits.upper / len(self) - uniform).tolist(),
            "coverage": limits.coverage,
            "p_value": self.p_value.tolist(),
            "adjusted": self.adjusted.tolist(),
            "words": list(self.words),
            "passed": self.passed,
            "level": self.level,
            "rows": len(self),
            "num_draws": self.num_draws,
            "seed": self.seed,
        }

    def plot(self) -> Any:
        """Plot the ECDF of the ranks − that of uniform ones, in the band that holds it (a matplotlib figure)."""
        from pyro_vae.plots.calibration import ecdf_differences

        return ecdf_differences(self.to_dict())

    def __str__(self) -> str:
        rejected, rows = self.rejected, f"{len(self)} simulated rows, {self.num_draws} draws each"
        if not rejected:
            least = self.adjusted.min().item()
            return f"no miscalibration found in {len(self.names)} quantities ({rows}; least adjusted p {least:.2g})"
        worst = sorted(zip(self.adjusted.tolist(), self.names, self.words, strict=True))[: len(rejected)]
        lines = [f"  {name}: {words} (adjusted p {p:.2g})" for p, name, words in worst[:20]]
        more = [f"  and {len(worst) - 20} more"] if len(worst) > 20 else []
        return "\n".join([f"miscalibrated: {len(rejected)} of {len(self.names)} quantities ({rows})", *lines, *more])

    __repr__ = __str__


@suggest_keywords
def simulation_based_calibration(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    num_rows: int = 1000,
    num_draws: int = 99,
    level: float = 0.05,
    seed: int = 0,
    chunk_size: int = 16384,
    vectorize_particles: bool = True,
) -> Calibration:
    r"""(z*, x) ~ p(z) p(x | z),  z_1..z_L ~ q(z | x),  rank_u = #{l: z_lu < z*_u}: uniform on 0..L if q is the posterior.

    For an amortised guide this is free: no model is fitted again. The rank is taken of each latent coordinate u, and of
    log p(x, z), which sees what no coordinate shows: wrong correlations, and a guide that ignores x (the prior as guide has
    uniform ranks in every coordinate). Ties are broken at random, so that discrete latents have uniform ranks, too. The test
    of uniformity is exact, and the verdict is corrected for the number of quantities (Holm).

    What the ranks say: at both ends (∪), q's draws are too narrow; in the middle (∩), too wide; a slope, too high or too low.
    This is on average over x: a shift that changes its sign from row to row looks like a ∪. And it is on data *of the model*:
    it says nothing of how well the model fits real data, nor of q on real rows that the model would not generate. Uniform
    ranks prove nothing: of one latent (L = 99, α = 0.05) 1000 rows find draws narrower by a tenth 87 times in 100, and 100
    rows ones narrower by a third 97 times. Changes no parameter, no module's mode and no global random state.

    Latents that a mask of the model leaves out of its density (``poutine.mask``, ``.mask()`` on the distribution) are not
    ranked in those rows; where the mask depends on latents, 0 stands for what it leaves out, in the truth and in the draws.
    Entries of x that a mask leaves out stay as they are in the template.

    Args:
        model, guide: Pyro programs, the model as for :func:`~pyro_vae.programs.simulate.simulate`.
        x: a template: any rows of data, ``x_test[:1]``; its shape and dtype count, its values do not.
        *context: with as many rows as x; they are taken in turn, so with contexts pass many rows.
        num_rows: N, simulated rows.
        num_draws: L, draws of q a row. L + 1 a divisor of N is easiest to look at; any L is right.
        level: α, the probability that a pair with exact posteriors is called miscalibrated, at most.
        seed: of all draws.
        chunk_size: (row, draw) pairs run at a time; another one means other draws.
        vectorize_particles: as for :func:`~pyro_vae.log_weights`.

    Returns:
        A :class:`Calibration`: ranks, p-values and words for each quantity.

    Raises:
        ProgramError: a model that cannot be simulated, a pair that cannot be treated row by row, a guide with parameters for
            each row, latents or log p(x, z) that are NaN (site and row are named).
        UsageError: fewer than 2 rows, no draws, a level outside (0, 1).

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
        https://arxiv.org/abs/1804.06788
        Graphical Test for Discrete Uniformity (Säilynoja, Bürkner & Vehtari, 2022), https://arxiv.org/abs/2103.10522
        Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes Sensitivity
        (Modrák et al., 2023), https://arxiv.org/abs/2211.02383

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.diagnostics.sbc import simulation_based_calibration
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x, sd=0.5):                                            # of the posterior: 0.71
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, sd))
        >>> simulation_based_calibration(model, guide, torch.zeros(1))
        miscalibrated: 2 of 2 quantities (1000 simulated rows, 99 draws each)
          ...
        >>> simulation_based_calibration(model, lambda x: guide(x, 0.5**0.5), torch.zeros(1)).words
        ('uniform', 'uniform')
    """
    check_whole(num_rows=num_rows, num_draws=num_draws, chunk_size=chunk_size, seed=seed)
    if num_rows < 2 or num_draws < 1 or chunk_size < 1 or not 0 < level < 1:
        raise UsageError(
            f"wanted num_rows of 2 or more, num_draws and chunk_size of 1 or more and a level between 0 and 1; got "
            f"{num_rows}, {num_draws}, {chunk_size} and {level}"
        )
    model, guide, args = on_tensors(model, guide, x, *context)
    template = rows_of(model, guide, *args, missing=True)
    turns = torch.arange(num_rows, device=template[0].device) % len(template[0])
    blocks, parts = turns.split(max(1, chunk_size // num_draws)), []
    with quiet(model, guide, seed=seed, device=template[0].device):
        known = data_map_of_few(model, tuple(a[turns] for a in template), seed)
        first = draw(model, tuple(a[:1] for a in template), seed, known=known)  # the template itself may be no data
        refuse_own_rows(model, guide, template, first.args)
        problem = Problem.on(model, guide, *first.args)
        for i, rows in enumerate(blocks):
            truth = draw(model, tuple(a[rows] for a in template), seed, i, 0, known=known)
            if i == 0:  # of one row nobody can tell, and the guide reads no other there
                problem = problem.over(*truth.args).probed()
                refuse_guide_reading_rows(problem, "ranks are tested as")
            with problem.quiet(seed, i, 1):
                names, ranks = block_ranks(problem.over(*truth.args), truth, num_draws, vectorize_particles)
            parts.append(ranks.cpu())
    return Calibration(names, torch.cat(parts), num_draws, level, seed)


def refuse_own_rows(model: Program, guide: Program, template: Sequence[Tensor], one: Sequence[Tensor]) -> None:
    """Refuse a guide that has parameters for each row of the template: it knows nothing of a simulated row."""
    if (own := own_rows(model, guide, template, one)) is not None:
        raise NoWeightError(
            f"the guide's plate {own[0]!r} has {own[1]} rows of its own, each with its own parameters (as AutoNormal's): "
            "simulated rows have none, so their ranks would say nothing. Use a guide that computes q(z | x) from x, an encoder."
        )


def describe(shift: float, spread: float) -> str:
    """Describe ranks that are not uniform, by standard errors of their mean and of their variance."""
    width = abs(spread), "too narrow" if spread > 0 else "too wide"
    location = abs(shift), "too high" if shift < 0 else "too low"  # a low rank of the truth: q is too high
    faults = sorted([width, location], reverse=True)
    return " and ".join(word for size, word in faults if size > NOTABLE) or "of another shape"
