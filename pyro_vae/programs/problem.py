r"""A pair of programs and the rows it is evaluated on: how every evaluator runs the pair, and scores its sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from typing import Any, Concatenate

import torch
from pyro import plate, poutine
from torch import Tensor

from pyro_vae.common.mapped_files import MappedFile, ReadInTurn, mapped_files
from pyro_vae.data.arrays import batch_of, read_once
from pyro_vae.data.lazy_rows import LazyRows, any_lazy
from pyro_vae.errors import MarkedError

from .arguments import argument_dtypes
from .digits import refuse_coarse_draws
from .left_by_guide import refuse_left_by_guide
from .masked_latents import check_masks
from .masks import check_same_masks
from .measure import measure_of
from .pair import like_parameters, quiet, unwrapped
from .parameter_kinds import check_values
from .plates import Plates, refuse_part_of_row, refuse_part_of_rows, refuse_shared
from .proposal_guide import RefusedGuide, as_proposal, as_trained, as_written, on_fewest_rows, refuse_unweighed
from .run_program import NO_PLATE, Latents, run_program
from .score_sites import score_sites
from .sites import PARTICLES, LogProbs, Program, Site, check_pair, latent_sites, observed_sites, sample_sites, sum_terms
from .structured import on_tensors
from .summed_out import sum_out, without_marked
from .support import check_support, takes_missing
from .unconstrained import SubstituteLatents
from .unobserved_gaps import check_context_gaps
from .user_errors import GUIDE, MODEL
from .vectorize import (
    MODES,
    Grouping,
    Mode,
    RowsAsParticles,
    Vectorizing,
    joined_traces,
    particle_of,
    repeated,
    without_rows,
)
from .vectorize_probe import LOOP, choose_vectorizing

Sites = dict[str, Site]
PLATE = Vectorizing()
Build = Callable[Concatenate[type["Problem"], Program, Program, ...], "Problem"]


def marks_summed_out(build: Build) -> Build:
    """Build a problem, of the pair without the sites that it marks for enumeration, if there are such beside others."""

    @wraps(build)
    def built(cls: type[Problem], model: Program, guide: Program, *args: Any, **kwargs: Any) -> Problem:
        return summing_marks(
            lambda *pair: build(cls, *pair, *args, **kwargs),
            (model, guide),
            lambda: without_marked(model, guide, *args),
        )

    return built


def summing_marks(
    build: Callable[[Program, Program], Problem],
    pair: tuple[Program, Program],
    summed: Callable[[], tuple[Program, Program]],
) -> Problem:
    """Build a problem of a pair; where its marks for enumeration refuse that, of the `summed` pair, if it is another one."""
    try:
        return build(*pair)
    except MarkedError:
        if (other := summed()) == pair:
            raise
    return build(*other)


@dataclass(frozen=True)
class Problem:
    r"""A model and a guide, their arguments, and their data plate.

    Whatever is computed of K particles a row, ``(K, N)``, comes out of :meth:`trace`: there is no other plate of particles.
    Whether the programs mean the same under one is probed when the plates are found.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> problem = Problem.of(vae.model, vae.guide, torch.ones(5, 9), seed=0)
        >>> with problem.quiet(0, 1):
        ...     problem.rows(slice(0, 2)).log_probs(particles=3).log_w.shape
        torch.Size([3, 2])
    """

    model: Program
    guide: Program  # of latents alone: :class:`~pyro_vae.programs.proposal_guide.ProposalGuide`, where it does more
    args: tuple[Any, ...]  # x ``(N, *event)``, and contexts with N rows
    plates: Plates
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # the same for all rows
    first: int = 0  # the number of the first row, where these rows are a part of others
    vectorizing: Vectorizing = PLATE  # how K particles are run
    inside: frozenset[str] = frozenset()  # observed sites whose data was found in the support
    files: tuple[MappedFile, ...] = ()  # that the rows are mapped from, and not in memory

    @classmethod
    def of(cls, model: Program, guide: Program, x: Any, *context: Any, seed: int, missing: bool = False) -> Problem:
        """Convert the rows as :func:`rows_of` does, and check them and the pair in :func:`~pyro_vae.programs.pair.quiet`.

        The checks draw by `seed`. With `missing`, x may hold NaN, for what was not observed.

        Raises:
            DataError, ShapeError, SupportError: rows that are not finite, of another shape, or outside the support.
            ProgramError: a pair that cannot be treated row by row.
        """
        model, guide, args = on_tensors(model, guide, x, *context)
        args = rows_of(model, guide, *args, missing=missing)
        with quiet(model, guide, seed=seed, device=args[0].device):
            return cls.checked(model, guide, *args)

    @classmethod
    def continuous(
        cls, model: Program, guide: Program, x: Any, *context: Any, seed: int, missing: bool = False
    ) -> Problem:
        """As :meth:`of`, its discrete latents summed out, where they can be listed and there are others."""
        problem = cls.of(model, guide, x, *context, seed=seed, missing=missing)
        with problem.quiet(seed):
            written = as_written(problem.guide)
            pair = sum_out(problem.model, written, *problem.args)
            return problem if pair == (problem.model, written) else cls.checked(*pair, *problem.args)  # type: ignore[arg-type]

    @classmethod
    @marks_summed_out
    def checked(cls, model: Program, guide: Program, *args: Tensor, vectorize: bool = True) -> Problem:
        """Check that all rows lie in the likelihood's support, and masks of latents; find the plates by a run on the first.

        And that the model is its own: of nothing that the guide leaves behind.
        """
        inside = check_support(model, guide, *args)
        problem = replace(cls.on_first_row(model, guide, *args, vectorize=vectorize), inside=inside)
        check_masks(problem)
        refuse_left_by_guide(problem)
        return problem

    @classmethod
    @marks_summed_out
    def on_first_row(cls, model: Program, guide: Program, *args: Tensor, vectorize: bool = True) -> Problem:
        """Find the plates by a run on the first row, or on all, where the guide has parameters for each of them."""
        (proposal, plates), rows = on_fewest_rows(partial(as_proposal, model, guide), guide, args)
        if rows == len(args[0]) > 1:
            proposal, plates = as_proposal(model, guide, *args, own_rows=rows)
        return cls(model, proposal, args, plates, files=mapped_files(args)).probed(vectorize)

    @classmethod
    @marks_summed_out
    def on(cls, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Problem:
        """Find the plates by one run of the pair on just these arguments; no row is checked."""
        return cls.unprobed(model, guide, args, kwargs).probed()

    @classmethod
    def unprobed(cls, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Problem:
        """As :meth:`on`, its particles under a plate until it is :meth:`probed`."""
        proposal, plates = as_proposal(model, guide, *args, **kwargs)
        return cls(model, proposal, args, plates, kwargs)

    def probed(self, vectorize: bool = True) -> Problem:
        """Choose how K particles are run, by :func:`~pyro_vae.programs.vectorize_probe.choose_vectorizing`, or one by one."""
        weighed = self.guide if isinstance(self.guide, RefusedGuide) else as_trained(self.guide)
        # rows that are coupled are refused, however particles are run
        chosen = choose_vectorizing(replace(self, guide=weighed))
        return replace(self, vectorizing=chosen if vectorize else replace(chosen, model=LOOP.model, guide=LOOP.guide))

    def __len__(self) -> int:
        return len(self.args[0])

    @property
    def device(self) -> torch.device:
        """Device of x."""
        return self.args[0].device if isinstance(self.args[0], Tensor | LazyRows) else torch.device("cpu")

    @cached_property
    def measure(self) -> str:
        """The measure that log p(x) is a density of: :func:`~pyro_vae.programs.measure.measure_of`."""
        with self.quiet(0):
            some = self.few(1)
            return measure_of(self.model, self.guide, *some.args)

    @property
    def own_rows(self) -> int:
        """How many rows the guide has parameters for, one by one (AutoNormal), so that it runs on all or none; 0: on any."""
        return getattr(self.guide, "own_rows", None) or 0

    def over(self, *args: Any) -> Problem:
        """Return the same pair on other arguments."""
        return replace(self, args=args)

    def rows(self, part: slice) -> Problem:
        """Return the problem of some of the rows; of a copy in memory, where they are mapped from a file."""
        self.check_files()
        args = tuple(a[part].clone() if self.files else a[part] for a in self.args)
        return replace(self, args=args, first=self.first + (part.start or 0), files=())

    def at(self, numbers: Tensor) -> Problem:
        """Return the problem of the rows of these numbers."""
        self.check_files()
        return replace(self, args=tuple(a[numbers] for a in self.args), files=())

    def check_files(self) -> None:
        """Raise a DataError where a file that the rows are mapped from has changed, before it is read on."""
        for file in self.files:
            file.check()

    def few(self, rows: int) -> Problem:
        """Return the problem of the first rows; of all, where the guide runs on all or none."""
        return self if self.own_rows else self.rows(slice(rows))

    def split(self, size: int) -> Sequence[Problem]:
        """Return the problems of `size` rows each (1 at least, :attr:`own_rows`), in order; the last one may have fewer."""
        size = max(1, size, self.own_rows)
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        in_turn = self.files or any_lazy(*self.args)
        return ReadInTurn(self.rows, parts) if in_turn else [self.rows(part) for part in parts]

    def numbers(self, where: Tensor) -> list[int]:
        """Number the rows where a mask ``(N,)`` holds, from 0, up to five of them, for messages."""
        return [self.first + row for row in where.nonzero().flatten()[:5].tolist()]

    def quiet(self, seed: int | None = None, *block: int) -> AbstractContextManager[None]:
        """Enter :func:`~pyro_vae.programs.pair.quiet` on the random stream of (seed, *block)."""
        return quiet(self.model, self.guide, seed=seed, block=block, device=self.device)

    def trace(self, program: Program, particles: int | None = None, at: Latents | None = None) -> poutine.Trace:
        """Run a program (the model, the guide, either under a handler) on the rows, K particles of each.

        However it is run for that (:attr:`vectorizing`), its sites look as under a plate of particles on the left. Latents
        `at` stand in the place of draws. Those of a trace are replayed: they stay latent (and subsampled rows stay the same).
        Values by site, ``(K, ..., N, ..., *event)``, are conditioned on: the sites count as observed. Those of a
        :class:`~pyro_vae.programs.unconstrained.SubstituteLatents` stay latent. No `particles`: no dimension of them.
        """
        role = self.role(program)
        if role != MODEL:
            refuse_unweighed(program, self.args)
        mode = self.mode(role)
        if particles is None or mode == "plate":
            plates = NO_PLATE if particles is None else plate(PARTICLES, particles, dim=self.plates.particles)
            return run_program(program, role, self.args, self.kwargs, at, plates)
        if mode == "rows":
            handler = RowsAsParticles(Grouping(self.plates, particles))
            trace = run_program(
                handler(program), role, repeated(self.args, particles), self.kwargs, without_rows(at, self.plates)
            )
            return without_rows(trace, self.plates)
        return self.loop(program, role, particles, at)

    def role(self, program: Program) -> str:
        """Name a program in messages, with or without handlers around it."""
        if program is self.model or program is self.guide:
            return MODEL if program is self.model else GUIDE
        wrapped = list(unwrapped(program))
        return MODEL if self.model in wrapped else GUIDE if self.guide in wrapped else "the program"

    def loop(self, program: Program, role: str, particles: int, at: Latents | None) -> poutine.Trace:
        """Trace a program K times, for one particle each; join what comes out."""
        handlers = [RowsAsParticles(Grouping(self.plates, 1)) for _ in range(particles)]
        parts = [particle_of(at, k, particles) for k in range(particles)]
        traces = [
            run_program(h(program), role, self.args, self.kwargs, part) for h, part in zip(handlers, parts, strict=True)
        ]
        if isinstance(at, SubstituteLatents):
            at.parts = [(part, sample_sites(t)) for part, t in zip(parts, traces, strict=True)]
        return joined_traces(traces, handlers)

    def mode(self, role: str) -> Mode:
        """Return how a program is run for particles: as the model or the guide that it is; else as whichever asks for more."""
        if role in (MODEL, GUIDE):
            return self.vectorizing.model if role == MODEL else self.vectorizing.guide
        return max(self.vectorizing.model, self.vectorizing.guide, key=MODES.index)

    def sites(self, program: Program, particles: int | None = None, at: Latents | None = None) -> Sites:
        """Return the sites of :meth:`trace` that carry a density."""
        return sample_sites(self.trace(program, particles, at))

    def draw(self, particles: int) -> tuple[Sites, Sites]:
        """Return the sites of the guide with K draws, and of the model replayed on them; checked to be a pair."""
        trace = self.trace(self.guide, particles)
        q, p = sample_sites(trace), self.sites(self.model, particles, trace)
        check_pair(p, q)
        check_same_masks(latent_sites(p), q, first=self.first)
        return q, p

    def score(self, sites: Mapping[str, Site], program: str = "", fresh: bool = False) -> dict[str, Tensor]:
        """log-probabilities by site, ``(K, N)`` in nats: inner plates summed, masked, unscaled; −∞ outside the support.

        A ProgramError for invalid parameters; it names the `program` ("model", "guide") if that is given. Values that are
        `fresh` from their own distributions lie in a fixed support, and are not looked at again. A NoWeightError for a plate
        that subsamples within a row.
        """
        for name, site in sites.items():
            refuse_part_of_row(name, site, self.plates.data)
            refuse_part_of_rows(name, site, self.plates.data, self.args[0] if self.args else None)
        return self.terms_of(sites, program, fresh)

    def terms_of(self, sites: Mapping[str, Site], program: str = "", fresh: bool = False) -> dict[str, Tensor]:
        """As :meth:`score`, of the units of a row that a plate has chosen, if it subsamples within rows: not log p(x)."""
        for name, site in sites.items():
            refuse_shared(name, site, self.plates.data, len(self))
        if program == "guide":
            refuse_coarse_draws(sites)
        checked = sites if fresh else self.inside
        return score_sites(sites, self.plates, first=self.first, program=program, checked=checked)

    def log_prob(self, sites: Mapping[str, Site], program: str = "") -> Tensor:
        """Return the sum of :meth:`score`."""
        return sum_terms(self.score(sites, program))

    def log_probs(self, particles: int = 1) -> LogProbs:
        """log p(x | z), log p(z) and log q(z | x) at K fresh draws of the guide, by site."""
        q, p = self.draw(particles)
        return self.terms(p, self.score(q, "guide", fresh=True))

    def terms(self, p: Sites, posterior: dict[str, Tensor]) -> LogProbs:
        """Score the model's sites, all at once: what it computes from a latent that p(z) excludes counts for nothing."""
        scores = self.score(p, "model")
        observed, prior = ({name: scores[name] for name in part(p)} for part in (observed_sites, latent_sites))
        return LogProbs(observed, prior, posterior)


def rows_of(
    model: Program,
    guide: Program | None,
    x: Any,
    *context: Any,
    missing: bool = False,
    device: torch.device | None = None,
    on_disk: bool = False,
) -> tuple[Tensor, ...]:
    """Convert x and contexts to the pair's dtype and device; NaN where observed passes if `missing`, or a module says so.

    Rows that are `on_disk` stay there, for a caller who takes some at a time.
    """
    check_values(model, guide)
    missing = missing or takes_missing(model, guide)
    args = [read_once(a) for a in (x, *context)]
    dtypes = argument_dtypes(model, guide, *args, device=device)
    like = like_parameters(model, guide)
    rows = batch_of(*args, like=like, device=device, missing=missing, dtypes=dtypes, on_disk=on_disk)
    check_context_gaps(model, rows)
    return rows
