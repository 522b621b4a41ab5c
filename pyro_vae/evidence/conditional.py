r"""log p(x_2 | x_1) of what one site observes given what the others do: a difference of two log p(x), with both errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_share, is_loose, share_flagged
from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import stream
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.data_map import DataMap
from pyro_vae.programs.determinism import differing
from pyro_vae.programs.masks import kept_entries
from pyro_vae.programs.measure import measures_of
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.sites import Program, latent_sites
from pyro_vae.programs.structured import on_tensors

from .estimate import LogPx, RowEstimates, data_se, digest_of_rows, format_nats, identified, mean_se
from .importance.proposals import GUIDE, Proposal
from .imputation import check_gaps_are_read_nowhere, check_gaps_left_out, mapped
from .log_likelihood import log_likelihood

GIVEN = 23  # of a seed: the stream of log p(x_1), apart from that of log p(x_1, x_2)
CHUNK = 8192  # (row, particle) pairs that are run at a time


@dataclass(frozen=True, eq=False, repr=False)
class ConditionalEvidence(RowEstimates):
    r"""log p(x_2 | x_1) = log p(x_1, x_2) − log p(x_1) of each row, in nats; higher is better.

    Both terms of a row are drawn from streams of their own, so that their Monte Carlo errors are independent and add in
    squares; rows are paired, so that the data error is that of the difference. Each term by importance sampling is a lower
    bound in expectation, and their difference is a bound on neither side.

    Attributes:
        joint, given: log p(x_1, x_2) and log p(x_1), each an :class:`~pyro_vae.Evidence`, or of an oracle.
        there: rows that have some of x_2, ``(N,)``; of the others log p(nothing | x_1) is 0, without error.
        sites: that observe x_2.
        measure: that p(x_2 | x_1) is a density with respect to.
        row_ids: which rows it is of, as for :class:`~pyro_vae.Evidence`.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import MultimodalVAE, ProductOfExperts, SkipMissing, StandardNormal
        >>> noisy = lambda z: dist.Normal(z, 1.0).to_event(1)
        >>> prior, roles = StandardNormal(1), {"a": SkipMissing(noisy), "b": SkipMissing(noisy)}
        >>> vae = MultimodalVAE(prior, roles, ProductOfExperts(prior, {"a": noisy, "b": noisy}))      # exact
        >>> a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [torch.nan]])
        >>> found = conditional_log_likelihood(vae.model, vae.guide, a, b, site="b", num_samples=30)
        >>> found.log_px, found.there                                # the last row has no b: log p(nothing | a)
        (tensor([-1.2050,  0.0000], dtype=torch.float64), tensor([ True, False]))
        >>> found.joint.log_px[0] - found.given.log_px[0]            # log p(a, b) - log p(a)
        tensor(-1.2050, dtype=torch.float64)
    """

    joint: LogPx
    given: LogPx
    there: Tensor
    sites: tuple[str, ...]
    measure: str | None = None
    row_ids: RowIds | None = None

    @property
    def log_px(self) -> Tensor:  # type: ignore[override]
        """log p(x_2 | x_1), ``(N,)`` in float64."""
        return (self.joint.log_px - self.given.log_px).double().masked_fill(~self.there, 0.0)

    @property
    def mc_se(self) -> Tensor:
        """√(se_joint² + se_given²), ``(N,)``."""
        both = self.joint.mc_se.double().square() + self.given.mc_se.double().square()
        return both.sqrt().masked_fill(~self.there, 0.0)

    @property
    def flagged(self) -> Tensor:
        """Numbers of the rows of which either term is not to be believed."""
        flags = torch.zeros_like(self.there)
        for part in (self.joint, self.given):
            flags[getattr(part, "flagged", torch.zeros(0)).long()] = True
        return (flags & self.there).nonzero().flatten()

    @property
    def quantity(self) -> str:
        """What it is of, which is no log p(x)."""
        return f"log p({', '.join(self.sites)} | others)"

    @property
    def method(self) -> str:
        """Name of the methods that computed the terms."""
        return ", ".join(dict.fromkeys((self.joint.method, self.given.method)))

    def summary(self) -> dict[str, Any]:
        """Average over rows, errors apart; and the two terms."""
        return {
            "log_px": self.log_px.mean().item(),
            "log_px_mc_se": mean_se(self.mc_se),
            "log_px_data_se": data_se(self.log_px),
            "log_joint": self.joint.log_px.mean().item(),
            "log_given": self.given.log_px.mean().item(),
            "rows": len(self),
            "rows_with_none": int((~self.there).sum()),
            "rows_flagged": len(self.flagged),
            "sites": list(self.sites),
            "method": self.method,
            "measure": self.measure,
            **digest_of_rows(self.row_ids),
            "unit": "nats per row, higher is better",
        }

    def __str__(self) -> str:
        s, of = self.summary(), ", ".join(self.sites)
        errors = f"± {format_nats(s['log_px_mc_se'])} (Monte Carlo) ± {format_nats(s['log_px_data_se'])} (data) nats"
        if is_loose(s):
            errors = f"nats (no bound, and loose: {format_share(share_flagged(s))} of rows are flagged)"
        return (
            f"{self.quantity} {s['log_px']:.3f} {errors} | {self.measure} | {counted(s['rows'], 'row')}, "
            f"{s['rows_with_none']} without {of}, {s['rows_flagged']} flagged | {self.method}"
        )


@suggest_keywords
@identified
def conditional_log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    site: str | Sequence[str],
    method: str = "importance",
    num_samples: int = 1000,
    proposal: Proposal = GUIDE,
    seed: int = 0,
    chunk_size: int | None = None,
    verbose: bool = True,
) -> ConditionalEvidence:
    r"""log p(x_2 | x_1) = log p(x_1, x_2) − log p(x_1), x_2 being what `site` observes and x_1 what all others do, row by row.

    For log p(x_1) what `site` observes is set to NaN: both programs must take that (:class:`~pyro_vae.SkipMissing`,
    :class:`~pyro_vae.WithMask`, :class:`~pyro_vae.MultimodalVAE`). Changes no parameter, no module's mode, no optimizer and no
    global random state.

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`. NaN is what a row does not have, of x_1 and of x_2.
        site: the observed site, or several.
        method, num_samples, proposal, seed, chunk_size, verbose: as for :func:`~pyro_vae.log_likelihood`, of each of the two;
            ``"exact"`` takes none of the others.

    Raises:
        ProgramError: no such site; a model that reads elsewhere what the site observes, or whether it is there, or that puts
            numbers in the place of NaN and scores them.
        SupportError, ShapeError, DataError: as :func:`~pyro_vae.log_likelihood`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import MultimodalVAE, ProductOfExperts, SkipMissing, StandardNormal
        >>> noisy = lambda z: dist.Normal(z, 1.0).to_event(1)
        >>> prior = StandardNormal(1)
        >>> vae = MultimodalVAE(
        ...     prior, {"a": SkipMissing(noisy), "b": SkipMissing(noisy)}, ProductOfExperts(prior, {"a": noisy, "b": noisy})
        ... )
        >>> a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [torch.nan]])
        >>> conditional_log_likelihood(vae.model, vae.guide, a, b, site="b", num_samples=30).log_px
        tensor([-1.2050,  0.0000], dtype=torch.float64)
        >>> dist.Normal(0.5, 1.5**0.5).log_prob(b[0])                       # the guide is exact
        tensor([-1.2050])
    """
    check_whole(num_samples=num_samples, seed=seed, chunk_size=chunk_size)
    sites = (site,) if isinstance(site, str) else tuple(site)
    if not sites:
        raise UsageError("site= names the observed sites whose log p is asked for, one at least")
    model, guide, args = on_tensors(model, guide, x, *context)
    args = rows_of(model, guide, *args, missing=True)
    with quiet(model, guide, seed=seed, device=args[0].device):
        problem = Problem.checked(model, guide, *args)
    known = mapped(problem, seed, len(problem), lambda *_: None)
    hidden, there = hide(known, args, sites)
    rest = Problem.of(model, guide, *hidden, seed=seed, missing=True)
    check_left_out(problem, rest, known, sites, seed)
    score = partial(log_likelihood, model, guide, method=method, missing=True)
    if method == "exact":
        joint, given = score(*args), score(*hidden)
    else:
        score = partial(score, num_samples=num_samples, proposal=proposal, chunk_size=chunk_size, verbose=verbose)
        joint, given = score(*args, seed=seed), score(*hidden, seed=stream(seed, GIVEN))
    return ConditionalEvidence(joint, given, there.cpu(), sites, measure_of_sites(problem, sites))


def hide(known: DataMap, args: Sequence[Tensor], sites: Sequence[str]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Put NaN in the place of what sites observe; return the arguments, and which rows had some of it, ``(N,)``."""
    hidden, rows = list(args), len(args[0])
    there = torch.zeros(rows, dtype=torch.bool, device=args[0].device)
    chosen = DataMap({name: known.site(name) for name in sites}, ())
    for i, (times, all_times) in enumerate(
        zip(chosen.times_observed(tuple(args)), known.times_observed(tuple(args)), strict=True)
    ):
        if ((times > 0) & (all_times > 1)).any():
            known.refuse_shared(i, (times > 0) & (all_times > 1))
        a = args[i]
        there |= ((times > 0) & ~a.isnan()).reshape(rows, -1).any(1)
        if (times > 0).any():  # whole numbers have no NaN
            hidden[i] = (a if a.is_floating_point() else a.to(torch.get_default_dtype())).masked_fill(
                times > 0, torch.nan
            )
    return tuple(hidden), there


def check_left_out(problem: Problem, rest: Problem, known: DataMap, sites: Sequence[str], seed: int) -> None:
    """Refuse a model of which what is missing in the `rest` counts: read elsewhere, or filled in and scored."""
    mapped(rest, seed, CHUNK, check_gaps_are_read_nowhere)
    for all_there, some in zip(problem.split(CHUNK), rest.split(CHUNK), strict=True):
        with some.quiet(seed):
            check_gaps_left_out(some, known, some.draw(1)[1])
            check_others_stay(all_there, some, sites)


def check_others_stay(problem: Problem, rest: Problem, sites: Sequence[str]) -> None:
    """Refuse a model whose other sites have another density where these are missing: log p(x_1) is then of another model.

    A latent that a mask takes out with what is missing (of one modality alone) is integrated out either way.
    """
    drawn = problem.trace(problem.guide, 1)
    here, there = (each.sites(each.model, 1, drawn) for each in (problem, rest))
    both = {n: (here[n], site) for n, site in latent_sites(there).items() if n in here}
    alone = {name for name, pair in both.items() if not torch.equal(*map(kept_entries, pair))}
    ours, others = (
        {n: t.float() for n, t in each.score(found, "model").items() if n not in alone and n not in sites}
        for each, found in ((problem, here), (rest, there))
    )
    if (name := next(differing(ours, others), None)) is not None:
        raise ProgramError(
            f"site {name!r} of the model has another density where what {', '.join(map(repr, sites))} observes is missing "
            "(NaN): it reads what is there (a count of modalities, a prior for each pattern), so that log p(x_1, x_2) and "
            "log p(x_1) are of two models, and their difference is no log p(x_2 | x_1). Let what is missing change the terms "
            "of its own site alone."
        )


def measure_of_sites(problem: Problem, sites: Sequence[str]) -> str:
    """Name what p(x_2 | x_1) is a density with respect to, as :func:`~pyro_vae.programs.measure.measure_of` names p(x)'s."""
    one = problem.few(1)
    with one.quiet(0):
        found = one.draw(1)[1]
    return " x ".join(sorted({kind for name in sites for kind in measures_of(name, found[name]["fn"])}))
