"""Check a pair of programs before it is trained: every diagnosis names the site and the fix."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.pyro_private import is_intervened
from pyro_vae.errors import ProgramError, PyroVAEError, ShapeError, SupportError

from .check_parameters import ghost_training, gradients, modules, named_parameters, shared
from .check_probes import Probed, as_evaluated, invalid, probed, summed
from .data_scale import scale_of, standardizable
from .digits import few_digits
from .enumerated import enumerated
from .findings import CheckReport, Finding, ProgramTrace, finding_of, run
from .pair import quiet
from .parameters import store_restored
from .plates import WITHOUT_SIZE
from .proposal_guide import set_up_undone
from .sampled_weights import weights_inside
from .site_rows import frames_of
from .sites import DATA_SETS, Program, Site, observed_sites, proposal_sites
from .structured import on_tensors
from .support import MASK, describe, format_support, moves, rows_inside
from .undeclared import find_undeclared
from .wide_scoring import wide_log_prob
from .wrapped import bare, base_name


@suggest_keywords
def check(model: Program, guide: Program, *batch: Any, others: Iterable[Any] = (), seed: int = 0) -> CheckReport:
    r"""Check that (model, guide) is a pair p(x, z), q(z | x) with log w[n] = log p(x_n, z_n) − log q(z_n | x_n), and gradients.

    Runs both programs on one batch, in eval mode, on a private random stream and a private copy of Pyro's store, and names
    what is wrong: sites of one program only, plates (none, of another size, in one program only, a site outside), a
    forgotten ``obs``, undeclared event dimensions, widths and supports of prior and posterior, data outside the
    likelihood's support or that look like pixels under counts, invalid parameters, a model whose rows depend on each other,
    random densities, masked values that are read, log-probabilities with few digits, draws that have no importance weight,
    what a guide never draws, latents without a pathwise gradient or summed over, parameters without a gradient, networks
    that Pyro was not told of, parameters shared with other models, and modules whose parameters Pyro's store does not train
    ("ghost training").
    Where nothing is an error, :func:`~pyro_vae.log_likelihood` runs, unless a warning says what it refuses.
    Parameters, gradients, modes, the store and the global random state stay as they were.

    Args:
        model, guide: Pyro programs for the same latent sites, with one plate over the N rows.
        *batch: what both take: x of shape ``(N, *event)`` and contexts with N rows, converted as evaluators convert them.
        others: models (a VAE, a module, or a tuple (model, guide)) that should share no parameter with this pair.
        seed: of the private random stream.

    Returns:
        The findings, of one draw and one batch (no finding is no proof); only ``report.raise_if_bad()`` raises for them.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("w", dist.Normal(x / 2, 0.7))
        >>> print(check(model, guide, torch.zeros(3)))
        ✗ site 'z': it is a latent of the model but not in the guide. Fix: give the guide a pyro.sample('z', ...), ...
        ✗ site 'w': it is in the guide but is no latent of the model. Fix: rename it ...
    """
    others = list(others)
    model, guide, batch = on_tensors(model, guide, *batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch, unfit = as_evaluated(model, guide, batch)
    if any(f.level == "error" for f in unfit):
        return CheckReport(tuple(unfit))
    device = next((a.device for a in batch if isinstance(a, Tensor)), torch.device("cpu"))
    owned = [module for other in others for module in modules(other)]
    forgotten = store_restored()  # what the programs add to it
    alone = quiet(model, guide, *owned, seed=seed, device=device)
    with set_up_undone(guide), alone, forgotten, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        findings, notes = diagnose(model, guide, batch, others, seed)
        return CheckReport((*unfit, *findings), tuple(notes))


def diagnose(model: Program, guide: Program, batch: tuple[Any, ...], others: list[Any], seed: int) -> Probed:
    """Return all findings, and notes; what would only repeat an earlier one in other words is left out."""
    rows = len(batch[0]) if batch and isinstance(batch[0], Tensor) and batch[0].dim() else None
    p, q = run("model", model, batch), run("guide", guide, batch)
    findings = [*weights_inside({**q.sites, **p.sites}, model, guide)] or [*stopped(p, rows), *stopped(q, rows)]
    if not findings:
        findings += [*unpaired(p, q, batch), *unplated(p, q, rows)]
    notes: list[str] = []
    for name in [n for n in p.latents if n in q.latents]:
        findings += pair_fits(name, p.sites[name], q.sites[name])
    if q.stopped is None and not findings:  # the model on the guide's draws, as every objective runs it
        replayed = run("model", poutine.replay(model, trace=q.trace), batch)
        findings += stopped(replayed, rows)
        p = replayed if replayed.stopped is None else p
    ran = p.stopped is None and q.stopped is None
    if ran and not findings:
        findings += invalid(model, guide, batch)
    if not any(f.kind in ("plate", "event", "parameters") for f in findings):
        for name, site in observed_sites(p.sites).items():
            misfits = list(data_fits(name, site, main_plate(p, q, rows=rows)))
            if misfits and ran and moves(name, site, model, guide, batch):  # it excludes latents, not data
                misfits = [f for f in misfits if f.kind not in ("support", "density")]
            findings += misfits
            findings += scale_of(name, site, rows or 0, standardizable(model, guide))
    if ran and not any(f.level == "error" for f in findings):
        found, notes = probed(model, guide, batch, p, q, seed=seed)
        findings += [*found, *few_digits("model", p.sites), *few_digits("guide", q.latents)]
    findings += summed(p, q)
    findings += [f for n, s in q.latents.items() if n not in enumerated(q.latents) for f in pathwise(n, s)]
    ghosts = ghost_training([p, q], model, guide)
    findings += find_undeclared(model, guide, batch)
    if ran and not any(f.kind in ("run", "site", "width", "obs") for f in findings):
        findings += gradients(model, guide, batch, named_parameters(model, guide, [p, q], ghosts), quiet=bool(findings))
    return [*findings, *ghosts.values(), *shared(model, guide, batch, others)], notes


MISMATCH = re.compile(r"Shape mismatch inside plate\('(.+)'\) at site (.+) dim (-\d+), (\d+) vs (\d+)")
DECLARE = "declare what belongs to one row with .to_event({})"


def stopped(done: ProgramTrace, rows: int | None) -> list[Finding]:
    """Find why a program did not run to its end."""
    if done.stopped is None:
        return []
    if isinstance(done.stopped, ProgramError):  # of our own modules: it has a fix of its own
        return [finding_of("run", done.program, done.stopped)]
    if not (m := MISMATCH.search(str(done.stopped))):
        return [Finding("run", done.program, format_stop(done), "make it run on its own first")]
    plate, site, dim, size, came = m.groups()
    what = f"in the {done.program} it has size {came} in dimension {dim}, where the plate {plate!r} has size {size}"
    if rows is not None and int(size) != rows:
        fix = f"the batch has {rows} rows: pyro.plate({plate!r}, len(x)), or subsample= for rows of a larger data set"
        return [Finding("plate", f"site {site!r}", what, fix)]
    fix = f"{DECLARE.format(1)}, or give the distribution one batch entry a row"
    return [Finding("event", f"site {site!r}", what, fix)]


def format_stop(done: ProgramTrace) -> str:
    """Say what a program raised and where: what is advised is part of the error, where it is one of ours."""
    error, said = done.stopped, str(done.stopped).strip().rstrip(".")
    if isinstance(error, PyroVAEError):
        return (
            said.removeprefix(f"the {done.program}")
            .removeprefix(", ")
            .strip()
            .replace("does not run", "it does not run", 1)
        )
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"it does not run on this batch: {type(error).__name__}: {said[:400]}{notes}"


def unpaired(p: ProgramTrace, q: ProgramTrace, batch: tuple[Any, ...]) -> Iterator[Finding]:
    """Find the sites of one program only, and observations that were forgotten."""
    shape = batch[0].shape if batch and isinstance(batch[0], Tensor) else None
    drawn = [n for n in p.latents if n not in enumerated(p.latents)]
    forgotten = [n for n in drawn if n not in q.sites and p.sites[n]["value"].shape == shape]
    unseen = not observed_sites(p.sites)
    if unseen and not forgotten:
        yield Finding("obs", "model", "it observes nothing", "pass the data as pyro.sample(..., obs=x)")
    if not p.latents and not q.latents:
        yield Finding(
            "site", "model", "it has no latent: there is nothing to infer", "draw the latents in model and guide"
        )
    for name in [n for n in drawn if n not in q.latents]:
        if name in forgotten and unseen:
            what = "the model draws it, in the shape of the data, and the guide does not: its observation is forgotten"
            yield Finding("obs", f"site {name!r}", what, f"pyro.sample({name!r}, ..., obs=x)")
            continue
        hint = "obs=x: it has the shape of the data" if name in forgotten else "obs=..."
        fix = f"give the guide a pyro.sample({name!r}, ...), or observe it ({hint})"
        if is_intervened(p.sites[name]):
            fix = (
                f"poutine.do still draws it: hide the draw, poutine.block(poutine.do(model, data=...), hide=[{name!r}])"
            )
        yield Finding("site", f"site {name!r}", "it is a latent of the model but not in the guide", fix)
    for name in [n for n in q.latents if n not in p.latents]:
        what, fix = "is no latent of the model", f"rename it to a latent of the model, or sample {name!r} there too"
        if name in observed_sites(p.sites):
            what, fix = "the model observes it", "leave it out of the guide"
        yield Finding("site", f"site {name!r}", f"it is in the guide but {what}", fix)


def main_plate(*runs: ProgramTrace, rows: int | None = None) -> str | None:
    """Return the plate called "data", or else the one that holds most sites; if there is any, one of as many rows."""
    frames = [frame for r in runs for site in r.sites.values() for frame in frames_of(site).values()]
    names = [f.name for f in frames if f.size == rows] or [f.name for f in frames]
    if any(f.name == DATA_SETS for f in frames):
        return DATA_SETS
    return "data" if any(f.name == "data" for f in frames) else max(names, key=names.count, default=None)


def unplated(p: ProgramTrace, q: ProgramTrace, rows: int | None) -> Iterator[Finding]:
    """Plates: none, of another size, in one program only; sites outside; batch dimensions that no plate declares."""
    data = main_plate(p, q, rows=rows)
    if data is None:
        if p.sites or q.sites:
            fix = 'put the sites of model and guide under `with pyro.plate("data", len(x)):`'
            yield Finding("plate", "model and guide", "no data plate: nothing says which dimension runs over rows", fix)
        return
    here = {"model": p.sites, "guide": proposal_sites(q.sites, p.sites)}  # heads and auxiliary draws may lie outside
    for name in dict.fromkeys([*p.sites, *here["guide"]]):
        where, sites = f"site {name!r}", {program: sites[name] for program, sites in here.items() if name in sites}
        stacks = {program: frames_of(site) for program, site in sites.items()}
        texts, stack = {program: format_plates(stack) for program, stack in stacks.items()}, next(iter(stacks.values()))
        if len(set(texts.values())) > 1:
            what = f"plates differ: {texts['model']} in the model, {texts['guide']} in the guide"
            yield Finding(
                "plate", where, what, f"use the same plates (name, size, dim) in both programs{own_rows(stacks, rows)}"
            )
        elif data not in stack:
            fix = (
                "move it into the plate, or make it a parameter (pyro.param); parameters of the data set are checked as "
                "whole = WholeDataSet(model, guide): check(whole.model, whole.guide, *whole.rows(x))"
            )
            yield Finding("plate", where, f"it lies outside the plate {data!r}: it is shared by all rows", fix)
        elif rows is not None and (size := stack[data].size) not in (rows, WITHOUT_SIZE):
            fix = f"pyro.plate({data!r}, len(x))"
            yield Finding("plate", where, f"its plate {data!r} has size {size}, the batch {rows} rows", fix)
        for program, site in sites.items():
            yield from undeclared(where, program, site)


def own_rows(stacks: dict[str, dict[str, CondIndepStackFrame]], rows: int | None) -> str:
    """Say what a guide takes that has parameters for each row, as AutoNormal, where the model's plates are of these rows."""
    sizes = {program: {name: frame.size for name, frame in stack.items()} for program, stack in stacks.items()}
    for name, own in sizes["guide"].items():
        if sizes["model"].get(name) == rows and own not in (rows, WITHOUT_SIZE):
            return f"; a guide with parameters for each of {own} rows (AutoNormal) takes all at once, batch_size={own}"
    return ""


