r"""Imputation of missing elements of x, or of what a site observes, from the observed ones, by importance resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.importance.sampler import checked
from pyro_vae.programs.data_map import DataMap, data_map_of_few, refuse_unmapped, where
from pyro_vae.programs.determinism import first_other
from pyro_vae.programs.masks import kept_entries
from pyro_vae.programs.missing_values import without_gaps
from pyro_vae.programs.pair import programs
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.row_coupling import warn_of_guide
from pyro_vae.programs.sites import sample_sites
from pyro_vae.programs.structured import refuse_structure
from pyro_vae.programs.unconditioned import Unconditioned, run_unconditioned


@suggest_keywords
def impute(
    vae: Any,
    x: Any,
    *c: Any,
    site: str | None = None,
    num_samples: int = 1000,
    draws: int = 1,
    seed: int = 0,
    chunk_size: int = 16384,
) -> Tensor:
    r"""x_mis ~ p(x_mis | x_obs), with what was observed unchanged: ``(draws, N, *event)``, row n that of x.

    z_k ~ q(z | x_obs) with weights w_k = p(x_obs | z_k) p(z_k) / q(z_k | x_obs); each draw takes one z_k with probability
    w_k / Σ w, and x_mis from p(x | z_k). Exact as K grows; for finite K its error is that of the weights, so look at the
    effective sample size of these rows (``log_likelihood(...).ess``). Draws of one row share its K particles. Of a file,
    ``load(...).test.ids`` says which of its rows they are; ``pyro-vae impute`` writes that beside them. A model that reads
    where x or a context is NaN beyond the sites that observe them (in its prior, say) is taken as it is written: under the
    gaps that came.

    Args:
        vae: a :class:`VAE`, any object with ``model`` and ``guide``, or a tuple of two Pyro programs, whose likelihood and
            encoder take NaN (:class:`~pyro_vae.models.missing.SkipMissing`, :class:`~pyro_vae.models.missing.WithMask`).
        x, *c: data ``(N, *event)``, where NaN was not observed; contexts with N rows, where the model has them. A context that
            the model observes, such as another modality, may have gaps (NaN), too: what it has counts, as x does.
        site: the observed site whose gaps are filled, in place of x: what comes back is what that site observes,
            ``(draws, N, *entries)``. Of a :class:`~pyro_vae.MultimodalVAE`, a modality: set to NaN, it is drawn given the
            others.
        num_samples, draws: K particles, and imputations, of each row.
        seed: the same seed draws the same, whatever was drawn before; the global random state is left as it was.
        chunk_size: (row, particle) pairs run at a time, of one row at least.

    Raises:
        SupportError, DataError: values that the likelihood does not take (NaN is one, for a plain likelihood).
        ProgramError: a pair that has no importance weight for each row; a gap that no site of the model observes, or more than
            one, or that the model fills in and scores; a model that reads x beside observing it; no such site.
        DataError: gaps in a context that the model does not observe.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019),
        https://arxiv.org/abs/1812.02633

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> from pyro_vae.evidence.imputation import impute
        >>> from pyro_vae.models.missing import SkipMissing, WithMask
        >>> decoder, encoder = Conditional(MLP(2, 3), bernoulli), Conditional(WithMask(MLP(6, 4)), normal)
        >>> vae = VAE(StandardNormal(2), SkipMissing(decoder), encoder)
        >>> x = torch.tensor([[1.0, torch.nan, 0.0]])
        >>> impute(vae, x, num_samples=10, draws=5)[:, 0, ::2].unique(dim=0)
        tensor([[1., 0.]])
    """
    whole("draws", draws, 1)
    return in_chunks(lambda particles: particles.draw(draws), vae, x, c, num_samples, seed, chunk_size, site=site)


@suggest_keywords
def impute_mean(
    vae: Any,
    x: Any,
    *c: Any,
    site: str | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    chunk_size: int = 16384,
) -> Tensor:
    r"""E[x_mis | x_obs] ≈ Σ_k w_k E[x | z_k] / Σ_k w_k, with what was observed unchanged: ``(N, *event)``.

    Arguments, errors and reference as for :func:`impute`; the likelihood must have a mean in closed form.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> from pyro_vae.evidence.imputation import impute_mean
        >>> from pyro_vae.models.missing import SkipMissing, WithMask
        >>> decoder, encoder = Conditional(MLP(2, 3), bernoulli), Conditional(WithMask(MLP(6, 4)), normal)
        >>> vae = VAE(StandardNormal(2), SkipMissing(decoder), encoder)
        >>> impute_mean(vae, torch.tensor([[1.0, torch.nan, 0.0]]), num_samples=10).shape
        torch.Size([1, 3])
    """
    return in_chunks(
        lambda particles: particles.mean()[None], vae, x, c, num_samples, seed, chunk_size, site=site
    ).squeeze(0)


def in_chunks(
    each: Callable[[Particles], Tensor],
    vae: Any,
    x: Any,
    c: tuple[Any, ...],
    num: int,
    seed: int,
    chunk_size: int,
    *,
    site: str | None,
) -> Tensor:
    """Apply `each` to K weighted particles of each row, in chunks of rows: ``(draws, N, *event)``."""
    num, chunk_size = whole("num_samples", num, 1), whole("chunk_size", chunk_size, 1)
    model, guide = programs(vae)
    refuse_structure(x, "imputation")
    problem = Problem.of(model, guide, x, *c, seed=seed, missing=True)  # the likelihood says whether it takes NaN
    warn_of_guide(problem, "the draws that gaps are filled from, before they are weighted,")
    with problem.quiet(seed):
        check_reach(problem)
    known, chunks = mapped(problem, seed, chunk_size, partial(check_gaps, site=site)), []
    for i, some in enumerate(problem.split(chunk_size // num)):
        with some.quiet(seed, i):
            chunks.append(each(Particles(some, num, known, site)))
    return torch.cat(chunks, 1)


def mapped(
    problem: Problem, seed: int, chunk_size: int, check: Callable[[Problem, DataMap, Unconditioned], None]
) -> DataMap:
    """Find the map of x to the model's observed sites, and `check` it on all rows; a ProgramError as for :func:`simulate`."""
    model = partial(problem.model, **problem.kwargs) if problem.kwargs else problem.model
    with problem.quiet():
        known = data_map_of_few(model, problem.args, seed)
        for some in problem.split(chunk_size):
            check(some, known, run_unconditioned(model, tuple(map(without_gaps, some.args)), seed))
    return known


