"""What tells a pair of programs from others: a digest of its parameters and buffers, and log-probabilities of a few draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.common.digests import digest_of, tensor_digest
from pyro_vae.errors import ProgramError

from .pair import owners
from .parameters import unconstrained
from .problem import Problem
from .sites import LogProbs
from .sum_over_codes import codes_of

Terms = dict[str, Tensor]  # log-probabilities by name, (1, N)
DRAW = 0x69646E74  # seed of the draw that is scored; no particle is drawn from it
ROWS, PAIRS = 64, 4096  # that are scored: as many as a block has; (row, code) pairs at most
TOGETHER = 8  # rows: no more are run at once than any chunk has room for
NEAR = 1e-4  # of a log-probability: what rounding by other threads, shapes or versions comes to at most


class ParametersRead(Messenger):
    """A handler that collects the tensors of Pyro's parameter store that the programs inside read."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def _pyro_post_param(self, msg: Message) -> None:
        store, name = pyro.get_param_store(), str(msg["name"])
        value = unconstrained(store[name]) if name in store else msg["value"]
        if isinstance(value, Tensor):
            self.tensors.append(value)


@dataclass(frozen=True)
class ProgramIds:
    """Identity of a model and a guide: what they hold, and what they compute.

    Attributes:
        tensors: SHA-256 over all parameters and buffers of the programs' modules, and the parameters that they read from
            Pyro's store; by values, whatever they are called.
        device: "cpu" or "cuda": random numbers, and so `terms`, are of a kind of device.
        terms: log p and log q of each site at one draw of the guide for each of the first rows, under a seed of its own, in
            nats: where programs of the same parameters differ, in a constant, a table of classes or a family, these do. Empty
            where the pair has none.
        model_terms: log p of each site at one draw of the model itself for each of these rows, likewise: what tells the model
            alone from others, whatever guide is beside it. Empty in files of older versions.
    """

    tensors: str
    device: str
    terms: Mapping[str, tuple[float, ...]]
    model_terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem) -> ProgramIds:
        """Take the digest of a problem's programs, and score one draw for each of its first rows."""
        few = problem.few(max(1, min(ROWS, PAIRS // codes_of(problem.model))))
        with ParametersRead() as read:
            terms = terms_of(few, lambda some: named_terms(some.log_probs()))
        alone = terms_of(few, lambda some: of_model(some.score(some.sites(some.model, 1), "model")))
        return cls(digest_of_tensors(problem, read.tensors), few.device.type, terms, alone)

    def difference(self, other: ProgramIds) -> str | None:
        """Say how these programs differ from others; None where they are the same, as far as one can tell."""
        if self.tensors != other.tensors:
            return f"their parameters and buffers have digest {self.tensors[:12]}… and {other.tensors[:12]}…"
        if self.device != other.device or not (self.terms and other.terms):
            return None
        return unlike(self.terms, other.terms)

    def model_difference(self, other: ProgramIds) -> str | None:
        """Say how the model differs from another, its guide aside; None where it is the same, as far as one can tell."""
        if self.device != other.device or not (self.model_terms and other.model_terms):
            return self.difference(other)
        return unlike(self.model_terms, other.model_terms)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; numbers that it has not are words."""
        scores = {"terms": self.terms, "model": self.model_terms}
        told = {what: {name: list(map(repr, each)) for name, each in terms.items()} for what, terms in scores.items()}
        return {"tensors": self.tensors, "device": self.device, **told}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ProgramIds:
        """Read what :meth:`to_dict` returned; a KeyError, TypeError, ValueError or AttributeError if it is none."""
        terms, alone = (
            {str(name): tuple(map(float, each)) for name, each in scores.items()}
            for scores in (saved["terms"], saved.get("model", {}))
        )
        return cls(str(saved["tensors"]), str(saved["device"]), terms, alone)


def terms_of(few: Problem, score: Callable[[Problem], Terms]) -> dict[str, tuple[float, ...]]:
    """Score one draw for each of some rows, under a seed of its own; nothing where the programs have no such scores."""
    terms: dict[str, tuple[float, ...]] = {}
    try:
        for i, some in enumerate(few.split(TOGETHER)):
            with few.quiet(DRAW, i):
                scored = score(some)
            for name, term in scored.items():
                terms[name] = (*terms.get(name, ()), *term[0, :ROWS].tolist())
    # no weight can be taken of this guide (its mixture with the prior may have one), or no memory, which is said later
    except (ProgramError, torch.OutOfMemoryError):
        return {}
    return terms


def named_terms(scored: LogProbs) -> Terms:
    """Name what a pair scores by program and site."""
    return of_model(scored.observed | scored.prior) | {f"log q({site})": t for site, t in scored.posterior.items()}


def of_model(scores: Mapping[str, Tensor]) -> Terms:
    """Name what a model scores, by site."""
    return {f"log p({site})": term for site, term in scores.items()}


def unlike(ours: Mapping[str, tuple[float, ...]], theirs: Mapping[str, tuple[float, ...]]) -> str | None:
    """Say where log-probabilities of the same draws differ by more than rounding; None where they do not."""
    if odd := sorted(ours.keys() ^ theirs.keys()):
        return f"one of them has no {odd[0]}"
    for name, values in ours.items():
        for row, (a, b) in enumerate(zip(values, theirs[name], strict=False)):
            if not near(a, b):
                return f"at one draw for row {row} {name} is {a:.6g} and {b:.6g}"
    return None


def near(a: float, b: float) -> bool:
    """Return whether two log-probabilities are the same but for rounding."""
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= NEAR * (1 + min(abs(a), abs(b)))


def digest_of_tensors(problem: Problem, read: list[Tensor]) -> str:
    """Return the SHA-256 over the tensors of the programs' modules and those that were read, each once, by value."""
    modules = owners(problem.model, problem.guide)
    held = [tensor for module in modules for part in (module.parameters(), module.buffers()) for tensor in part]
    distinct = {id(tensor): tensor for tensor in (*held, *read)}.values()
    return digest_of(sorted(tensor_digest({"": tensor}) for tensor in distinct if tensor.layout == torch.strided))
