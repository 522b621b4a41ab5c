"""What a check finds, and one run of a program to find it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro import poutine

from pyro_vae.errors import ProgramError, PyroVAEError, ShapeError, SupportError

from .sites import Site, latent_sites, sample_sites


@dataclass(frozen=True)
class Finding:
    """One diagnosis: its kind ("site", "plate", "support" …), where ("site 'z'", "parameter 'w'"), what came, the fix."""

    kind: str
    where: str
    what: str
    fix: str
    level: str = "error"

    @property
    def said(self) -> str:
        """Where, what and the fix, in a line."""
        return f"{self.where}: {self.what}{'' if self.what.endswith('?') else '.'} Fix: {self.fix}"

    def __str__(self) -> str:
        return f"{'✗' if self.level == 'error' else '!'} {self.said}"


RAISES: dict[str, type[PyroVAEError]] = {"support": SupportError, "shape": ShapeError, "width": ShapeError}


@dataclass(frozen=True)
class CheckReport:
    """The findings of :func:`~pyro_vae.check`; `ok` where none is an error. Prints one line for each.

    Example:
        >>> print(CheckReport((Finding("site", "site 'z'", "it has no prior", "sample it in the model"),)))
        ✗ site 'z': it has no prior. Fix: sample it in the model
    """

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def ok(self) -> bool:
        return not self.errors

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or "✓ nothing found"

    def raise_if_bad(self) -> None:
        """Raises the class of the first error (SupportError, ShapeError or ProgramError), with all errors in its message."""
        if self.errors:
            raise RAISES.get(self.errors[0].kind, ProgramError)("\n".join(map(str, self.errors)))


@dataclass
class ProgramTrace:
    """One program's sites and parameters, as far as it ran, and what stopped it."""

    program: str
    trace: Any = None
    stopped: Exception | None = None
    sites: dict[str, Site] = field(default_factory=dict)

    @property
    def latents(self) -> dict[str, Site]:
        return {n: s for n, s in latent_sites(self.sites).items() if not s["infer"].get("is_auxiliary")}

    @property
    def params(self) -> dict[str, Site]:
        return {n: s for n, s in self.trace.nodes.items() if s["type"] == "param"}


def run(program: str, function: Callable[..., Any], batch: tuple[Any, ...]) -> ProgramTrace:
    """One program on the batch; an exception is kept, with the sites that came before it."""
    done = ProgramTrace(program)
    with poutine.trace() as tracer:
        try:
            function(*batch)
        except Exception as error:
            done.stopped = error
    done.trace, done.sites = tracer.trace, sample_sites(tracer.trace)
    return done