def check_gaps(problem: Problem, known: DataMap, run: Unconditioned, site: str | None = None) -> None:
    """Refuse gaps (NaN) that are to be filled and that no site observes, or more than one; and densities that depend on gaps.

    Those to be filled are x's, or of what one `site` observes.
    """
    i = 0 if site is None else known.site(site).argument
    gaps = problem.args[i].isnan()
    if site is not None:  # what else its argument holds is not filled
        chosen = DataMap({site: known.sites[site]}, ())
        gaps &= chosen.times_observed(problem.args)[i] > 0
    times = known.times_observed(problem.args)[i]
    if (gaps & (times == 0)).any():
        if known.unmapped:
            refuse_unmapped(known.unmapped[0])
        raise ProgramError(
            f"x has gaps (NaN) in rows {problem.numbers((gaps & (times == 0)).reshape(len(gaps), -1).any(1))} that the model "
            f"observes at no site (entry {where(gaps & (times == 0))} of a row), so nothing says what they would be. Observe "
            'all of x, pyro.sample("x", likelihood, obs=x).'
        )
    if (gaps & (times > 1)).any():
        known.refuse_shared(i, gaps & (times > 1))
    check_gaps_are_read_nowhere(problem, known, run)


def check_gaps_are_read_nowhere(problem: Problem, known: DataMap, run: Unconditioned) -> None:
    """Refuse a model of which one site's density depends on what is missing at another."""
    gaps = [a.isnan() for a in problem.args]
    if not any(bool(gap.any()) for gap in gaps):
        return
    drawn = known.fill(run.args, run.values, run.all_entries)
    ours, others = (
        likelihood_draws(problem, run, tuple(map(torch.where, gaps, other, problem.args)))
        for other in (run.args, drawn)
    )
    if (name := first_other(ours, others)) is not None:
        raise ProgramError(
            f"site {name!r}: its density depends on what is missing (NaN) of x, as the value of one observed site is passed on "
            "to another (an autoregressive likelihood): leaving the gaps' terms out does not integrate them out. Make the "
            "observed entries independent given latents, or give the missing ones a latent."
        )


