"""log p(x) of many rows, kept block by block, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import os
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_vae.errors import DataError, Interrupted, RunFolderError, StorageError
from pyro_vae.evaluate.evidence import Evidence
from pyro_vae.evaluate.importance import log_likelihood
from pyro_vae.evaluate.moments import Ledger
from pyro_vae.evaluate.saving import evidence_bytes, load_evidence
from pyro_vae.runs.atomic import storage, sweep, write_atomic
from pyro_vae.runs.folder import EVALUATION, remove
from pyro_vae.runs.safe import LIMIT, read_bytes, sha256, tensor_digest

SECONDS = float(os.environ.get("PYRO_VAE_SAVE_SECONDS", 20))  # of work that a kill may cost


def log_px_in_blocks(path: Path, vae: Any, x: Tensor, *, num_samples: int, seed: int) -> Evidence:
    """`log_likelihood`, which keeps what it has in the run's folder, and begins with what it finds there.

    Parts are files of whole blocks of rows, named after their rows and SHA-256, in a folder named after what they are of: the
    weights, the rows, K and the seed. A damaged part is computed again. They are deleted once all is there.

    Raises:
        Interrupted: as `log_likelihood`; what is there so far is kept.
    """
    parts = Parts(path / EVALUATION / key_of(vae, x, num_samples, seed))
    found = parts.read()
    if found is not None:
        print(f"note: {len(found)} of {len(x)} rows were scored before; going on from there.", file=sys.stderr)
    try:
        evidence = log_likelihood(
            vae.model, vae.guide, x, num_samples=num_samples, seed=seed, resume=found, on_block=parts.take
        )
    except Interrupted as error:
        said = parts.rest(error.result)
        raise type(error)(f"{str(error).partition(';')[0]}{said}", error.result) from None
    remove(parts.folder)
    if parts.folder.parent.is_dir() and not any(parts.folder.parent.iterdir()):
        parts.folder.parent.rmdir()
    return evidence


def key_of(vae: nn.Module, x: Tensor, num_samples: int, seed: int) -> str:
    """What an evaluation is of: parts of another never mix in."""
    said = (tensor_digest(vae.state_dict()), tensor_digest({"x": x}), num_samples, seed)
    return sha256(repr(said).encode())[:16]


class Parts:
    """The parts of one evaluation on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved = 0  # rows that are on the disk
        self.waiting: list[Ledger] = []
        self.at = time.monotonic()

    def read(self) -> Evidence | None:
        """What the parts that are whole add up to, from the first row on."""
        if not self.folder.is_dir() or self.folder.is_symlink():
            return None
        sweep(self.folder)
        ledgers = {
            ledger.rows.start: ledger for file in sorted(self.folder.iterdir()) for ledger in self.ledgers_of(file)
        }
        together: list[Ledger] = []
        for start in sorted(ledgers):
            if start == (together[-1].rows.stop if together else 0):
                together.append(ledgers[start])
        self.saved = together[-1].rows.stop if together else 0
        return Evidence.of(together, **self.said) if together else None

    def ledgers_of(self, file: Path) -> list[Ledger]:
        try:
            if sha256(read_bytes(file, LIMIT))[:16] != file.stem.rpartition("-")[2]:
                raise RunFolderError(f"{file} is damaged (its SHA-256 is not that of its name)")
            part = load_evidence(file)
        except (RunFolderError, DataError) as error:
            print(f"note: {error}; its rows are scored again.", file=sys.stderr)
            return []
        self.said = {name: getattr(part, name) for name in ("seed", "proposal", "measure", "target_se")}
        return list(part.ledgers)

    def take(self, ledger: Ledger, said: dict[str, Any]) -> None:
        """A block more; now and then, all that wait are written."""
        self.said = said
        if ledger.rows.stop > self.saved:
            self.waiting.append(ledger)
        if time.monotonic() - self.at >= SECONDS:
            try:
                self.write()
            except StorageError as error:
                print(f"note: {error} The evaluation goes on; nothing of it is kept until it is done.", file=sys.stderr)

    def rest(self, result: Evidence | None) -> str:
        """What an interruption leaves: whole blocks, and the one that was begun."""
        held = [] if result is None else result.ledgers
        self.waiting = [ledger for ledger in takewhile(len, held) if ledger.rows.stop > self.saved]
        try:
            self.write()
        except StorageError as error:
            return f"; they could not be kept: {error}"
        return "; they are kept, and the same command goes on from there"

    def write(self) -> None:
        """One part of the blocks that wait."""
        if self.waiting:
            content = evidence_bytes(Evidence.of(self.waiting, **self.said))
            with storage(f"cannot make {self.folder}"):
                self.folder.mkdir(parents=True, exist_ok=True)
            first, last = self.waiting[0].rows.start, self.waiting[-1].rows.stop
            write_atomic(self.folder / f"rows-{first:08d}-{last:08d}-{sha256(content)[:16]}.safetensors", content)
            self.saved, self.waiting = last, []
        self.at = time.monotonic()
