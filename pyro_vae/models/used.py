"""What is used: a model and a guide of whatever was given, the rows that they take, and the site that is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.common.keywords import suggest
from pyro_vae.data.arrays import batch_of
from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.pair import like_parameters, programs
from pyro_vae.programs.problem import rows_of
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.unconditioned import Batch

ROLES, PARTS = ("model", "guide"), ("prior", "likelihood", "posterior")


@dataclass(frozen=True)
class Used:
    """A model and a guide, one of them perhaps, and the sites that are meant where none is named."""

    model: Program | None
    guide: Program | None
    code: str | None = None
    data: str | None = None

    @classmethod
    def of(cls, thing: Any) -> Used:
        """Take a VAE, an object with its parts, a pair of programs, or one program.

        Of an object that has both, the parts count, unless it says which sites of its programs are meant.
        """
        code, data = getattr(thing, "code_site", None), getattr(thing, "data_site", None)
        if code is None and has(thing, PARTS):
            thing, code, data = OfParts(thing), "z", "x"
        if isinstance(thing, tuple) or has(thing, ROLES):
            return cls(*programs(thing), code, data)
        if not callable(thing):
            raise ProgramError(
                f"a {type(thing).__name__} is no Pyro program, no pair of them, and has no prior(...), likelihood(...) and "
                "posterior(...): encode, reconstruct, sample and interpolate want one of these."
            )
        return cls(thing, thing)

    def only(self, role: str) -> Program:
        """Return the program of a role, which may be all there is."""
        program: Program = getattr(self, role)
        return program

    def rows_of_guide(self, x: Any, *c: Any) -> tuple[Program, Batch]:
        """Return the guide, on plain tensors, and its checked rows."""
        if self.model is self.guide:
            guide, _, args = on_tensors(self.guide, None, x, *c)
            return guide, rows_of(guide, None, *args)
        _, guide, args = self.rows_of_pair(x, *c)
        return guide, args

    def rows_of_pair(self, x: Any, *c: Any) -> tuple[Program, Program, Batch]:
        """Return model and guide, on plain tensors, and their checked rows."""
        if self.model is self.guide:
            raise UsageError(
                "wanted a model and a guide, as (model, guide) or an object with both, and got one program"
            )
        model, guide, args = on_tensors(self.model, self.guide, x, *c)
        return model, guide, rows_of(model, guide, *args)

    def contexts(self, num_samples: int, c: tuple[Any, ...]) -> Batch:
        """Return checked contexts of so many rows."""
        if other := [len(context) for context in c if len(context) != num_samples]:
            raise UsageError(f"{num_samples} samples need a context of as many rows, got {other[0]}")
        return batch_of(torch.zeros(num_samples), *c, like=like_parameters(self.model), missing=True)[1:] if c else ()

    def template(self, like: Any, num_samples: int, c: tuple[Any, ...]) -> Batch:
        """Return rows of which the values do not count, and contexts."""
        rows: Tensor = rows_of(self.only("model"), None, like, missing=True)[0][:1]
        rows = rows.expand(num_samples, *rows.shape[1:]).contiguous()
        self.contexts(num_samples, c)
        return rows_of(self.only("model"), None, rows, *c, missing=True)


def has(thing: Any, names: tuple[str, ...]) -> bool:
    return all(callable(getattr(thing, name, None)) for name in names)


class OfParts:
    """Anything with a prior, a likelihood and a posterior, as the two programs of a VAE; its parameters are in no store."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    def model(self, x: Tensor, *c: Tensor) -> None:
        """z ~ p(z | c), x ~ p(x | z, c), for each row."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.parts.prior(*c))
            pyro.sample("x", self.parts.likelihood(z, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """z ~ q(z | x, c), for each row."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.parts.posterior(x, *c))


def pick(values: Mapping[str, Any], site: str | None, default: str | None, kind: str) -> Any:
    """Return the values of the site that is meant; of all where none is."""
    name = site or default
    if name is None:
        return dict(values)
    if name not in values:
        raise UsageError(f"site {name!r} is no {kind}; {suggest(name, list(values), otherwise='there are')}")
    return values[name]


def stacked(runs: list[Any]) -> dict[str, Tensor]:
    """Stack the values of several runs, site by site."""
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def parts_of(x: LazyRows) -> list[slice]:
    """Cut rows that are not in memory into parts that are."""
    return [slice(start, start + x.chunk) for start in range(0, len(x), x.chunk)]


def joined(parts: list[Any]) -> Any:
    """Join what came of parts of the rows: values, or values by site."""
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)