def format_plates(stack: dict[str, CondIndepStackFrame]) -> str:
    """Name the plates that a site lies in, with sizes and dims."""
    sizes = {name: "without a size" if f.size == WITHOUT_SIZE else f"of size {f.size}" for name, f in stack.items()}
    return ", ".join(sorted(f"{f.name!r} {sizes[f.name]} at dim {f.dim}" for f in stack.values())) or "none"


def undeclared(where: str, program: str, site: Site) -> Iterator[Finding]:
    """Return the batch dimensions beyond the plates, which would be taken for rows or particles."""
    shape, declared = site["fn"].batch_shape, {f.dim for f in frames_of(site).values()}
    extra = [d for d in range(-len(shape), 0) if shape[d] > 1 and d not in declared]
    if declared and extra:
        what = f"in the {program} its batch shape {tuple(shape)} has dimension {extra[-1]}, which no plate declares"
        yield Finding("event", where, what, DECLARE.format(len(extra)))


def inside(support: Any, value: Tensor) -> bool:
    """Check that all of a value lies in a support; True where the support cannot tell."""
    try:
        return bool(support.check(value).all())
    except (NotImplementedError, AttributeError, RuntimeError, ValueError):
        return True


def pair_fits(name: str, prior: Site, posterior: Site) -> Iterator[Finding]:
    """Width and support of p(z) against q(z | x), on the draws of each."""
    where, p, q = f"site {name!r}", prior["fn"], posterior["fn"]
    if p.event_shape != q.event_shape:
        what = f"the prior draws values of shape {tuple(p.event_shape)}, the posterior {tuple(q.event_shape)}"
        yield Finding("width", where, what, "give prior and posterior the same number of dimensions")
        return
    if posterior["value"].isnan().any():
        yield Finding("nan", where, "the guide draws NaN", f"repair the batch or the guide's network. {MASK}"[:-1])
        return
    try:
        here, there = p.support, q.support
    except (NotImplementedError, AttributeError):
        return
    what = f"the prior lives on {format_support(bare(here))}, the posterior on {format_support(bare(there))}"
    if inside(there, posterior["value"]) and not inside(here, posterior["value"]):
        fix = "choose a posterior on the prior's support; the guide draws where the prior has none"
        yield Finding("support", where, what, fix)
    elif inside(here, prior["value"]) and not inside(there, prior["value"]):
        kinds = [(c.is_discrete, "implex" in str(c), "phere" in str(c)) for c in (bare(here), bare(there))]
        if kinds[0] != kinds[1]:  # else it is a matter of what p(x, z) allows: check_reach
            fix = "choose a posterior on the prior's support; the guide never draws some of what the prior allows"
            yield Finding("support", where, what, fix)


