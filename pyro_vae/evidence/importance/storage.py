"""Evidence with its particles on disk: to continue later, or to merge what several processes computed. No pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.digests import digest_of, tensor_digest
from pyro_vae.common.safe_read import LIMIT, read_regular
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import DataError
from pyro_vae.programs.program_ids import ProgramIds

from .accumulator import CUDA_ROWS, PAIRS, RowBlock
from .result import Evidence
from .strata import Strata

SEAL = "sha256"
FACTS = ("seed", "proposal", "measure", "target_se")
SUMS, OLDER_SUMS = 6, 4  # rows of sums in a file, and in one of an older version
OF_PRIOR = 2  # more of a mixture
LATER = {
    "vectorizing": "plate",
    "engine": "eager",
    "data_digest": None,
    "noise": "block",
}  # facts that files of older versions lack, and what they were


def save_evidence(evidence: Evidence, path: str | Path) -> None:
    """Save evidence and the sums of its particles as safetensors; :func:`load_evidence` reads the same bits.

    The file is replaced as a whole or, if that fails, left as it is.

    Raises:
        UsageError: evidence that was read from a table, and holds no particles.
        StorageError: it cannot be written: the disk is full, read-only, or the folder is missing.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, load_evidence, log_likelihood, normal
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> found = log_likelihood(vae.model, vae.guide, torch.ones(5, 9), num_samples=30)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_evidence(found, f"{folder}/evidence.safetensors")
        ...     torch.equal(load_evidence(f"{folder}/evidence.safetensors").log_px, found.log_px)
        True
    """
    write_atomic(Path(path), evidence_bytes(evidence))


def evidence_bytes(evidence: Evidence, of: Mapping[str, str] | None = None) -> bytes:
    """Serialise evidence with its SHA-256, and with the digests of what it is `of` (the weights, the data)."""
    evidence.check_same()
    tensors: dict[str, Tensor] = {}
    for i, block in enumerate(evidence.row_blocks):
        tensors |= {f"{i}/{name}": value.contiguous() for name, value in tensors_of(block).items()}
    numbers, strata, pairs = (list(each) for each in zip(*map(numbers_of, evidence.row_blocks), strict=True))
    facts = {name: getattr(evidence, name) for name in (*FACTS, *LATER)}
    head: dict[str, Any] = {"said": facts, "ledgers": numbers, "strata": strata, "of": dict(of or {})}  # names on disk
    head["programs"] = None if evidence.program_ids is None else evidence.program_ids.to_dict()
    head["pairs"] = pairs
    head["index"] = [block.ids.index if block.ids else None for block in evidence.row_blocks]
    return save(tensors, {"evidence": json.dumps(head | {SEAL: digest_of(head)}), SEAL: tensor_digest(tensors)})


def load_evidence(path: str | Path) -> Evidence:
    """Load evidence from a file of :func:`save_evidence`, ready for ``resume=`` and :meth:`~pyro_vae.Evidence.merge`.

    It knows its rows and its programs, and both refuse others. Files of older versions do not know their programs: such
    evidence is gone on from with an UnknownProgramsWarning (of pyro_vae.errors).

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
    """Parse the bytes of :func:`evidence_bytes`; a DataError that names `path` if it is damaged or of another kind."""
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        head = json.loads(metadata["evidence"])
        seals = head.pop(SEAL, None), metadata.get(SEAL)
        if seals not in ((None, None), (digest_of(head), tensor_digest(tensors))):  # none: from before there were seals
            raise ValueError("its SHA-256 is not that of what it holds")
        ledgers = head["ledgers"]
        strata = head.get("strata", [[0.0, 0.0]] * len(ledgers))  # files of older versions hold no sums of a stratum
        pairs = head.get("pairs", [PAIRS] * len(ledgers))
        blocks = [row_block_of(tensors, i, *of) for i, of in enumerate(zip(ledgers, strata, pairs, strict=True))]
        for i, (block, index) in enumerate(zip(blocks, head.get("index", [None] * len(blocks)), strict=True)):
            block.ids = row_ids_of(tensors, i, len(block.rows), index)
        facts = {name: head["said"][name] for name in FACTS} | {n: head["said"].get(n, was) for n, was in LATER.items()}
        facts["program_ids"] = ProgramIds.from_dict(head["programs"]) if head.get("programs") else None
        return Evidence.of(blocks, **facts), dict(head.get("of", {}))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError, AttributeError) as error:
        raise DataError(f"{path} holds no evidence that can be gone on from ({error!r}): run it again") from error


