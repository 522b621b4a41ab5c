"""Evidence: importance-sampled log p(x) of each row, with Monte Carlo and data errors apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.csv_columns import read_columns, write_columns
from pyro_vae.common.given import whole
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import UsageError
from pyro_vae.evidence.estimate import (
    RowEstimates,
    beside,
    marked,
)
from pyro_vae.programs.program_ids import ProgramIds

from .accumulator import RowBlock
from .evidence_summary import summarize_evidence, summarize_weights
from .format_evidence import explain_flags, format_evidence
from .narrowness import too_narrow
from .noise import BLOCK, repeats_of
from .pareto import khat_threshold, steady_rows
from .same_evaluation import data_of, programs_of
from .weighing import joined_engines

ROW_FIELDS = ("log_px", "mc_se", "ess", "elbo", "elbo_se")
DIAGNOSTICS = ("khat", "max_share", "jackknife", "samples")  # which evidence of an older version lacks
SPREAD = "spread"  # of the rows that were looked at


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(RowEstimates):
    r"""log p̂(x) of each row and in the mean, with Monte Carlo error, effective sample size and ELBO, in nats; higher is better.

    Attributes:
        log_px: importance-sampled log p(x_n), ``(N,)`` in float64: a lower bound in expectation.
        mc_se: Monte Carlo standard error of each `log_px` (delta method; believe it where ess is large).
        ess: effective sample size (Σ w)² / Σ w² of each row, between 1 and `num_samples`; 0 where all weights are 0.
        elbo, elbo_se: the guide's evidence lower bound of each row, whatever the proposal, and its Monte Carlo standard error;
            NaN where no draws of the guide are there (evidence by another proposal, of an older version).
        num_samples, seed: K, particles a row (the most that any row has); of the particles.
        khat: Pareto k̂ of each row's weights; NaN where it is not known (K < 25), −∞ where they have no tail.
        max_share: the share of the largest weight in each row's sum.
        jackknife: `log_px` less its jackknife estimate of bias: nearer to log p(x) where k̂ is low, but **no bound**.
        samples: K of each row.
        spread: E_p(z|x)[w] / p(x) of some rows, from a few draws of the posterior, as K / ESS is from the proposal's
            (:mod:`~pyro_vae.evidence.importance.narrowness`); NaN for rows that were not looked at, None where none was.
        measure: what log p(x) is a density with respect to: "binary", "counts", "continuous" …; None if not known.
        proposal: what the particles were drawn from.
        target_se: the Monte Carlo error that was aimed at in each row.
        vectorizing: how the programs were run for K particles: under a "plate" of them, as K · N "rows", in a "loop".
        engine, engine_note: "eager" or "compiled" arithmetic, which its last digits depend on; what weighed whole blocks, why.
        row_blocks: which particles it holds, block of rows by block of rows, for :meth:`merge` and ``resume=``.
        row_ids: which rows it is of: a digest of each row's x and contexts, and the index of a DataFrame.
        program_ids: which programs it is of: a digest of their parameters and buffers, and their log-probabilities of a draw;
            None if not known.
        data_digest: of all rows that were given, of which `rows=` may have run a part; None if not known.
        noise: whose streams the particles are of, "block" or "row".
        repeats: of noise="row", how many rows have the particles of each, as their values are equal; NaN if not known.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import log_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> found = log_likelihood(model, guide, torch.tensor([0.0, 1.0, 2.0]), num_samples=200)
        >>> found.log_px.shape, bool((found.ess > 100).all()), found.flagged            # row by row
        (torch.Size([3]), True, tensor([], dtype=torch.int64))
        >>> [name for name in found.summary() if name.startswith("log_px")]             # and in the mean, errors apart
        ['log_px', 'log_px_mc_se', 'log_px_data_se']
        >>> more = log_likelihood(model, guide, torch.tensor([0.0, 1.0, 2.0]), num_samples=400, resume=found)
        >>> more.num_samples, bool((more.mc_se < found.mc_se).all())
        (400, True)
    """

    log_px: Tensor
    mc_se: Tensor
    ess: Tensor
    elbo: Tensor
    elbo_se: Tensor
    num_samples: int
    seed: int
    khat: Tensor | None = None
    max_share: Tensor | None = None
    jackknife: Tensor | None = None
    samples: Tensor | None = None
    spread: Tensor | None = None
    measure: str | None = None
    proposal: str = "guide"
    target_se: float | None = None
    vectorizing: str = "plate"
    engine: str = "eager"
    engine_note: str = ""
    row_blocks: Sequence[RowBlock] = ()
    row_ids: RowIds | None = None
    program_ids: ProgramIds | None = None
    data_digest: str | None = None
    noise: str = BLOCK
    repeats: Tensor | None = None
    method = "importance sampling"

    @classmethod
    def of(cls, row_blocks: Sequence[RowBlock], **facts: Any) -> Evidence:
        """Sum up the blocks of all rows."""
        if gap := [b.rows.start for a, b in pairwise(row_blocks) if a.rows.stop != b.rows.start]:
            raise UsageError(f"the rows before row {gap[0]} are missing: merge parts that leave none out between them")
        facts |= {
            field: torch.cat([block.columns()[field] for block in row_blocks]) for field in ROW_FIELDS + DIAGNOSTICS
        }
        elbos = [block.elbo(facts.get("proposal", "guide") == "guide") for block in row_blocks]
        facts["elbo"], facts["elbo_se"] = torch.cat(elbos, 1)
        ids = facts["row_ids"] = RowIds.joined([block.ids for block in row_blocks])
        facts["repeats"] = repeats_of(facts.get("noise", BLOCK), ids, sum(len(block.rows) for block in row_blocks))
        spread = torch.cat([block.spread for block in row_blocks])
        facts[SPREAD] = None if spread.isnan().all() else spread
        return cls(num_samples=int(facts["samples"].max()), row_blocks=tuple(row_blocks), **facts)

    @classmethod
    def merge(cls, parts: Iterable[Evidence]) -> Evidence:
        """Merge parts of one evaluation, from :func:`~pyro_vae.log_likelihood` with `rows` or `particles`, to the bit.

        Raises:
            UsageError: parts of other rows or other data (by their digests), of other programs
                (:class:`~pyro_vae.programs.program_ids.ProgramIds`), seeds or proposals, that share particles, leave out rows
                in between, or hold none.

        Example:
            >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, log_likelihood
            >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 3), bernoulli), Conditional(MLP(3, 2), normal))
            >>> x = torch.eye(3)
            >>> halves = [log_likelihood(vae.model, vae.guide, x, particles=range(a, a + 500)) for a in (500, 0)]
            >>> at_once = log_likelihood(vae.model, vae.guide, x, num_samples=1000)
            >>> bool((Evidence.merge(halves).log_px == at_once.log_px).all())
            True
        """
        parts = list(parts)
        if not parts:
            raise UsageError("there is nothing to merge: give the parts of one evaluation")
        same = {name: getattr(parts[0], name) for name in ("seed", "proposal", "measure", "noise")}
        blocks: dict[int, RowBlock] = {}
        for part in parts:
            part.check_same(**same)
            for block in part.row_blocks:
                start = block.rows.start
                blocks[start] = blocks[start].joined(block) if start in blocks else block
        return cls.of(
            [blocks[start] for start in sorted(blocks)],
            **same,
            program_ids=programs_of(parts),
            data_digest=data_of(parts),
            target_se=parts[0].target_se,
            vectorizing=parts[0].vectorizing,
            **joined_engines({"engine": part.engine, "engine_note": part.engine_note} for part in parts),
        )

    def check_same(self, **expected: Any) -> None:
        """Refuse evidence without its particles, or with other attributes than `expected`."""
        if not self.row_blocks:
            raise UsageError("this evidence holds no particles (it was read from a file): it cannot be added to")
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise UsageError(
                    f"evidence with {name} {getattr(self, name)!r} and {value!r} cannot be put together: run all of it with "
                    "the same, or start anew, without resume"
                )

    @property
    def gap(self) -> Tensor:
        """log p(x) − ELBO for each row: an estimate of KL(q(z | x) ‖ p(z | x)) from below (log_px being a lower bound)."""
        return self.log_px - self.elbo

    @property
    def gap_se(self) -> Tensor:
        """√(mc_se² + elbo_se²), which the Monte Carlo error of each `gap` is at most.

        Var(a − b) = Var a + Var b − 2 Cov(a, b). Of the same particles Cov(w, log w) ≥ 0, as one rises with the other; a
        guide that draws for its ELBO apart has Cov = 0, and this is the error itself.
        """
        return (self.mc_se.square() + self.elbo_se.square()).sqrt()

    @property
    def counts(self) -> Tensor:
        """K of each row."""
        return torch.full_like(self.log_px, self.num_samples) if self.samples is None else self.samples

    @property
    def bias(self) -> Tensor:
        """−½ (1/ESS − 1/K), about E[log p̂] − log p(x) for each row (delta method; believe it where k̂ is low).

        −½ mc_se², where the particles of a mixture are stratified and that is less.
        """
        return -0.5 * torch.fmin(1 / self.ess - 1 / self.counts, self.mc_se.square())

    @property
    def threshold(self) -> Tensor:
        """min(1 − 1 / log10 K, 0.7) of each row."""
        return self.counts.clone().apply_(lambda k: khat_threshold(int(k)))

    @property
    def steady(self) -> Tensor:
        """Rows of 25 particles or more (one weight alone is no sign) with k̂ below the threshold or all but equal weights."""
        if self.khat is None or self.max_share is None:
            return torch.zeros_like(self.log_px, dtype=torch.bool)
        return steady_rows(self.khat, self.max_share, self.counts)

    @property
    def too_narrow(self) -> Tensor:
        """Rows whose weights spread further under the posterior than the proposal's draws show, or are taken to by others'."""
        if self.spread is None or self.khat is None:
            return torch.zeros_like(self.log_px, dtype=torch.bool)
        return too_narrow(self.spread, self.ess, self.counts, self.steady, self.khat)

    @property
    def reliable(self) -> Tensor:
        """Rows that are `steady`, and not `too_narrow`."""
        return self.steady & ~self.too_narrow

    @property
    def unmet(self) -> Tensor:
        """Rows whose Monte Carlo error is above `target_se`, with as many particles as were allowed."""
        return torch.zeros_like(self.reliable) if self.target_se is None else ~(self.mc_se <= self.target_se)

    @property
    def hopeless(self) -> Tensor:
        """Rows all of whose weights are 0."""
        return self.log_px == -math.inf

    @property
    def flagged(self) -> Tensor:
        """Numbers of the rows not to believe: not `reliable`, or short of the target."""
        return (~self.reliable | self.unmet).nonzero().flatten()

    def why_flagged(self) -> str:
        """Explain which rows are flagged, why, and what to do."""
        return explain_flags(self)

    def of_counts(self, levels: int, event_size: int) -> Evidence:
        """Convert evidence of dequantised y = (x + u) / levels to that of the counts x: every log less D log levels.

        E_u[log p(y)] − D log levels ≤ log P(x): a lower bound, whose measure is "counts, dequantised". `levels` are as for
        :func:`~pyro_vae.data.dequantize`, and D is `event_size`, the elements of one row.

        Raises:
            UsageError: evidence of what is no density.

        References:
            A Note on the Evaluation of Generative Models (Theis, van den Oord & Bethge, 2016), https://arxiv.org/abs/1511.01844

        Example:
            >>> uniform = torch.zeros(5, 1, dtype=torch.float64)  # p(y) = 1 on [0, 1]^2
            >>> Evidence(*uniform, num_samples=1, seed=0, measure="continuous").of_counts(17, 2).log_px.exp() * 17**2
            tensor([1.0000], dtype=torch.float64)
        """
        if self.measure != "continuous":
            raise UsageError(f"only a density has a Jacobian; this evidence is of measure {self.measure!r}")
        less = whole("event_size", event_size, 1) * math.log(whole("levels", levels, 2))
        jackknife = None if self.jackknife is None else self.jackknife - less
        moved: dict[str, Any] = {"log_px": self.log_px - less, "elbo": self.elbo - less, "jackknife": jackknife}
        ids = self.row_ids and dataclasses.replace(self.row_ids, x=None)  # the digest was that of y
        moved |= {"measure": "counts, dequantised", "row_blocks": (), "row_ids": ids}
        return dataclasses.replace(self, **moved)

    def to_elpd(self) -> Any:
        """Return log p(x) as an ``ELPDData`` of ArviZ: :func:`~pyro_vae.evidence.elpd.to_elpd`."""
        from pyro_vae.evidence.elpd import to_elpd

        return to_elpd(self)

    def summary(self) -> dict[str, Any]:
        """Average over rows, errors apart: Monte Carlo (more particles shrink it) and data (more rows do); None if unknown."""
        return summarize_evidence(self)

    def diagnostics(self) -> dict[str, Any]:
        """Summarise the weights, for :meth:`summary`; empty for evidence that has none."""
        return summarize_weights(self)

    def plot(self) -> Any:
        r"""Plot Pareto k̂ of the rows, the flagged ones apart (a matplotlib figure).

        Raises:
            UsageError: evidence of an older version, without k̂.
        """
        from pyro_vae.plots.khat import khat_histogram

        if self.khat is None:
            raise UsageError("this evidence holds no k̂ to plot: an older version wrote it. Score the rows again")
        return khat_histogram(self.khat.numpy(), self.flagged.tolist(), self.threshold.numpy())

    def rows_csv(self) -> str:
        """Format one line a row: row, log_px, mc_se, ess, … flagged (1 or 0), source_row, index, label, digests: if known."""
        columns = {field: getattr(self, field) for field in (*ROW_FIELDS, *DIAGNOSTICS, SPREAD)}
        told: dict[str, Tensor | Sequence[str]] = {f: column for f, column in columns.items() if column is not None}
        return write_columns(beside(self.row_ids, told | {"flagged": marked(self.flagged, len(self))}))

    @classmethod
    def from_csv(
        cls,
        text: str,
        *,
        num_samples: int,
        seed: int,
        measure: str | None = None,
        proposal: str = "guide",
        target_se: float | None = None,
        noise: str = BLOCK,
    ) -> Evidence:
        """Read what `rows_csv` wrote, to the last bit; further columns are left alone, other arguments are the evidence's.

        Raises:
            DataError: a column is missing, a row is out of order, or a cell is no number.

        Example:
            >>> from pyro_vae import Evidence
            >>> rows = torch.tensor([[-1.5, -0.1]], dtype=torch.float64).expand(5, 2)
            >>> evidence = Evidence(*rows, num_samples=7, seed=0)
            >>> Evidence.from_csv(evidence.rows_csv(), num_samples=7, seed=0).log_px.tolist()
            [-1.5, -0.1]
        """
        columns: dict[str, Any] = read_columns(text, ROW_FIELDS, (*DIAGNOSTICS, SPREAD))
        ids = RowIds.from_csv(text)
        if proposal != "guide" and (ids is None or ids.x is None):  # older versions wrote the ELBO of the proposal
            columns |= {name: torch.full_like(columns[name], math.nan) for name in ("elbo", "elbo_se")}
        facts: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "measure": measure, "proposal": proposal}
        facts |= {"noise": noise, "repeats": repeats_of(noise, ids, len(columns["log_px"]))}
        return cls(**facts, target_se=target_se, row_ids=ids, **columns)

    def __str__(self) -> str:
        return format_evidence(self)