def likelihood_draws(problem: Problem, run: Unconditioned, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Draw what each observed site of the model could have been, on the latents of a run, always with the same noise."""
    latents = {name: value for name, value in run.values.items() if name not in run.observed}
    with seeded(0, device=problem.device):
        trace = problem.over(*(a.clone() for a in args)).trace(problem.model, at=latents)
    sites = {name: site for name, site in sample_sites(trace).items() if name in run.observed}
    with seeded(0, device=problem.device):
        return {name: site["fn"].sample() for name, site in sites.items()}


def check_gaps_left_out(problem: Problem, known: DataMap, sites: Sites) -> None:
    """Refuse a model that fills gaps (NaN) of x in and scores what it filled in: that is no evidence."""
    for name, at in known.sites.items():
        gaps, site = known.observation(name, problem.args).isnan(), sites[name]
        if not gaps.any():
            continue
        scored = kept_entries(site).reshape(-1, len(gaps)).any(0) & ~site["value"].reshape(-1, len(gaps)).isnan().any(0)
        if bad := sorted({int(n) // at.width for n in at.numbers(len(problem))[gaps & scored]}):
            raise ProgramError(
                f"site {name!r}: the model puts numbers in the place of missing values (NaN) in rows "
                f"{[problem.first + row for row in bad[:5]]} and scores them as if they were observed. Leave them out, with "
                "poutine.mask(mask=~x.isnan()) around the site, or let the likelihood skip NaN: SkipMissing(likelihood)."
            )


class Particles:
    """K particles of each row, z_k ~ q(z | x_obs), with their weights w_k / Σ w, ``(K, N)`` in float64."""

    def __init__(self, problem: Problem, num: int, known: DataMap, site: str | None = None) -> None:
        self.problem, self.known, self.site = problem, known, site
        self.argument = 0 if site is None else known.site(site).argument  # whose gaps are filled
        self.latents, self.sites = problem.draw(num)
        check_gaps_left_out(problem, known, self.sites)
        log_p, log_q = problem.log_prob(self.sites, "model"), problem.log_prob(self.latents, "guide")
        log_w = checked(log_p - log_q, num, problem).double()
        if (hopeless := (log_w == -math.inf).all(0)).any():
            rows = problem.numbers(hopeless)
            raise ProgramError(f"all weights are 0 for rows {rows}: no particle explains what was observed there.")
        self.weights = log_w.softmax(0)

    def mean(self) -> Tensor:
        """Fill the gaps of x by the weighted mean of E[x | z_k]."""
        means = {}
        for name in self.sites_with_gaps():
            fn = self.sites[name]["fn"]
            try:
                mean = fn.mean
            except NotImplementedError as error:
                raise ProgramError(
                    f"site {name!r}: the likelihood is a {type(fn).__name__}, which has no mean in closed form; average draws "
                    "of impute"
                ) from error
            weights = self.problem.plates.beside(self.weights, fn.event_dim).to(mean)
            means[name] = (weights * mean).sum(0)
        filled = self.filled(means)
        if filled.isnan().any():
            raise ProgramError("E[x | z] is NaN in columns that have no mean, such as classes; average draws of impute")
        return filled

    def draw(self, draws: int) -> Tensor:
        """Fill the gaps of x by draws from p(x | z), of z resampled by weight."""
        _, z = self.resampled(draws)
        sites = self.problem.sites(self.problem.model, draws, z)
        return self.filled({name: sites[name]["fn"].sample() for name in self.sites_with_gaps()}, (draws,))

    def sites_with_gaps(self) -> list[str]:
        """Return the sites that observe what is missing and is to be filled: of x, or the one that was asked for."""
        at_x = [name for name, at in self.known.sites.items() if at.argument == 0]
        chosen = at_x if self.site is None else [self.site]
        return [name for name in chosen if self.known.observation(name, self.problem.args).isnan().any()]

    def filled(self, values: Mapping[str, Tensor], draws: tuple[int, ...] = ()) -> Tensor:
        """Return x ``(*draws, N, *event)``, or what the site observes of it, with values of sites in its gaps."""
        args = self.problem.args
        x = args[self.argument].expand(*draws, *args[self.argument].shape)
        kept = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
        part = DataMap({name: self.known.sites[name] for name in values}, ())
        whole = torch.where(x.isnan(), part.fill(args, values, kept, draws)[self.argument], x) if values else x.clone()
        if self.site is None:
            return whole
        return self.known.of_site(self.site, (*args[: self.argument], whole, *args[self.argument + 1 :]), draws)

    def resampled(self, draws: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw particles by weight: their numbers ``(draws, N)``, and their latents."""
        chosen = torch.multinomial(self.weights.T, draws, replacement=True).T
        beside = self.problem.plates.beside
        return chosen, {
            name: torch.take_along_dim(site["value"], beside(chosen, site["fn"].event_dim), 0)
            for name, site in self.latents.items()
        }