def numbers_of(block: RowBlock) -> tuple[list[int], list[float], int]:
    """Return what :func:`row_block_of` takes beside the tensors of a block."""
    sums, rows = block.weight_sums, block.rows
    numbers = [rows.start, rows.stop, block.planned, block.done, sums.count, sums.largest.keep]
    return numbers, [block.strata.weight, block.strata.offset], block.pairs


def tensors_of(block: RowBlock) -> dict[str, Tensor]:
    """Name all tensors of a block of rows, as on disk."""
    sums, largest = block.weight_sums, block.weight_sums.largest
    tensors = {"sums": sums.sums, "top": largest.values, "cut": largest.cut}
    tensors |= {f"ids/{name}": value for name, value in (block.ids.tensors() if block.ids else {}).items()}
    tensors |= {} if block.guide_elbo is None else {"guide_elbo": block.guide_elbo}
    if not block.spread.isnan().all():
        tensors["spread"] = block.spread
    tensors |= {f"waiting/{b}": waiting for b, waiting in block.waiting.items()}
    return tensors | {f"piece/{b}/{o}": piece for b, pieces in block.pieces.items() for o, piece in pieces.items()}


def row_ids_of(tensors: dict[str, Tensor], i: int, rows: int, index: Any) -> RowIds | None:
    """Read which rows block number `i` is of; None in a file of an older version, a ValueError if they are not as many."""
    parts: dict[str, Any] = {
        n: tensors[f"{i}/ids/{n}"] for n in ("x", "context", "source") if f"{i}/ids/{n}" in tensors
    }
    if any(len(part) != rows for part in [*parts.values(), *([] if index is None else [index])]):
        raise ValueError(f"ledger {i} names other rows than it holds")
    labels = None if index is None else tuple(map(str, index))
    return RowIds(**parts, index=labels) if parts else None


def row_block_of(
    tensors: dict[str, Tensor], i: int, numbers: Sequence[int], strata: Sequence[float], pairs: int
) -> RowBlock:
    """Build block number `i` of a file from its numbers in the head; a ValueError if they do not fit its tensors."""
    start, stop, planned, done, count, keep = numbers
    if (
        not all(type(n) is int for n in (*numbers, pairs))
        or not 0 < stop - start <= (CUDA_ROWS if start else stop)
        or pairs < 1
    ):
        raise ValueError(f"ledger {i} is of no block of rows")
    weight, offset = map(float, strata)
    expected = (SUMS + OF_PRIOR if weight else SUMS, stop - start)
    if all_sums(tensors[f"{i}/sums"]).shape != expected or len(tensors[f"{i}/top"]) != stop - start:
        raise ValueError(f"ledger {i} holds other rows than it says")
    if f"{i}/spread" in tensors and tensors[f"{i}/spread"].shape != (stop - start,):
        raise ValueError(f"ledger {i} holds other rows than it says")
    block = RowBlock(range(start, stop), planned, Strata(weight, offset), pairs)
    sums, block.done = block.weight_sums, done
    sums.sums, sums.count = all_sums(tensors[f"{i}/sums"]), count
    sums.prior_count = block.strata.from_prior(0, done * block.size)
    sums.largest.values, sums.largest.cut, sums.largest.keep = tensors[f"{i}/top"], tensors[f"{i}/cut"], keep
    block.guide_elbo = tensors.get(f"{i}/guide_elbo")
    for name, value in tensors.items():
        number, kind, *key = name.split("/")
        if int(number) == i and kind == "spread":
            block.spread = value
        elif int(number) == i and kind == "waiting":
            block.waiting[int(key[0])] = all_sums(value)
        elif int(number) == i and kind == "piece":
            block.pieces.setdefault(int(key[0]), {})[int(key[1])] = value
    return block


def all_sums(sums: Tensor) -> Tensor:
    """Return the sums of a file; those that a file of an older version lacks (which the jackknife wants) are NaN."""
    return (
        torch.cat([sums, sums.new_full((SUMS - OLDER_SUMS, sums.shape[1]), math.nan)])
        if len(sums) == OLDER_SUMS
        else sums
    )
