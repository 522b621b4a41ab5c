r"""A pair of programs and the rows it is evaluated on: how every evaluator runs the pair, and scores its sites."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from pyro import plate, poutine
from torch import Tensor

from pyro_vae.data.arrays import batch_of, read_once

from .arguments import argument_dtypes
from .determinism import refuse_random
from .measure import measure_of
from .pair import like_parameters, quiet, unwrapped
from .plates import Plates, find_plates, refuse_shared, row_log_prob
from .sites import PARTICLES, LogProbs, Program, Site, check_pair, latent_sites, observed_sites, sample_sites, sum_terms
from .structured import on_tensors
from .support import check_support, takes_missing
from .user_errors import GUIDE, MODEL, explained

Sites = dict[str, Site]
Latents = poutine.Trace | Mapping[str, Tensor]


@dataclass(frozen=True)
class Problem:
    r"""A model and a guide, their arguments, and their data plate.

    Whatever is computed of K particles a row, ``(K, N)``, comes out of :meth:`trace`: there is no other plate of particles.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> problem = Problem.of(vae.model, vae.guide, torch.ones(5, 9), seed=0)
        >>> with problem.quiet(0, 1):
        ...     problem.rows(slice(0, 2)).log_probs(particles=3).log_w.shape
        torch.Size([3, 2])
    """

    model: Program
    guide: Program
    args: tuple[Any, ...]  # x ``(N, *event)``, and contexts with N rows
    plates: Plates
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # the same for all rows
    first: int = 0  # the number of the first row, where these rows are a part of others

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
    def checked(cls, model: Program, guide: Program, *args: Tensor) -> Problem:
        """Check that all rows lie in the likelihood's support; find the plates by a run on the first one."""
        check_support(model, guide, *args)
        problem = cls.on(model, guide, *(a[:1] for a in args)).over(*args)
        refuse_random(problem)
        return problem

    @classmethod
    def on(cls, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Problem:
        """Find the plates by one run of the pair on just these arguments; no row is checked."""
        return cls(model, guide, args, find_plates(model, guide, *args, **kwargs), kwargs)

    def __len__(self) -> int:
        return len(self.args[0])

    @property
    def device(self) -> torch.device:
        """Device of x."""
        return self.args[0].device

    @cached_property
    def measure(self) -> str:
        """The measure that log p(x) is a density of: :func:`~pyro_vae.programs.measure.measure_of`."""
        with self.quiet(0):
            return measure_of(self.model, self.guide, *self.rows(slice(1)).args)

    def over(self, *args: Any) -> Problem:
        """The same pair on other arguments."""
        return replace(self, args=args)

    def rows(self, part: slice) -> Problem:
        """The problem of some of the rows."""
        return replace(self, args=tuple(a[part] for a in self.args), first=self.first + (part.start or 0))

    def split(self, size: int) -> list[Problem]:
        """The problems of `size` rows each (1 at least), in order; the last one may have fewer."""
        size = max(1, size)
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def numbers(self, where: Tensor) -> list[int]:
        """Number the rows where a mask ``(N,)`` holds, from 0, up to five of them, for messages."""
        return [self.first + row for row in where.nonzero().flatten()[:5].tolist()]

    def quiet(self, seed: int | None = None, *block: int) -> AbstractContextManager[None]:
        """Enter :func:`~pyro_vae.programs.pair.quiet` on the random stream of (seed, *block)."""
        return quiet(self.model, self.guide, seed=seed, block=block, device=self.device)

    def trace(self, program: Program, particles: int | None = None, at: Latents | None = None) -> poutine.Trace:
        """Run a program (the model, the guide, either under a handler) on the rows, under a plate of particles on the left.

        Latents `at` stand in the place of draws. Those of a trace are replayed: they stay latent (and subsampled rows stay
        the same). Values by site, ``(K, ..., N, ..., *event)``, are conditioned on: the sites count as observed. Without
        `particles` there is no plate of them.
        """
        if isinstance(at, Mapping):
            program = poutine.condition(program, data=dict(at))
        elif at is not None:
            program = poutine.replay(program, trace=at)
        with (
            explained(self.role(program), *self.args),
            nullcontext() if particles is None else plate(PARTICLES, particles, dim=self.plates.particles),
        ):
            return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def role(self, program: Program) -> str:
        """Name a program in messages, with or without handlers around it."""
        wrapped = list(unwrapped(program))
        return MODEL if self.model in wrapped else GUIDE if self.guide in wrapped else "the program"

    def sites(self, program: Program, particles: int | None = None, at: Latents | None = None) -> Sites:
        """The sites of :meth:`trace` that carry a density."""
        return sample_sites(self.trace(program, particles, at))

    def draw(self, particles: int) -> tuple[Sites, Sites]:
        """Sites of the guide with K draws, and of the model replayed on them; checked to be a pair."""
        trace = self.trace(self.guide, particles)
        q, p = sample_sites(trace), self.sites(self.model, particles, trace)
        check_pair(p, q)
        return q, p

    def score(self, sites: Mapping[str, Site]) -> dict[str, Tensor]:
        """log-probabilities by site, ``(K, N)`` in nats: inner plates summed, masked, unscaled."""
        for name, site in sites.items():
            refuse_shared(name, site, self.plates.data, len(self))
        return {name: row_log_prob(name, site, self.plates) for name, site in sites.items()}

    def log_prob(self, sites: Mapping[str, Site]) -> Tensor:
        """The sum of :meth:`score`."""
        return sum_terms(self.score(sites))

    def log_probs(self, particles: int = 1) -> LogProbs:
        """log p(x | z), log p(z) and log q(z | x) at K fresh draws of the guide, by site."""
        q, p = self.draw(particles)
        return LogProbs(self.score(observed_sites(p)), self.score(latent_sites(p)), self.score(q))


def rows_of(
    model: Program,
    guide: Program | None,
    x: Any,
    *context: Any,
    missing: bool = False,
    device: torch.device | None = None,
) -> tuple[Tensor, ...]:
    """Convert x and contexts to the pair's dtype and device; NaN in x passes if `missing`, or if a module declares so."""
    missing = missing or takes_missing(model, guide)
    args = [read_once(a) for a in (x, *context)]
    dtypes = argument_dtypes(model, guide, *args, device=device)
    return batch_of(*args, like=like_parameters(model, guide), device=device, missing=missing, dtypes=dtypes)
