r"""log p(x_n, z) at chosen latents, for any Pyro program; the exact oracles add it up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.random import random_states, restore_states
from pyro_vae.errors import ProgramError
from pyro_vae.programs.enumerated import prior_of, unmarked
from pyro_vae.programs.log_density import log_density
from pyro_vae.programs.masks import mask_of_site
from pyro_vae.programs.measure import measure_of
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.row_reads import RowReads
from pyro_vae.programs.score_sites import row_log_density
from pyro_vae.programs.sites import Program, Site, latent_sites, observed_sites, sum_terms
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.summed_out import sum_out
from pyro_vae.programs.unconstrained import SiteLayout, SubstituteLatents
from pyro_vae.programs.valid_parameters import check_site_parameters
from pyro_vae.programs.wrapped import base_name, elements

from .edges import InsideSupport, borders, log_densities
from .masked_latents import log_volumes

IMPROPER = ("Unit", "ImproperUniform")
LEVELS = 32  # of an observed value, up to which log p(x | z) is looked up and not computed for each row
NEVER = -1e30  # a log-probability that stands for −∞ in a matrix product, where 0 · −∞ would be NaN


FOUND: ContextVar[list[Any] | None] = ContextVar("FOUND", default=None)


@contextmanager
def probed_once() -> Iterator[None]:
    """Run and check a program once for all :class:`Joint` of it that are made meanwhile."""
    token = FOUND.set([])
    try:
        yield
    finally:
        FOUND.reset(token)


@dataclass(frozen=True)
class Traced:
    """Sites of a run at chosen latents; of those set by u, log |dz/du|, and log p(z) |dz/du| where it has a formula in u."""

    rows: Problem  # that were run
    sites: dict[str, Site]
    log_det: dict[str, Tensor]
    on_the_line: dict[str, Tensor]


class Joint:
    """log p(x_n, z) of a Pyro program, of N rows of data and at any z ``(G, R, D)``: G points for each of R rows.

    The guide is not run, but owns modules too. If `unconstrained`, points are u on the real line, z = T(u), and densities hold
    log |dz/du|.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        x: Any,
        c: tuple[Any, ...],
        missing: bool,
        unconstrained: bool = False,
    ) -> None:
        found = FOUND.get()
        if found:
            vars(self).update(found[0])
            restore_states(self.device, found[1])  # what an oracle draws does not depend on which were tried before
        else:
            self.find(model, guide, x, c, missing)
            if found is not None:
                found += [dict(vars(self)), random_states(self.device)]
        if unconstrained:
            self.sum_out()
        plates = self.problem.plates
        self.layouts = [SiteLayout.of(name, site, plates, unconstrained) for name, site in self.latents.items()]
        self.dims = sum(layout.size for layout in self.layouts)
        self.unconstrained = unconstrained

    def find(self, model: Program, guide: Program | None, x: Any, c: tuple[Any, ...], missing: bool) -> None:
        """Run the program to find its latents and what it observes; refuse one without a log p(x)."""
        model, guide, args = on_tensors(model, guide, x, *c)
        args = rows_of(model, guide, *args, missing=missing)
        floats = args[0].dtype if args[0].is_floating_point() else torch.get_default_dtype()
        self.device, self.eps = args[0].device, torch.finfo(floats).eps
        self.everyone = torch.arange(len(args[0]), device=self.device)
        drawn = unmarked(model)  # latents are substituted here, and not summed by Pyro
        self.problem = Problem.checked(drawn, prior_of(drawn), *args)
        one = self.problem.rows(slice(1))
        # not problem.measure, which draws on a stream of its own: what is drawn from `seed` after it would be other draws
        self.measure = measure_of(one.model, one.guide, *one.args)
        sites = one.sites(one.model)
        self.latents, self.observed = latent_sites(sites), observed_sites(sites)
        if improper := [name for name, site in sites.items() if base_name(site["fn"]) in IMPROPER]:
            raise ProgramError(
                f"site {improper[0]!r} (pyro.factor, ImproperUniform) has no normalising constant: the result would be no "
                "log p(x). Write it as a distribution."
            )

    def sum_out(self) -> None:
        """Sum discrete latents out, where there are continuous ones beside."""
        with self.problem.quiet(0):
            marginal, _ = sum_out(self.problem.model, None, *self.problem.args)
            if marginal is self.problem.model:
                return
            self.problem = Problem.checked(marginal, prior_of(marginal), *self.problem.args)
            sites = self.problem.rows(slice(1)).sites(marginal)
        self.latents, self.observed = latent_sites(sites), observed_sites(sites)

    def __len__(self) -> int:
        return len(self.problem)

    def rows(self, index: Tensor) -> Problem:
        """Select the model and its prior on the rows of `index`."""
        return self.problem.over(*(a[index] for a in self.problem.args))

    def data(self, index: Tensor) -> dict[str, Tensor]:
        """Return the observed values of the rows of `index`, by site, in the shape of the site's distribution."""
        sites = self.rows(index).sites(self.problem.model)
        return {name: sites[name]["value"].expand(sites[name]["fn"].shape()) for name in self.observed}

    def log_prior(self, z: Tensor, index: Tensor) -> Tensor:
        """log p(z_g), ``(G, R)`` in float64."""
        return self.prior_on(self.trace(z, index))

    def prior_on(self, traced: Traced) -> Tensor:
        """log p(z) (+ log |dz/du|) of a trace, ``(G, R)``."""
        return self.add_up(traced.rows.score(latent_sites(traced.sites), "model"), traced)

    def trace(self, z: Tensor, index: Tensor) -> Traced:
        """Run the model on the rows of `index`, its latents at z."""
        return self.trace_on(self.rows(index), z)

    def trace_on(self, rows: Problem, z: Tensor) -> Traced:
        """:meth:`trace` on rows that were selected before."""
        substituted = (InsideSupport if self.unconstrained else SubstituteLatents).at(z, self.layouts)
        sites = rows.sites(self.problem.model, len(z), substituted)
        plates = self.problem.plates
        return Traced(rows, sites, log_volumes(substituted, sites, plates), log_densities(substituted, sites, plates))

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """log p(x_n, z_g) (+ log |dz/du|) for the rows of `index`, ``(G, R)`` in float64."""
        traced = self.trace(z, index)
        return self.add_up(traced.rows.score(traced.sites, "model"), traced)

    def borders(self) -> Tensor:
        """Return the u between which z moves, ``(2, D)``: beyond, the likelihood is that of the nearest z."""
        columns = [borders(self.latents[layout.name], layout.dtype) for layout in self.layouts]
        by_column = [ends for layout, ends in zip(self.layouts, columns, strict=True) for _ in range(layout.size)]
        return torch.tensor(by_column, dtype=torch.float64, device=self.device).T

    def doubt_beyond(self, u: Tensor, borders: Tensor, rows: Tensor) -> Tensor:
        """Return by what part the density at points u ``(P, D)``, beyond the borders, may be off, ``(P,)``; ∞ if not known.

        Where log p(z) is known from u alone, that is by what log p(x | z) moves from half way to the borders to there.
        """
        middle = torch.maximum(torch.minimum(u, borders[1] / 2), borders[0] / 2)
        here, there = (self.trace(points.unsqueeze(0), rows) for points in (u, middle))
        if set(here.on_the_line) != set(self.latents):
            return torch.full_like(u[:, 0], math.inf)
        one, other = (run.rows.log_prob(observed_sites(run.sites), "model")[0] for run in (here, there))
        return torch.expm1((one - other).abs()).nan_to_num(nan=math.inf)

    def add_up(self, terms: dict[str, Tensor], traced: Traced) -> Tensor:
        """Add up sites' terms and Jacobians, in float64; some are known together, from u alone."""
        jacobians = {f"|d {name}|": term for name, term in traced.log_det.items() if name not in traced.on_the_line}
        terms = terms | {name: term for name, term in traced.on_the_line.items() if name in terms}
        return sum_terms({name: term.double() for name, term in (terms | jacobians).items()})


