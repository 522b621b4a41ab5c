"""A guide's codes, and the model at them: x given z, its means or draws, and whether that is of z alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.errors import NoWeightError, ProgramError
from pyro_vae.programs.at_means import where_kept
from pyro_vae.programs.determinism import first_other, identical
from pyro_vae.programs.masks import kept_entries
from pyro_vae.programs.one_measure import NO_DENSITY, UNNORMALISED, without_density
from pyro_vae.programs.site_rows import frames_of
from pyro_vae.programs.sites import Program, Site, is_auxiliary, latent_sites, sample_sites
from pyro_vae.programs.support import MASK
from pyro_vae.programs.unconditioned import Batch
from pyro_vae.programs.user_errors import GUIDE, MODEL, explained
from pyro_vae.programs.valid_draws import ValidDraws

from .used import pick

Sites = dict[str, Site]


def latents_of(sites: Sites) -> Sites:
    """Return the sites of a guide that are latents of a model."""
    return {name: site for name, site in latent_sites(sites).items() if not is_auxiliary(site)}


def values_of(sites: Sites) -> dict[str, Tensor]:
    """Return the value of each site."""
    return {name: site["value"] for name, site in sites.items()}


def run_guide(guide: Program, args: Batch) -> Sites:
    """Run a guide once; refuse draws that are no numbers."""
    with explained(GUIDE, *args), ValidDraws():
        return sample_sites(poutine.trace(guide).get_trace(*args))


def refuse_gaps(codes: Sites, args: Batch) -> None:
    """Refuse codes that are NaN, but for entries that a mask leaves out, of an x that has missing values."""
    x = args[0]
    if x.is_floating_point() and x.isnan().any() and any(map(has_nan, codes.values())):
        raise ProgramError(f"the posterior's mean is NaN where x has missing values. {MASK}")


def has_nan(site: Site) -> bool:
    """Return whether entries of a site that are there are NaN."""
    return bool((site["value"].isnan() & kept_entries(site)).any())


def decoded(model: Program, args: Batch, codes: Mapping[str, Tensor], undone: Collection[str] = ()) -> Sites:
    """Run a model at values of its latents; return its observed sites, those drawn anew whose observations are `undone`.

    Raises:
        ProgramError: a latent that has no value there.
    """
    program = poutine.condition(Undone(undone)(model), data=dict(codes))
    with explained(MODEL, *args):
        sites = sample_sites(poutine.trace(program).get_trace(*args))
    seen = {n: s for n, s in sites.items() if n not in codes and (s["is_observed"] or n in undone)}
    if left := [name for name in sites if name not in codes and name not in seen]:
        raise ProgramError(
            f"latent site {left[0]!r} is in the model but not in the guide, which draws {sorted(codes)}: x given these alone "
            "is no one distribution of the model's. Give it a pyro.sample of that name in the guide, or observe it."
        )
    return seen


class Undone(Messenger):
    """Draw some observed sites."""

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg.update(is_observed=False, value=None, done=False)


def rows_first(values: Mapping[str, Tensor], sites: Sites, others: Sites | None = None) -> dict[str, Tensor]:
    """Put the dimension of rows first, where another plate stands left of it: ``(N, ...)`` for ``(units, N, ...)``.

    Args:
        values: of some sites.
        sites: these, and others of the run.
        others: of the other program, which tell which plate is that of the rows, too.
    """
    plate = row_plate({**(others or {}), **sites})
    return {name: value.movedim(place_of_rows(sites[name], plate, value), 0) for name, value in values.items()}


def as_drawn(values: Mapping[str, Tensor], sites: Sites) -> dict[str, Tensor]:
    """Undo :func:`rows_first`."""
    plate = row_plate(sites)
    return {name: value.movedim(0, place_of_rows(sites[name], plate, value)) for name, value in values.items()}


def row_plate(sites: Sites) -> str:
    """Name the plate of the rows: around each site that stands in several, "data", or the one around the most sites."""
    plates = [set(frames_of(site)) for site in sites.values()]
    nested = [names for names in plates if len(names) > 1]
    around = set.intersection(*nested) if nested else set()
    if "data" in around or not around:
        return "data"
    return max(sorted(around), key=lambda name: sum(name in names for names in plates))


def place_of_rows(site: Site, plate: str, value: Tensor) -> int:
    """Return which dimension of a site's value is that of the rows, from the left; 0 where there is none."""
    frame = frames_of(site).get(plate)
    return 0 if frame is None else max(0, value.dim() + (frame.dim or 0) - site["fn"].event_dim)


