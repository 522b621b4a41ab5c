"""What is done when training goes wrong: who keeps its state, and the step that diverged, so that it can be replayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.errors import DivergedError
from pyro_vae.programs.pair import Program, without_validation
from pyro_vae.programs.sites import sample_sites

from .training_state import Groups, Loop, named, noise, set_noise


class Keeper(Protocol):
    """Keeps a training's state, where `fit` tells it to look: see :class:`~pyro_vae.runs.checkpointer.Keeper`."""

    def before(self, loop: Loop) -> None:
        """Before the first step."""

    def after_step(self, loop: Loop) -> None:
        """Between two steps of an epoch."""

    def after_epoch(self, loop: Loop) -> None:
        """Between two epochs."""

    def done(self, loop: Loop) -> None:
        """After the last, the model still holding the last weights."""

    def failed(self, loop: Loop, error: BaseException) -> str:
        """After an error or an interruption; what was saved, for the message."""

    def capsule(self, head: Mapping[str, Any], groups: Groups) -> str:
        """A step that diverged, to replay; where it is kept, for the message."""


@dataclass
class Miss:
    """What a step that diverges must leave as it was."""

    noise: dict[str, Tensor]
    buffers: list[Tensor]

    @classmethod
    def before(cls, loop: Loop) -> Miss:
        return cls(noise(loop.device), [b.detach().clone() for b in buffers(loop)])

    def undo(self, loop: Loop) -> None:
        """Buffers as they were: a forward pass moves batch statistics."""
        with torch.no_grad():
            for buffer, kept in zip(buffers(loop), self.buffers, strict=True):
                buffer.copy_(kept)


def buffers(loop: Loop) -> Iterable[Tensor]:
    return (b for module in loop.modules for b in module.buffers())


def capsule(loop: Loop, error: DivergedError, before: Miss, rows: Tensor, batch: tuple[Tensor, ...]) -> DivergedError:
    """The error with the first bad site, and where the step can be replayed from."""
    site = first_bad_site(loop, before, batch)
    saved = ""
    if loop.keeper is not None:
        head: dict[str, Any] = {
            "step": loop.done + 1,
            "epoch": loop.place.epoch,
            "done": loop.done / loop.planned,
            "seed": loop.seed,
        }
        head |= {"rows": rows.tolist(), "said": str(error), "site": site, "size": loop.size}
        tensors = {f"{i}": a for i, a in enumerate(batch)}
        saved = loop.keeper.capsule(head, {"model": named(loop), "rng": before.noise, "batch": tensors})
    return DivergedError(f"{error}{f' First bad site: {site}.' if site else ''}{saved}", error.result)


def first_bad_site(loop: Loop, before: Miss, batch: tuple[Tensor, ...]) -> str:
    """The first site, guide before model, whose value or log-probability is not finite under the step's own noise."""
    with seeded(0, device=loop.device):
        set_noise(before.noise, loop.device)
        try:
            return bad_site(loop.step.model, loop.step.guide, batch)
        finally:
            before.undo(loop)


def bad_site(model: Program, guide: Program, batch: tuple[Tensor, ...]) -> str:
    """As :func:`first_bad_site`, with the generators as they are; "" where all are finite, or the programs do not run."""
    with torch.no_grad(), without_validation():
        try:
            q = poutine.trace(guide).get_trace(*batch)
            if found := worst(q, "guide"):
                return found
            return worst(poutine.trace(poutine.replay(model, q)).get_trace(*batch), "model")
        except (ValueError, RuntimeError, ArithmeticError) as error:
            return f"none, the programs stop ({' '.join(str(error).split())[:120]})"


def worst(trace: poutine.Trace, program: str) -> str:
    """The first site of a trace that is not finite, and what it looks like."""
    for name, site in sample_sites(trace).items():
        value, log_prob = site["value"], site["fn"].log_prob(site["value"])
        for what, held in (("value", value), ("log-probability", log_prob)):
            if not held.isfinite().all():
                bad = ~held.isfinite()
                return f"{name!r} of the {program}: {what} {held[bad].flatten()[0].item()} ({int(bad.sum())} of {bad.numel()})"
    return ""