class ReadsRowsError(Exception):
    """A density that is to hold for all rows was computed from the x or the context of one."""


class Shared:
    """log p(x_n, z_g) of all rows from one run of the program at each z_g: where p(z) and p(x | z) are the same for all.

    That they are is proved at each point: what is computed there reads nothing of the row that the program runs on
    (:class:`~pyro_vae.programs.row_reads.RowReads`), else a ReadsRowsError.
    """

    def __init__(self, joint: Joint, lookup: bool) -> None:
        self.joint, self.one = joint, joint.rows(torch.zeros(1, dtype=torch.long, device=joint.device))
        self.data = joint.data(joint.everyone)
        self.tables = {name: self.table(name) for name in self.data if lookup}

    @classmethod
    def of(cls, joint: Joint, probes: Tensor) -> Shared | None:
        """Choose the first way of sharing that agrees with row-by-row runs at `probes`, ``(G, 1, D)``; None where none does."""
        shared = [way for way in (cls.tried(joint, lookup, probes) for lookup in (True, False)) if way]
        if not shared:
            return None
        parts = joint.everyone.split(512)
        by_row = torch.cat([joint.log_prob(probes.expand(-1, len(part), -1), part) for part in parts], 1)
        for way, at_once in shared:
            if torch.allclose(at_once, by_row, rtol=50 * joint.eps, atol=200 * joint.eps, equal_nan=True):
                return way
        return None

    @classmethod
    def tried(cls, joint: Joint, lookup: bool, probes: Tensor) -> tuple[Shared, Tensor] | None:
        """Share at `probes`; None where the program reads its rows, or does not broadcast."""
        try:
            shared = cls(joint, lookup)
            return shared, shared.log_prob(probes, joint.everyone)
        except (ReadsRowsError, RuntimeError, ValueError, NotImplementedError):
            return None

    def table(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Tabulate the few values of x: levels ``(V,)``, and a mask of each ``(V units, N)``; None for many values."""
        fn, value = self.joint.observed[name]["fn"], self.data[name]
        levels = value[~value.isnan()].unique()
        if elements(fn).event_dim or not 0 < len(levels) <= min(LEVELS, (len(self.joint) + 1) // 2):
            return None
        units = value.movedim(self.joint.problem.plates.dim - fn.event_dim, 0).reshape(len(self.joint), -1)
        return levels, torch.cat([(units == level).T for level in levels]).double()

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """log p(x_n, z_g) (+ log |dz/du|) as :meth:`Joint.log_prob`, for points ``(G, 1, D)`` of one row."""
        plates = self.joint.problem.plates
        with RowReads(self.one.args) as reads:
            traced = self.joint.trace_on(self.one, z)
            terms = {
                name: self.score(name, site, index) if name in self.data else row_log_density(name, site, plates)
                for name, site in traced.sites.items()
            }
        if reads.derived([terms, traced.log_det, traced.on_the_line]):
            raise ReadsRowsError
        check_site_parameters(traced.sites, plates.dim, program="model", plates=plates)
        return self.joint.add_up(terms, traced)

    def score(self, name: str, site: Site, index: Tensor) -> Tensor:
        """log p(x_n | z_g) of one observed site, ``(G, R)``."""
        plates, fn = self.joint.problem.plates, site["fn"]
        if (table := self.tables.get(name)) is None or mask_of_site(site) is not True:
            value = self.data[name].index_select(plates.dim - fn.event_dim, index)
            return row_log_density(name, {**site, "value": value}, plates, name in self.joint.problem.inside)
        levels, masks = table
        base = elements(fn)
        by_level = torch.cat([log_density(base, level, latent=False).flatten(1).double() for level in levels], 1)
        total = by_level.clamp_min(NEVER) @ masks[:, index]
        return torch.where(total < NEVER / 2, -math.inf, total)