def drawn_again(model: Program, guide: Program, args: Batch) -> dict[str, Tensor]:
    """Draw z of a guide and x of the model given it; labels that are observed beside x stay."""
    latents = latents_of(run_guide(guide, args))
    codes = values_of(latents)
    data = sites_of_x(model, args, codes, decoded(model, args, codes))
    with ValidDraws():
        sites = decoded(model, args, codes, undone=data)
    return rows_first({name: where_kept(sites[name]) for name in data}, sites, latents)


def check_redrawn(model: Program, guide: Program, args: Batch, seed: int) -> None:
    """Refuse a model that draws other data when x is another: it reads x beside observing it."""
    device = args[0].device
    with seeded(seed, device=device):
        codes = values_of(latents_of(run_guide(guide, args)))
    data = sites_of_x(model, args, codes, decoded(model, args, codes))
    draws = []
    for rows in (args, *other_rows(args)):
        with seeded(seed, device=device):
            run = run_or_none(model, rows, codes, data)
        draws += [] if run is None else [{name: run[name]["value"] for name in data}]
    for again in draws[1:]:
        if (name := first_other(draws[0], again)) is not None:
            raise ProgramError(
                f"site {name!r}: the model draws another value when it is called on another x: it reads x beside observing it, "
                "so that its draws are none of p(x | z). Pass what it reads as a context."
            )


def sites_of_x(model: Program, args: Batch, codes: Mapping[str, Tensor], sites: Sites) -> list[str]:
    """Return the observed sites whose value is another when x is another.

    Raises:
        ProgramError: there is none.
    """
    runs = [again for other in other_rows(args) if (again := run_or_none(model, other, codes)) is not None]
    data = [
        name for name, site in sites.items() if any(not identical(site["value"], run[name]["value"]) for run in runs)
    ]
    if not data:
        raise ProgramError('the model observes no part of x: pass it as pyro.sample("x", ..., obs=x).')
    return data


def run_or_none(model: Program, args: Batch, codes: Mapping[str, Tensor], undone: Collection[str] = ()) -> Sites | None:
    """Run a model on rows that may be no data of it (it looks values up, say): None then."""
    try:
        return decoded(model, args, codes, undone)
    except Exception:
        return None


def check_decoder(model: Program, args: Batch, codes: Mapping[str, Tensor], sites: Sites) -> None:
    """Refuse a model whose p(x | z) depends on x: on its values, or from one observed site to another."""
    first = likelihood_draws(sites)
    for other in other_rows(args):
        again = run_or_none(model, other, codes)
        if again is not None and (name := first_other(first, likelihood_draws(again))) is not None:
            raise ProgramError(
                f"site {name!r}: its distribution given the latents is another when x is another (the model reads x, or one "
                "observed site depends on another), so that E[x | z] is no number of its own. Pass what the model reads as a "
                "context, or take draws: num_samples=100."
            )


def other_rows(args: Batch) -> Iterator[Batch]:
    """Yield the arguments with other values of x."""
    x = args[0].nan_to_num() if args[0].is_floating_point() else args[0]
    for change in (x.flip(tuple(range(x.dim()))), torch.zeros_like(x), torch.ones_like(x)):
        yield (change, *args[1:])


def likelihood_draws(sites: Sites) -> dict[str, Tensor]:
    """Draw from the distribution of each site on noise that is always the same; take the mean of one that has no draws.

    Raises:
        NoWeightError: a site that is no normalised density (ImproperUniform), and has neither.
    """
    drawn = {}
    for name, site in sites.items():
        with seeded(0, device=site["value"].device):
            try:
                drawn[name] = site["fn"].sample()
            except NotImplementedError as error:  # a density of the user's own, say, that is only scored
                if (kind := without_density(site["fn"])) in UNNORMALISED:
                    raise NoWeightError(f"site {name!r} of the model is {kind}, {NO_DENSITY[kind]}") from error
                drawn[name] = mean_of_data(name, site)
    return drawn


def mean_of_data(name: str, site: Site, strict: bool = True) -> Tensor:
    """Return the mean of an observed site; NaN, or a ProgramError if `strict`, where it has none in closed form."""
    fn = site["fn"]
    try:
        return where_kept({**site, "value": fn.mean})
    except NotImplementedError as error:
        if not strict:
            return torch.full_like(site["value"], torch.nan, dtype=torch.get_default_dtype())
        raise ProgramError(
            f"site {name!r} of the model, p(x | z), is a {type(fn).__name__}, which has no mean in closed form. Take draws: "
            "num_samples=100, and their average."
        ) from error


def means_of(sites: Sites, site: str | None, default: str | None, latents: Sites | None = None) -> Any:
    """Return the means of the site that is meant, or of all, of the data that is decoded from latents."""
    found = pick({name: name for name in sites}, site, default, "observed site of the model")
    names = [found] if isinstance(found, str) else list(sites)
    means = rows_first({name: mean_of_data(name, sites[name]) for name in names}, sites, latents)
    return means[found] if isinstance(found, str) else means
