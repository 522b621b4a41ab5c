"""The steps of a state-space model, one call of a role each, on particles ``(K, M)`` of M sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from pyro_vae.data.sequences import fill_beyond
from pyro_vae.errors import ProgramError, ShapeError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.wide_scoring import wide_log_prob


class StateSpace(Protocol):
    """A model and a guide over sequences, and the roles that they are made of; sites are ``z_1`` …, ``x_1`` ….

    As :class:`~pyro_vae.StateSpaceModel`, which says what each role takes. That the programs are of these roles is checked.
    """

    model: Any
    guide: Any
    initial: Any
    transition: Any
    likelihood: Any
    encoder: Any
    posterior: Any


@dataclass(frozen=True)
class Steps:
    """The roles on M sequences, K particles of each as K · M rows, so that a role means what it means to rows.

    Attributes:
        roles: the state-space model.
        x: ``(M, T, *event)``.
        lengths: ``(M,)``.
        c: contexts beside the lengths, with M rows.
        h: what the encoder makes of x, ``(M, T, H)``; None where particles are proposed by the transition.
    """

    roles: StateSpace
    x: Tensor
    lengths: Tensor
    c: tuple[Tensor, ...]
    h: Tensor | None = None

    @classmethod
    def of(cls, roles: StateSpace, args: tuple[Tensor, ...], guided: bool) -> Steps:
        """Lay out a model's arguments: x, lengths where there are any, and contexts."""
        x, *rest = args
        h = roles.encoder(*(args if rest else (x, None))) if guided else None  # as the guide calls it
        lengths = rest[0] if rest else torch.full((len(x),), x.shape[1], device=x.device)
        # what is beyond the end counts for nothing; a likelihood shall take it all the same
        return cls(roles, fill_beyond(x, lengths), lengths, tuple(rest[1:]), h)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def num_steps(self) -> int:
        return self.x.shape[1]

    def there(self, t: int) -> Tensor:
        """Return whether each sequence has this step (counted from 0), ``(M,)``."""
        return self.lengths > t

    def context(self, particles: int) -> tuple[Tensor, ...]:
        """Return the contexts of K · M rows."""
        return tuple(repeat(i, particles) for i in self.c)

    def prior(self, z: Tensor | None, particles: int) -> Any:
        """p(z_t | z_{t−1}), or p(z_1), of K · M rows."""
        c = self.context(particles)
        if z is not None:
            return self.roles.transition(z.flatten(0, 1), *c)
        first = self.roles.initial(*c)
        return first.expand((particles * len(self),))

    def proposal(self, z: Tensor | None, t: int, particles: int) -> Any:
        """q(z_t | z_{t−1}, h_t) of K · M rows."""
        assert self.h is not None
        h, c = repeat(self.h[:, t], particles), self.context(particles)
        if z is None:
            start = h.new_zeros(len(h), *self.roles.initial(*self.c).event_shape)
            return self.roles.posterior(start, h, *c)
        return self.roles.posterior(z.flatten(0, 1), h, *c)

    def likelihood(self, z: Tensor) -> Any:
        """p(x_t | z_t) of K · M rows."""
        return self.roles.likelihood(z.flatten(0, 1), *self.context(len(z)))

    def log_likelihood(self, z: Tensor, t: int) -> Tensor:
        """log p(x_t | z_t), ``(K, M)``."""
        return self.by_particle(wide_log_prob(self.likelihood(z), repeat(self.x[:, t], len(z)), False, f"x_{t + 1}"), z)

    def by_particle(self, log_prob: Tensor, z: Tensor) -> Tensor:
        """Return log-probabilities of K · M rows as ``(K, M)`` in float64."""
        if log_prob.shape != (z.shape[0] * z.shape[1],):
            raise ShapeError(
                f"a role's distribution has log-probabilities of shape {tuple(log_prob.shape)} for "
                f"{z.shape[0] * z.shape[1]} rows. Declare what belongs to one step with .to_event, and let each row of its "
                "parents give one row."
            )
        return log_prob.double().reshape(z.shape[:2])

    def draw(self, z: Tensor | None, t: int, particles: int) -> tuple[Tensor, Tensor]:
        """Draw z_t, ``(K, M, *event)``, and return log p(x_t | z_t) p(z_t | z_{t−1}) / proposal, ``(K, M)``."""
        p = self.prior(z, particles)
        q = p if self.h is None else self.proposal(z, t, particles)
        drawn = q.sample()
        new = drawn.reshape(particles, len(self), *drawn.shape[1:])
        log_w = self.log_likelihood(new, t)
        if q is not p:
            terms = [self.by_particle(wide_log_prob(d, drawn, True, f"z_{t + 1}"), new) for d in (p, q)]
            log_w = log_w + terms[0] - terms[1]
        return new, log_w


def repeat(rows: Tensor, particles: int) -> Tensor:
    """``(M, ...)`` as ``(K · M, ...)``, one whole copy after the other."""
    return rows.expand(particles, *rows.shape).flatten(0, 1)


@contextmanager
def validated() -> Iterator[None]:
    """Have torch look at parameters and values meanwhile, and name what it finds as a ProgramError."""
    try:
        with pyro.validation_enabled(True):
            yield
    except ValueError as error:
        if isinstance(error, ProgramError | ShapeError):
            raise
        raise ProgramError(f"a role of the model has no density at what the filter asks: {error}") from error


def check_roles(roles: StateSpace, problem: Problem) -> None:
    """Refuse programs whose densities are not those of the roles, at one draw of each row, which is shared by both.

    Raises:
        ProgramError: sites that are not ``z_1`` … ``z_T`` and ``x_1`` … ``x_T``, or another density; names the site.
    """
    q, p = problem.draw(1)
    terms = {("guide", name): term for name, term in problem.score(q, "guide").items()}
    terms |= {("model", name): term for name, term in problem.score(p, "model").items()}
    steps = Steps.of(roles, problem.args, guided=True)
    wanted = [f"{kind}_{t + 1}" for t in range(steps.num_steps) for kind in ("z", "x")]
    if sorted(wanted) != sorted(p):
        raise ProgramError(
            f"the model has sites {sorted(p)[:6]}, and its roles {sorted(wanted)[:6]}: a particle filter takes one z_t and one "
            "x_t a step, as StateSpaceModel has them"
        )
    values = [
        q[f"z_{t + 1}"]["value"].reshape(1, len(problem), *q[f"z_{t + 1}"]["fn"].event_shape)
        for t in range(steps.num_steps)
    ]
    for t, z in enumerate(values):
        before, name = values[t - 1] if t else None, f"z_{t + 1}"
        here = {
            ("model", name): wide_log_prob(steps.prior(before, 1), z.flatten(0, 1), True, name),
            ("guide", name): wide_log_prob(steps.proposal(before, t, 1), z.flatten(0, 1), True, name),
            ("model", f"x_{t + 1}"): steps.log_likelihood(z, t),
        }
        for (program, site), term in here.items():
            own = torch.where(steps.there(t), term.double().reshape(-1), 0.0)
            other = terms[program, site].double().reshape(-1)
            bad = ~torch.isclose(own, other, rtol=1e-4, atol=1e-4, equal_nan=True)
            if bad.any():
                raise ProgramError(
                    f"site {site!r} of the {program} has another density than the roles say, in rows {problem.numbers(bad)}: "
                    "the filter would be of another model. Write model and guide by these roles, step by step."
                )
