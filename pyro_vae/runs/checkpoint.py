"""Checkpoints: generations of a training's state, each whole or not there, the two newest kept.

A generation is a folder ``checkpoints/000042`` of safetensors (``model``, ``best``, ``optimizer``, ``rng``), ``state.json``
and ``manifest.json``, which holds the SHA-256 and the size of every other file. It is made in memory, written under another
name, synced, and published by one rename. A reader trusts a generation whose every digest is right, and else goes back one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.common.atomic_write import crash_point, delete, folder_in, publish, storage, sweep, unlink
from pyro_vae.common.digests import sha256
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.safe_read import LIMIT, MIB, SEAL, check_seal, dump, parse, parse_json, read_bytes, seal
from pyro_vae.errors import CheckpointError, RunFolderError

SCHEMA = 1
FOLDER, MANIFEST, STATE = "checkpoints", "manifest.json", "state.json"
GROUPS = ("model", "best", "optimizer", "rng")
Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Generation:
    """One saved state of a training.

    Attributes:
        number: counted from 1.
        manifest: schema, library versions, where training was, digests.
        head: the plain part of the state.
        groups: its tensors: model, best, optimizer, rng.
        notes: what was wrong with newer ones.
    """

    number: int
    manifest: dict[str, Any]
    head: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]
    notes: tuple[str, ...] = ()


@dataclass
class Checkpoints:
    """The generations in a folder.

    Args:
        path: the folder that holds, or will hold, ``checkpoints``.
        about: stands in every manifest: versions, digests of config and data.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(Path(folder))
        ...     number = checkpoints.save({"step": 3}, {"model": {"w": torch.ones(2)}})
        ...     checkpoints.newest(groups=("model",)).groups["model"]["w"]
        tensor([1., 1.])
    """

    path: Path
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.path / FOLDER

    def numbers(self) -> list[int]:
        """List the generations that are there, intact or not, the newest first."""
        names = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() and not self.folder.is_symlink() else []
        return sorted((int(name) for name in names if re.fullmatch(r"\d{6,12}", name)), reverse=True)

    def save(self, head: Mapping[str, Any], groups: Groups, **where: Any) -> int:
        """Publish a generation and delete all but the newest two; `where` (step, epoch …) stands in its manifest.

        Raises:
            StorageError: it cannot be written; the generations before are as they were.
        """
        files = {f"{group}.safetensors": dump(tensors) for group, tensors in groups.items()}
        files[STATE] = json.dumps(head, allow_nan=False).encode()
        listed = {name: {"sha256": sha256(content), "bytes": len(content)} for name, content in files.items()}
        manifest = seal({"schema": SCHEMA, **self.about, **where, "files": listed})
        files[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
        number = next(iter(self.numbers()), 0) + 1
        with no_links_below(self.path):
            with storage(f"cannot make {self.folder}"):
                sweep(folder_in(self.path, FOLDER))
            publish(self.folder / f"{number:06d}", files)
        self.prune()
        return number

    def prune(self) -> None:
        """Delete all generations but the newest two: their manifest first, so that none is ever half there."""
        for number in self.numbers()[2:]:
            old = self.folder / f"{number:06d}"
            with storage(f"cannot delete {old}"), no_links_below(self.path):
                unlink(old / MANIFEST)
                crash_point("forgotten")
                delete(old)

    def discard(self, after: int) -> None:
        """Delete the generations after one that was gone back to."""
        for number in self.numbers():
            if number > after:
                with storage(f"cannot delete {self.folder}"), no_links_below(self.path):
                    delete(self.folder / f"{number:06d}")

    def newest(self, groups: tuple[str, ...] = GROUPS, limit: int = LIMIT) -> Generation | None:
        """Read the newest generation that is intact, files of at most `limit` bytes; None where there never was any.

        Raises:
            CheckpointError: there are generations, and none of them can be trusted.
        """
        numbers = self.numbers()
        wrong: list[str] = []
        for number in numbers:
            try:
                with no_links_below(self.path):
                    return self.read(number, groups, limit, tuple(wrong))
            except RunFolderError as error:
                wrong.append(f"generation {number} is passed over: {error}")
        if self.numbers() != numbers:  # a writer published and deleted in the meantime
            return self.newest(groups, limit)
        if wrong:
            raise CheckpointError(
                f"no checkpoint of {self.path} can be trusted: {' '.join(wrong)} Train the run again."
            )
        return None

    def manifest(self, number: int) -> dict[str, Any]:
        """Read what one generation says of itself; nothing where that is damaged, or has just been deleted."""
        with suppress(RunFolderError), no_links_below(self.path):
            return read_manifest(self.folder / f"{number:06d}")
        return {}

    def read(self, number: int, groups: tuple[str, ...], limit: int, notes: tuple[str, ...] = ()) -> Generation:
        """Read one generation, and check every byte that is read of it."""
        here = self.folder / f"{number:06d}"
        if here.is_symlink():
            raise CheckpointError(f"{here} is a link; links are not followed.")
        manifest = read_manifest(here)
        names = [STATE, *(f"{group}.safetensors" for group in groups)]
        if missing := [name for name in names if name not in manifest["files"]]:
            raise CheckpointError(f"{here / MANIFEST} lists no {missing[0]}.")
        content = {name: read_listed(here / name, manifest["files"][name], limit) for name in names}
        head = parse_json(content[STATE], here / STATE)
        if not isinstance(head, dict):
            raise CheckpointError(f"{here / STATE} is no state of a training.")
        tensors = {g: parse(content[f"{g}.safetensors"], here / f"{g}.safetensors") for g in groups}
        return Generation(number, manifest, head, tensors, notes)


def read_listed(path: Path, entry: Mapping[str, Any], limit: int) -> bytes:
    """Read a file, and check that its size and digest are the manifest's."""
    if entry["bytes"] > limit:
        raise CheckpointError(f"{path} has {entry['bytes']:,} bytes, and at most {limit:,} are read.")
    content = read_bytes(path, entry["bytes"])
    if len(content) != entry["bytes"] or sha256(content) != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged (its size or its SHA-256 is not that of the manifest).")
    return content


def read_manifest(here: Path) -> dict[str, Any]:
    """Read a generation's manifest: known file names only, so that no path in it can leave the folder."""
    path = here / MANIFEST
    manifest = parse_json(read_bytes(path, MIB), path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path} is no manifest of a checkpoint.")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} has schema {manifest.get('schema')!r}; this version of pyro_vae reads {SCHEMA}.")
    if odd := sorted(manifest["files"].keys() - {STATE, *(f"{group}.safetensors" for group in GROUPS)}):
        raise CheckpointError(f"{path} names {odd[0][:200]!r}, which is no file of a checkpoint.")
    for name, entry in manifest["files"].items():
        if not (
            isinstance(entry, dict) and type(entry.get("bytes")) is int and entry["bytes"] >= 0 and "sha256" in entry
        ):
            raise CheckpointError(f"{path} says nothing of the size and digest of {name}.")
    if SEAL not in manifest:
        raise CheckpointError(f"{path} has no {SEAL} of its own.")
    check_seal(manifest, path)
    return manifest
