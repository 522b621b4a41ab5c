"""Evidence with its particles on disk: to go on later, or to merge what several processes computed. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.digests import digest_of, tensor_digest
from pyro_vae.common.safe_read import LIMIT, read_regular
from pyro_vae.errors import DataError

from .accumulator import ROWS, RowBlock
from .result import Evidence

SEAL = "sha256"
SAID = ("seed", "proposal", "measure", "target_se")


def save_evidence(evidence: Evidence, path: str | Path) -> None:
    """Writes evidence and the sums of its particles as safetensors; :func:`load_evidence` reads the same bits.

    Args:
        evidence: from :func:`~pyro_vae.log_likelihood`.
        path: of the file, which is replaced as a whole or, if that fails, left as it is.

    Raises:
        UsageError: evidence that was read from a table, and holds no particles.
        StorageError: it cannot be written: the disk is full, read-only, or the folder is missing.
    """
    write_atomic(Path(path), evidence_bytes(evidence))


def evidence_bytes(evidence: Evidence, of: Mapping[str, str] | None = None) -> bytes:
    """What :func:`save_evidence` writes, with the SHA-256 of all that it says.

    `of`: digests of what the particles are of (the weights, the data), for :func:`evidence_from` to hand back.
    """
    evidence.check_same()
    tensors: dict[str, Tensor] = {}
    ledgers: list[list[int]] = []
    for i, ledger in enumerate(evidence.ledgers):
        tensors |= {f"{i}/{name}": value.contiguous() for name, value in tensors_of(ledger).items()}
        start, stop, count = ledger.rows.start, ledger.rows.stop, ledger.moments.count
        ledgers.append([start, stop, ledger.planned, ledger.done, count, ledger.moments.top.keep])
    said = {name: getattr(evidence, name) for name in SAID}
    head = {"said": said, "ledgers": ledgers, "of": dict(of or {})}
    return save(tensors, {"evidence": json.dumps(head | {SEAL: digest_of(head)}), SEAL: tensor_digest(tensors)})


def load_evidence(path: str | Path) -> Evidence:
    """What :func:`save_evidence` wrote, ready for ``resume=`` and :meth:`~pyro_vae.Evidence.merge`.

    Raises:
        DataError: a file that is missing, damaged or of another kind; a link, a pipe, a folder.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, log_likelihood
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 3), bernoulli), Conditional(MLP(3, 2), normal))
        >>> evidence = log_likelihood(vae.model, vae.guide, torch.eye(3), num_samples=50)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_evidence(evidence, f"{folder}/evidence.safetensors")
        ...     again = load_evidence(f"{folder}/evidence.safetensors")
        >>> more = log_likelihood(vae.model, vae.guide, torch.eye(3), num_samples=100, resume=again)
        >>> more.num_samples
        100
    """
    try:
        content = read_regular(Path(path), LIMIT)
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} holds no evidence, as it cannot be read: {why}. Give the file itself.") from error
    return evidence_from(content, path)[0]


def evidence_from(content: bytes, path: str | Path) -> tuple[Evidence, dict[str, Any]]:
    """What :func:`evidence_bytes` made, and the digests of what it is of; `path` is what messages call it.

    Raises:
        DataError: it is damaged or of another kind.
    """
    try:
        tensors = load(content)
        said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        head = json.loads(said["evidence"])
        seals = head.pop(SEAL, None), said.get(SEAL)
        if seals not in ((None, None), (digest_of(head), tensor_digest(tensors))):  # none: from before there were seals
            raise ValueError("its SHA-256 is not that of what it holds")
        ledgers = [row_block_of(tensors, i, numbers) for i, numbers in enumerate(head["ledgers"])]
        return Evidence.of(ledgers, **{name: head["said"][name] for name in SAID}), dict(head.get("of", {}))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path} holds no evidence that can be gone on from ({error!r}): run it again") from error


def tensors_of(ledger: RowBlock) -> dict[str, Tensor]:
    """All that a ledger holds, by name."""
    top = ledger.moments.top
    found: dict[str, Tensor] = {"sums": ledger.moments.sums, "top": top.values, "cut": top.cut}
    found |= {f"waiting/{block}": sums for block, sums in ledger.waiting.items()}
    return found | {f"piece/{b}/{o}": piece for b, pieces in ledger.pieces.items() for o, piece in pieces.items()}


def row_block_of(tensors: dict[str, Tensor], i: int, numbers: Sequence[int]) -> RowBlock:
    """The ledger number `i` of a file, whose head says its numbers."""
    start, stop, planned, done, count, keep = numbers
    if not all(type(n) is int for n in numbers) or not 0 < stop - start <= ROWS:
        raise ValueError(f"ledger {i} is of no block of rows")
    if tensors[f"{i}/sums"].shape != (4, stop - start) or len(tensors[f"{i}/top"]) != stop - start:
        raise ValueError(f"ledger {i} holds other rows than it says")
    ledger = RowBlock(range(start, stop), planned)
    moments = ledger.moments
    moments.sums, moments.count, ledger.done = tensors[f"{i}/sums"], count, done
    moments.top.values, moments.top.cut, moments.top.keep = tensors[f"{i}/top"], tensors[f"{i}/cut"], keep
    for name, value in tensors.items():
        number, kind, *place = name.split("/")
        if int(number) == i and kind == "waiting":
            ledger.waiting[int(place[0])] = value
        elif int(number) == i and kind == "piece":
            ledger.pieces.setdefault(int(place[0]), {})[int(place[1])] = value
    return ledger
