"""Find the data plate of a model and guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.errors import NoWeightError, ProgramError

from .site_rows import frames_of
from .sites import DATA_SETS, PARTICLES, Program, Site, check_sites, proposal_sites, trace_pair

OF_DATA_SET = (
    "whole = WholeDataSet(model, guide) has log p(X), log_likelihood(whole.model, whole.guide, *whole.rows(x)), new rows have "
    "predictive_density(model, guide, x_new), and ranks over simulated data sets data_set_calibration"
)
WITHOUT_SIZE = -1  # of ``pyro.plate("data")``: the rows are as many as the values have


@dataclass(frozen=True)
class Plates:
    """The data plate of a pair of programs, by name and dim, and how many dims the pair's plates take in all."""

    data: str
    dim: int
    nesting: int

    @property
    def particles(self) -> int:
        """The dim of the particles: left of all the programs' own plates."""
        return -1 - self.nesting

    def leading(self, values: Tensor, event_dim: int = 0) -> Tensor:
        """Return the values of a site, ``(K, ..., N, ..., *event)``, as ``(K, N, ..., *event)``."""
        return values.movedim((self.particles - event_dim, self.dim - event_dim), (0, 1))

    def by_unit(self, values: Tensor, event_dim: int = 0) -> Tensor:
        """Return the values of a site as ``(K, N, units)``: inner plates and event dimensions are units."""
        leading = self.leading(values, event_dim)
        return leading.reshape(*leading.shape[:2], -1)

    def beside(self, weights: Tensor, event_dim: int = 0) -> Tensor:
        """``(K, N)`` with dimensions of size 1, to stand beside the values of a site."""
        shape = [1] * (1 + self.nesting + event_dim)
        shape[0], shape[self.dim - event_dim] = weights.shape
        return weights.reshape(shape)


def frame_of_rows(frame: CondIndepStackFrame, copies: int) -> CondIndepStackFrame:
    """Return the data plate over N rows, of one in which each row stands so many times."""
    rows = frame.size // copies
    full = rows if frame.full_size == frame.size else frame.full_size
    return CondIndepStackFrame(frame.name, frame.dim, rows, frame.counter, full)


def sum_rows(name: str, log_prob: Tensor, plates: Plates) -> Tensor:
    """Sum a site's terms over its inner plates: ``(K, N)``."""
    if log_prob.dim() != plates.nesting + 1:
        extra = max(1, log_prob.dim() - plates.nesting - 1)
        raise ProgramError(
            f"site {name!r} has batch shape {tuple(log_prob.shape)} under plates of {plates.nesting + 1} dimensions "
            f"(particles and data). Declare what belongs to one row with .to_event({extra})."
        )
    summed = [d for d in range(1 + plates.particles, 0) if d != plates.dim]
    return log_prob.sum(summed) if summed else log_prob


def find_plates(model: Program, guide: Program, *args: Any, **kwargs: Any) -> Plates:
    """Find the data plate by one run of the pair, and check that it can be treated row by row (else a ProgramError)."""
    with torch.no_grad():
        q, p = trace_pair(model, guide, *args, **kwargs)
    check_sites(p, q)
    return plates_of(p, q)


class OwnRowsError(NoWeightError):
    """A guide whose plate has rows of its own, each with its own parameters, that was asked for others."""

    def __init__(self, plate: str, own: int, came: int) -> None:
        super().__init__(
            f"the guide's plate {plate!r} has {own} rows of its own, each with its own parameters (as AutoNormal's), "
            f"and was asked for {came}. Pass exactly these {own} rows, all at once (batch_size={own}; blocks of {own} rows or "
            "more), or take an encoder, which serves any row."
        )
        self.plate, self.own = plate, own


def plates_of(p: Mapping[str, Site], q: Mapping[str, Site]) -> Plates:
    """Return the data plate of a pair's sites: what the guide observes, and its auxiliary draws, may lie outside."""
    for name, site in proposal_sites(q, p).items():
        if name in p:
            refuse_inside(name, p[name], site)
    proposals = {f"{name} (guide)": site for name, site in proposal_sites(q, p).items()}
    data = data_plate({**p, **proposals})
    sizes = [{f.name: f.size for site in sites.values() for f in frames_of(site).values()} for sites in (q, p)]
    own, came = sizes[0].get(data.name, sizes[1][data.name]), sizes[1][data.name]
    if own != came and WITHOUT_SIZE not in (own, came):
        raise OwnRowsError(data.name, own, came)
    dims = {f.name: f.dim for site in [*p.values(), *q.values()] for f in frames_of(site).values() if f.dim is not None}
    return Plates(data.name, dims[data.name], max(-dim for dim in dims.values()))


