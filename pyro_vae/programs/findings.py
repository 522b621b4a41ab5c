"""Findings of a check, and one run of a program to look for them in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyro import poutine

from pyro_vae.errors import ProgramError, PyroVAEError, ShapeError, SupportError

from .sites import Site, latent_sites, sample_sites
from .user_errors import explained


@dataclass(frozen=True)
class Finding:
    """One diagnosis: its kind ("site", "plate", "support" …), where ("site 'z'", "parameter 'w'"), what came, the fix."""

    kind: str
    where: str
    what: str
    fix: str
    level: str = "error"

    @property
    def line(self) -> str:
        """One line: where, what, and the fix."""
        return f"{self.where}: {self.what}{'' if self.what.endswith('?') else '.'} Fix: {self.fix}"

    def __str__(self) -> str:
        return f"{'✗' if self.level == 'error' else '!'} {self.line}"


NAMED = re.compile(r"(?:latent )?((?:site|parameter|module) '[^']+'(?: of the (?:model|guide))?)(: | )(.*)", re.DOTALL)


def finding_of(kind: str, where: str, error: Exception, level: str = "error") -> Finding:
    """Make a finding of an error, ``site 'x': what came. The fix.``; `where` is said where it names no site.

    Example:
        >>> print(finding_of("rows", "model", ProgramError("site 'x' of the model has two densities. Draw by pyro.sample.")))
        ✗ site 'x' of the model: it has two densities. Fix: Draw by pyro.sample
    """
    message = " ".join(str(error).split())
    if (named := NAMED.fullmatch(message)) is not None:
        where, joint, rest = named.groups()
        message = rest if joint == ": " else f"it {rest}"
    what, _, fix = message.partition(". ")
    return Finding(kind, where, what.rstrip("."), fix.removeprefix("Fix: ").rstrip(".") or "see there", level)


RAISES: dict[str, type[PyroVAEError]] = {"support": SupportError, "shape": ShapeError, "width": ShapeError}


@dataclass(frozen=True)
class CheckReport:
    """The findings of :func:`~pyro_vae.check`; `ok` where none is an error. Prints one line for each, and then the notes.

    Example:
        >>> print(CheckReport((Finding("site", "site 'z'", "it has no prior", "sample it in the model"),)))
        ✗ site 'z': it has no prior. Fix: sample it in the model
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()  # what is right, and may be worth knowing

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the pair from being trained or scored."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def ok(self) -> bool:
        """Whether there are none of these."""
        return not self.errors

    def __str__(self) -> str:
        found = "\n".join(map(str, self.findings)) or "✓ nothing found"
        return "\n".join([found, *(f"· {note}" for note in self.notes)])

    def raise_if_bad(self) -> None:
        """Raise the class of the first error (SupportError, ShapeError or ProgramError), with all errors in its message."""
        if self.errors:
            raise RAISES.get(self.errors[0].kind, ProgramError)("\n".join(map(str, self.errors)))


@dataclass(frozen=True)
class ProgramTrace:
    """One program's sites and parameters, as far as it ran, and the exception that stopped it."""

    program: str
    trace: poutine.Trace
    stopped: Exception | None

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The sites that carry a density."""
        return sample_sites(self.trace)

    @property
    def latents(self) -> dict[str, Site]:
        """The sites that are drawn, auxiliary ones left out."""
        return {n: s for n, s in latent_sites(self.sites).items() if not s["infer"].get("is_auxiliary")}

    @property
    def params(self) -> dict[str, Site]:
        """The parameters that it declared, by name."""
        nodes: dict[str, Any] = dict(self.trace.nodes)
        return {n: s for n, s in nodes.items() if s["type"] == "param"}


def run(program: str, function: Callable[..., Any], batch: tuple[Any, ...]) -> ProgramTrace:
    """Trace one program on the batch; after an exception, the sites that came before it."""
    stopped = None
    with poutine.trace() as tracer:
        try:
            with explained(f"the {program}", *batch):
                function(*batch)
        except Exception as error:
            stopped = error
    return ProgramTrace(program, tracer.trace, stopped)
