"""Whether a model's log-probabilities of a row are its own: where they change with the rows beside it, log p(x) has no rows."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.common.widen import at_least_float32
from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.errors import CoupledGuideWarning, ProgramError

from .determinism import differing, same
from .plates import Plates
from .site_rows import frames_of
from .sites import Program, Site, latent_sites, sample_sites, with_values
from .vectorize import Vectorizing, without_rows
from .wide_scoring import own_dtype

Scores = dict[str, Tensor]
LOOP = Vectorizing("loop", "loop")


def of_rows(problem: Any, program: Program, trace: poutine.Trace) -> Scores:
    """Score the sites that belong to rows; one that all rows share (a factor in a loss) has nothing to do with particles.

    Terms are rounded to the program's own dtype, where it was scored in a wider one: networks have no more digits.
    """
    sites = in_rows(problem, trace)
    by_site: Scores = problem.terms_of(sites, "model" if program is problem.model else "guide")
    return {
        name: term.to(at_least_float32(own_dtype(sites[name]["fn"], sites[name]["value"])))
        for name, term in by_site.items()
    }


def in_rows(problem: Any, trace: poutine.Trace) -> dict[str, Any]:
    """Return the sites of a trace that lie in the data plate."""
    return {name: site for name, site in sample_sites(trace).items() if problem.plates.data in frames_of(site)}


def with_indices(draws: poutine.Trace, run: poutine.Trace) -> poutine.Trace:
    """Add the numbers that plates of the model chose at random, so that they choose the same in each run."""
    trace = draws.copy()
    for name, site in run.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site) and name not in trace.nodes:
            trace.add_node(name, **site)
    return trace


def has_rows(value: Any, rows: int) -> bool:
    """Return whether an argument has so many rows."""
    return isinstance(value, Tensor | LazyRows) and value.dim() > 0 and len(value) == rows


def why_not_row_by_row(problem: Any, draws: poutine.Trace, truth: Scores) -> str | None:
    """Say why a model is refused whose densities of the first of two rows are others without the second row.

    Args:
        problem: of two rows.
        draws: latents of them, ``(K, ..., 2, ...)``.
        truth: the model's log-probabilities there, by site.
    """
    try:
        alone = scores_of_part(problem, draws, torch.zeros(1, dtype=torch.int64))
    except Exception:  # it does not run on one row: that it says itself, where it is asked to
        return None
    first = {name: term[:1, :1] for name, term in truth.items()}
    return next((coupled(name, first[name], alone[name], 0) for name in differing(first, alone)), None)


def warn_of_guide(problem: Any, of: str = "its ELBO and gap, ESS and k̂") -> None:
    """Warn of a guide that reads other rows, where numbers `of` the guide are handed out: they are of rows among these.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.programs.problem import Problem
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.7))
        >>> warn_of_guide(Problem.of(model, guide, torch.tensor([0.0, 1.0]), seed=0))
    """
    if said := problem.vectorizing.guide_reads:
        tell_of_guide(said, of)


def tell_of_guide(said: str, of: str) -> None:
    """Warn by what was found of a guide that reads other rows."""
    warnings.warn(
        f"{said}: {of} are those of a row among the rows that it was run with, which are blocks of the rows as they were "
        "passed, and others for other rows or another order. log p(x) by its weights is right. Fix: a guide that computes row "
        'by row (constants for x.mean(0)); or, for log_likelihood, noise="row", which runs each row by itself.',
        CoupledGuideWarning,
        stacklevel=5,
    )


def refuse_guide_reading_rows(problem: Any, asked: str) -> None:
    """Refuse a guide that reads other rows, where its draws are scored under q(z | x) of other blocks of rows."""
    if said := problem.vectorizing.guide_reads:
        raise ProgramError(
            f"{said}: there is no q(z | x) of a row by itself, and {asked} those of all rows. Fix: a guide that "
            "computes row by row (constants for x.mean(0), no attention or norm over rows)."
        )


def why_not_as_among_copies(problem: Any, program: Program) -> str | None:
    """Say why a model is refused whose densities of its first row are others where all rows are copies of that one.

    For programs that run on all their rows only.

    Args:
        problem: of all rows.
        program: what draws the latents, the guide or the model.
    """
    x, *_ = problem.args
    if not isinstance(x, Tensor) or x.dim() == 0 or len(x) < 2:
        return None
    try:
        one, rows = replace(problem, vectorizing=LOOP), torch.zeros(len(x), dtype=torch.int64)
        drawn = one.trace(program, 1)
        draws = with_indices(drawn, one.trace(one.model, 1, drawn))
        copies = rows_at(one, rows)
        latents = latent_sites(sample_sites(draws))
        values = {
            n: of_part(s, rows, problem.plates) if has_data_rows(s, problem) else s["value"] for n, s in latents.items()
        }
        beside, again = (of_rows(one, one.model, one.trace(one.model, 1, draws)) for _ in range(2))
        among = of_rows(copies, copies.model, copies.trace(copies.model, 1, with_values(draws, values)))
        if next(differing(beside, again), None) is not None:  # noise: that is said elsewhere
            return None
        found = first_coupled(*({name: term[:, :1] for name, term in terms.items()} for terms in (beside, among)))
    except Exception:  # rows that are no data of it: it is scored as it runs
        return None
    return coupled(*found) if found else None


def has_data_rows(site: Site, problem: Any) -> bool:
    """Return whether a latent has a value for each row."""
    dim = problem.plates.dim - site["fn"].event_dim
    return bool(site["value"].dim() >= -dim and site["value"].shape[dim] > 1)


def first_coupled(beside: Scores, alone: Scores) -> tuple[str, Tensor, Tensor, int] | None:
    """Find a row whose log p(x, z) is another alone, ``(1, n)`` by site: the site that differs most, its terms, the row.

    What counts is the sum over sites: a model may have a row here or there by its place, under masks that exclude each other,
    and a step that no row of a part reaches has no site there.
    """
    names = [*dict.fromkeys([*beside, *alone])]
    if not names:
        return None
    none = torch.zeros_like((beside or alone)[names[0]])
    one, other = (torch.stack([terms.get(name, none).double() for name in names]) for terms in (beside, alone))
    digits = (alone or beside)[names[0]].dtype
    if same(one.sum(0).to(digits), other.sum(0).to(digits)):
        return None
    row = int((one.sum(0) - other.sum(0)).abs().nan_to_num(torch.inf).argmax())
    most = int((one - other)[:, 0, row].abs().nan_to_num(torch.inf).argmax())
    return names[most], one[most, :, row], other[most, :, row], row


def rows_at(problem: Any, numbers: Tensor) -> Any:
    """Return the problem of some rows, those of each argument that has rows."""
    rows = len(problem.args[0])
    return problem.over(*(a[numbers.to(a.device)] if has_rows(a, rows) else a for a in problem.args))


def scores_of_part(problem: Any, draws: poutine.Trace, part: Tensor, program: Program | None = None) -> Scores:
    """Score a program, the model or another, on some rows alone, at the first particle of `draws`: ``(1, n)`` by site."""
    program = program or problem.model
    few, plates = replace(rows_at(problem, part), vectorizing=LOOP), problem.plates
    values = {name: of_part(site, part, plates) for name, site in latent_sites(sample_sites(draws)).items()}
    return of_rows(few, program, few.trace(program, 1, without_rows(with_values(draws, values), plates)))


def of_part(site: Site, part: Tensor, plates: Plates) -> Tensor:
    """Return the first particle of a latent, for some of the rows."""
    value: Tensor = site["value"][:1]
    return selected(value, plates.dim - site["fn"].event_dim, part)


def selected(tensor: Tensor, dim: int, numbers: Tensor) -> Tensor:
    """Select entries by their numbers, if there are such: on a GPU a number out of range ends all work of the process."""
    if len(numbers) and int(numbers.max()) >= tensor.shape[dim]:
        raise IndexError(f"{tensor.shape[dim]} entries, and number {int(numbers.max())} is asked for")
    return tensor.index_select(dim, numbers.to(tensor.device))


def coupled(site: str, beside: Tensor, alone: Tensor, row: int) -> str:
    """Describe a site whose log-probability of a row depends on what other rows are passed along."""
    return (
        f"site {site!r} of the model has another log-probability for a row when other rows are passed along "
        f"({beside.sum().item():.4g} beside others, {alone.sum().item():.4g} without them, row {row}): log p(x) does not "
        "split into rows. Look for a softmax, norm or mean over the rows (dim=0), for a greatest value or a number of classes "
        "that is read off all of them (x.max(): give a constant), for a layer that is quantized as it runs, or for a squeeze() "
        "that drops a single row."
    )