def refuse_inside(name: str, p: Site, q: Site) -> None:
    """Refuse a latent that one program draws in a plate, once for each row, and the other outside of any, once for all."""
    stacks = {"model": frames_of(p), "guide": frames_of(q)}
    if all(stacks.values()) or not any(stacks.values()):
        return
    inner, outer = ("model", "guide") if stacks["model"] else ("guide", "model")
    raise ProgramError(
        f"site {name!r} lies inside the plate {min(stacks[inner])!r} in the {inner}, a value for each row, and outside of any "
        f"plate in the {outer}, one for all rows. Put it inside the plate in both, or outside in both (a parameter that all "
        "rows share)."
    )


def data_plate(sites: Mapping[str, Site]) -> CondIndepStackFrame:
    """Return the one plate that encloses every site."""
    stacks = {name: frames_of(site) for name, site in sites.items()}
    plates = {name: frame for stack in stacks.values() for name, frame in stack.items()}
    shared = [name for name in plates if all(name in stack for stack in stacks.values())]
    if len(shared) == 1 or "data" in shared:
        return plates["data" if "data" in shared else shared[0]]
    if shared:
        raise ProgramError(
            f"plates {sorted(shared)} each enclose every site, so which of them runs over the rows of the "
            'data is open. Name that plate "data".'
        )
    if not plates:
        raise ProgramError(
            "no data plate: no site lies in a pyro.plate, so nothing says which dimension runs over rows. "
            'Put the sites of model and guide under `with pyro.plate("data", len(x)):`.'
        )
    widest = max(plates, key=lambda name: sum(name in stack for stack in stacks.values()))
    outside = next(name for name, stack in stacks.items() if widest not in stack)
    if stacks[outside]:
        raise ProgramError(
            f"site {outside!r} lies in the plate {min(stacks[outside])!r}, others in {widest!r}: which of them runs over "
            'the rows of the data is open. Put all sites of a row, of model and guide, in one plate of the same name, "data". '
            f"If {outside!r} is drawn once for all rows: {OF_DATA_SET}."
        )
    if sites[outside]["is_observed"]:
        raise ProgramError(
            f"site {outside!r} is observed (obs=, poutine.condition, pyro.factor) outside of the plate {widest!r}: its "
            "log-density is one number of all rows, so log p(x) does not split into rows. For log p(x) given its value hide "
            f"it, poutine.block(model, hide=[{outside!r}]), around poutine.condition or poutine.do where one of these sets it. "
            f"For the data set as a whole: {OF_DATA_SET}. Else move the site into the plate."
        )
    raise ProgramError(
        f"site {outside!r} lies outside the plate {widest!r}: it is shared by all rows, so log p(x) does not split "
        f"into rows. For parameters of the data set: {OF_DATA_SET}; fit trains the pair as it is. Else move the site into the "
        "plate, or make it a parameter (pyro.param)."
    )


def refuse_part_of_row(name: str, site: Site, data: str) -> None:
    """Refuse a site in an inner plate that chooses some of a row's units: its density is of these, not of the row."""
    for frame in site["cond_indep_stack"]:
        if frame.name not in (data, PARTICLES, DATA_SETS) and frame.full_size not in (None, frame.size):
            raise NoWeightError(
                f"site {name!r} lies in the plate {frame.name!r}, which subsamples {frame.size} of {frame.full_size} within a "
                "row: the density of some of its units is not that of the row. A loss may be scaled for it (Bound(elbo), "
                "Trace_ELBO: fit trains the pair as it is). For log p(x) take the whole plate, "
                f"pyro.plate({frame.name!r}, {frame.full_size}), or an argument that says whether to subsample."
            )


def refuse_part_of_rows(name: str, site: Site, data: str, x: Any) -> None:
    """Refuse a data plate that chooses some of the rows it is given: nobody could tell whose densities those are."""
    frame = frames_of(site).get(data)
    given = len(x) if isinstance(x, Tensor) and x.dim() else None
    if frame is not None and frame.full_size == given and frame.size != given:
        raise NoWeightError(
            f"site {name!r} lies in the plate {data!r}, which chooses {frame.size} of the {given} rows that are passed: nobody "
            f"could tell of which these densities are. Leave subsample_size out, pyro.plate({data!r}, len(x)), and pass those "
            "meant; fit draws batches itself (batch_size=)."
        )


def refuse_shared(name: str, site: Site, data: str, rows: int) -> None:
    """Refuse a latent with one draw for all rows, which a plate without a size lets pass."""
    frame = frames_of(site).get(data)
    if rows == 1 or frame is None or frame.dim is None or frame.size != WITHOUT_SIZE:
        return
    shape, dim = site["value"].shape, frame.dim - site["fn"].event_dim
    if len(shape) < -dim or shape[dim] != rows:
        raise ProgramError(
            f"site {name!r} has one value of shape {tuple(shape)} for all {rows} rows: the plate {data!r} has no size, so "
            f"that nothing expands it. Fix: pyro.plate({data!r}, len(x))."
        )
