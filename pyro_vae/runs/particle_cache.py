"""Particles of an evaluation that is under way, kept in the run's folder to go on from, block by block and to the same bits."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import unlink, write_atomic
from pyro_vae.common.digests import sha256
from pyro_vae.common.exchange import agree
from pyro_vae.common.safe_read import LIMIT, parse, read_bytes
from pyro_vae.common.spread import sharing
from pyro_vae.errors import CheckpointError, StorageError
from pyro_vae.evidence.importance.accumulator import RowBlock
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.importance.storage import evidence_bytes, evidence_from

SECONDS = 20.0  # of work that a kill may cost, at first
SHARE = 0.01  # of the time may go into writing


class ParticleCache:
    """The particles so far of one split's rows, in one file that is always whole.

    Args:
        file: ``particles-SPLIT.safetensors``.
        of: digests of what the particles are of: the weights, the data. Particles of anything else are not gone on from.
        strict: such are an error, in place of none.
    """

    def __init__(self, file: Path, of: Mapping[str, str], strict: bool = True) -> None:
        self.file, self.of, self.strict, self.written = file, dict(of), strict, False
        self.at, self.wait = time.monotonic(), SECONDS

    def read(self) -> Evidence | None:
        """Read what there is to go on from; None where there is no file. Of several processes each reads the same.

        Raises:
            UsageError: ranks that read other files, as of folders that they do not share.
            CheckpointError: it is of other weights or other data.
            RunFolderError, DataError: it is damaged.
        """
        content = read_bytes(self.file, LIMIT) if os.path.lexists(self.file) else None
        if sharing().world > 1:
            agree(f"what {self.file.name} holds", content and sha256(content))
        if content is None:
            return None
        parse(content, self.file)  # within limits
        evidence, of = evidence_from(content, self.file)
        if other := [name for name, digest in self.of.items() if of.get(name) != digest]:
            if not self.strict:
                return None
            raise CheckpointError(
                f"{self.file} holds particles of other {other[0]} than the run's: it was trained, or given data, since. "
                "Score it from the start, without --resume."
            )
        counts = f"{len(evidence)} rows have up to {evidence.num_samples} particles"
        if sharing().leads:
            print(f"note: {counts} from before; going on from there.", file=sys.stderr)
        return evidence

    def update(self, blocks: Sequence[RowBlock], settings: dict[str, Any]) -> None:
        """Write all that is there after a block of rows, now and then."""
        if time.monotonic() - self.at < self.wait:
            return
        start = time.monotonic()
        try:
            self.write(Evidence.of(list(takewhile(len, blocks)), **settings))
        except StorageError as error:
            print(f"note: {error} The evaluation goes on; its particles so far are not kept.", file=sys.stderr)
        self.at = time.monotonic()
        self.wait = max(self.wait, (self.at - start) / SHARE)

    def write(self, evidence: Evidence) -> None:
        """Write all of it, as one file.

        Raises:
            StorageError: it cannot be written; what was there is as it was.
        """
        write_atomic(self.file, evidence_bytes(evidence, self.of))
        self.written = True

    def save_rest(self, result: Any) -> str:
        """Write what an interruption leaves; return a sentence on it. Of several processes rank 0 writes."""
        if not sharing().leads:
            return "rank 0 keeps the particles so far"
        if not isinstance(result, Evidence):
            return "no row has particles, and nothing was kept"
        try:
            self.write(result)
        except StorageError as error:
            return f"the particles so far could not be kept: {error}"
        return f"the particles so far of rows 0 to {len(result) - 1} are in {self.file}; the same command with --resume goes on"

    def forget(self) -> None:
        """Delete the file."""
        unlink(self.file)