def data_fits(name: str, site: Site, data: str | None) -> Iterator[Finding]:
    """Compare the observed rows with the likelihood's support; find integers that look like pixels under counts."""
    where, stack, value = f"site {name!r}", frames_of(site), site["value"]
    if data not in stack or (dim := stack[data].dim) is None or not value.numel():
        return
    try:
        good = rows_inside(name, site, dim)
    except ShapeError as error:
        yield finding_of("shape", where, error)
        return
    except (ProgramError, NotImplementedError, AttributeError):
        return
    if not good.all():
        outside = (~good).nonzero().flatten().tolist()
        yield finding_of("support", where, SupportError(describe(name, site, dim, outside[0], outside, len(good))))
        return
    name, support = base_name(site["fn"]), bare(site["fn"].support)
    if not wide_log_prob(site["fn"], value, latent=False, name=name).isfinite().all():
        fix = "choose a likelihood that covers the data, and bound what the network puts into it"
        yield Finding("density", where, f"log p(x | z) of {name} is not finite on this batch", fix)
    counts = support.is_discrete and hasattr(support, "lower_bound") and not hasattr(support, "upper_bound")
    if counts and 200 <= (top := value.nan_to_num().max().item()) <= 255:
        what = f"whole numbers up to {top:g} under {name}: are these pixels?"
        fix = "scale pixels to [0, 1], or use a likelihood of 256 values (binomial); keep it if they are counts"
        yield Finding("pixels", where, what, fix, "warning")


def pathwise(name: str, site: Site) -> Iterator[Finding]:
    """Find a latent that no gradient passes through."""
    if not site["fn"].has_rsample:
        what = f"the guide's {type(site['fn']).__name__} has no pathwise gradient (has_rsample is False), so mean-field"
        fix = "train with Pyro's TraceGraph_ELBO or Trace_ELBO (score function), or TraceEnum_ELBO (sums a discrete latent out)"
        yield Finding("discrete", f"site {name!r}", f"{what} and IWAE objectives leave its part out", fix, "warning")
