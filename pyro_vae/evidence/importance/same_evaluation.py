"""Whether parts of evidence are of one evaluation: of the same programs, and of the same data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

from pyro_vae.errors import UnknownProgramsWarning, UsageError
from pyro_vae.programs.program_ids import ProgramIds

UNKNOWN_PROGRAMS = (
    "this evidence was saved by an older version, and does not say of which model and guide it is: whether they are the same "
    "is not checked, and what comes of it does not know either. Run it anew to be sure."
)


class Part(Protocol):
    """What evidence knows of the programs and the data that it is of; None where it does not."""

    @property
    def program_ids(self) -> ProgramIds | None: ...

    @property
    def data_digest(self) -> str | None: ...


def programs_of(parts: Sequence[Part], ids: ProgramIds | None = None) -> ProgramIds | None:
    """Return which programs all parts (and `ids`, those of now) are of; None, with a warning, where a part does not know.

    Raises:
        UsageError: their parameters, buffers or log-probabilities differ.
    """
    known = [part.program_ids for part in parts if part.program_ids is not None]
    first = (known[0] if known else None) if ids is None else ids
    for other in known:
        if first is not None and (how := first.difference(other)):
            raise UsageError(
                f"evidence of two pairs of programs cannot be put together: {how}. Run all of it with the same model and guide "
                "(load the weights that it was made with), or start anew, without resume"
            )
    if len(known) == len(parts):
        return first
    if len(parts) > 1 or ids is not None:
        warnings.warn(UNKNOWN_PROGRAMS, UnknownProgramsWarning, stacklevel=3)
    return None


def data_of(parts: Sequence[Part]) -> str | None:
    """Return the digest of the rows that all parts are of; a UsageError where they differ."""
    digests = list(dict.fromkeys(part.data_digest for part in parts if part.data_digest is not None))
    if len(digests) > 1:
        raise UsageError(
            f"parts of two data sets (digests {digests[0][:12]}… and {digests[1][:12]}…) cannot be merged: rows= runs a part "
            "of one x. Give each part all rows of the same x and contexts."
        )
    return digests[0] if digests else None
