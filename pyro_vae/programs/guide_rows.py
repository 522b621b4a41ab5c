"""Whether a guide alone, without a model beside it, reads other rows than the one that its latents are of."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyro_vae.data.lazy_rows import LazyRows

from .among_rows import among_rows, why_guide_reads_rows
from .plates import Plates, data_plate
from .problem import Problem
from .row_coupling import LOOP, tell_of_guide
from .site_rows import frames_of
from .sites import Program, Site, sample_sites
from .vectorize_probe import undisturbed


def warn_of_guide_alone(guide: Program, args: tuple[Any, ...], of: str) -> None:
    """Warn of a guide that reads other rows, where numbers `of` it are handed out, and no model is asked.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.7))
        >>> warn_of_guide_alone(guide, (torch.tensor([0.0, 1.0]),), "its means")
    """
    if said := why_guide_alone_reads_rows(guide, args):
        tell_of_guide(said, of)


def why_guide_alone_reads_rows(guide: Program, args: tuple[Any, ...]) -> str:
    """Say at which site a guide has another density of a row beside other rows; empty where it has none, or no plate.

    The guide stands in the place of the model, too: of both its latents are asked, given themselves.
    """
    if len(args[0]) < 2 or isinstance(args[0], LazyRows):
        return ""
    latents_alone = poutine.block(guide, hide_fn=is_observed)
    try:
        problem = Problem(latents_alone, latents_alone, args, Plates("data", -1, 1), vectorizing=LOOP)
        with undisturbed(problem):
            plates = plates_of_guide(sample_sites(poutine.trace(latents_alone).get_trace(*args)))
            problem = Problem(latents_alone, latents_alone, args, plates, vectorizing=LOOP)
            return why_guide_reads_rows(among_rows(problem, latents_alone))
    except Exception:  # no plate of rows: there is nothing to look at
        return ""


def is_observed(site: Any) -> bool:
    """Return whether a site is a term of a loss that a guide has beside its latents."""
    return site["type"] == "sample" and bool(site["is_observed"]) and not site_is_subsample(site)


def plates_of_guide(sites: dict[str, Site]) -> Plates:
    """Return the data plate of a guide's latents."""
    frame = data_plate(sites)
    dims = [f.dim for site in sites.values() for f in frames_of(site).values() if f.dim is not None]
    return Plates(frame.name, int(frame.dim), max(-dim for dim in dims))  # type: ignore[arg-type]
