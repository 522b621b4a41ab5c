"""Weights of a run, as its folder holds them: saved, found, checked against the model, loaded.

Two files may hold some: model.safetensors, and the newest checkpoint. Both say how many epochs had been trained, and the more
win: after a kill behind the last save model.safetensors is of an interruption before. What is told of a run (its evidence) is
of one model, the one with this digest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.identical import spoiled
from pyro_vae.common.safe_read import (
    HEADER_BYTES,
    LIMIT,
    SEAL,
    Layout,
    about_of,
    dump,
    layout_of,
    num_bytes,
    parse,
    read_bytes,
    read_header,
)
from pyro_vae.errors import CheckpointError, RunFolderError

from .checkpoint import Checkpoints, Generation

MODEL = "model.safetensors"


def save_model(path: Path, module: nn.Module, epochs: int | None = None) -> None:
    """Save the module's parameters and buffers in a run folder: the best of so many epochs; None where there are no others."""
    write_atomic(path / MODEL, dump(module.state_dict(), None if epochs is None else {"epochs": epochs}))


@dataclass(frozen=True, eq=False)
class Weights:
    """A run's weights: of model.safetensors, or the best of its newest checkpoint, if that is of more epochs.

    Attributes:
        file: holds them.
        layout: names, shapes and dtypes, as its header says.
        tensors: the weights, where they had to be read to be trusted.
        sealed: their digest, as the file says, which evidence of them carries; None in files of older versions.
    """

    file: Path
    layout: Layout
    tensors: dict[str, Tensor] | None = None
    sealed: str | None = None

    @classmethod
    def of(cls, path: Path) -> Weights:
        """Find the weights of a run folder.

        Raises:
            RunFolderError: there are none, or they are damaged.
        """
        file = path / MODEL
        if os.path.lexists(file):
            layout, metadata = read_header(file)
            if (newer := newer_checkpoint(path, about_of(metadata, file).get("epochs"))) is None:
                return cls(file, layout, sealed=text(metadata.get(SEAL)))
            return cls.of_generation(path, newer)
        newest = Checkpoints(path).newest(groups=("best",))
        if newest is None:
            raise RunFolderError(f"{path} is no whole run: {MODEL} is missing. Train it again.")
        return cls.of_generation(path, newest)

    @classmethod
    def of_generation(cls, path: Path, generation: Generation) -> Weights:
        """Take the best weights of a checkpoint."""
        file = Checkpoints(path).folder / f"{generation.number:06d}" / "best.safetensors"
        best = generation.groups["best"]
        return cls(file, layout_of(best), best, text(generation.manifest.get("weights")))

    @property
    def digest(self) -> str | None:
        """SHA-256 of names and values; None of a checkpoint of an older version, which holds other buffers beside them."""
        if self.sealed is None and self.tensors is None:
            return tensor_digest(parse(read_bytes(self.file, LIMIT), self.file))
        return self.sealed

    def fill(self, module: nn.Module, allow_nonfinite: bool = False) -> None:
        """Load the weights into a module, which must have exactly these tensors.

        Raises:
            RunFolderError: the tensors differ in name, shape or dtype from the module's, are damaged, or are not finite
                (unless `allow_nonfinite`).
        """
        expected = layout_of(module.state_dict())
        # buffers that are not saved with a model, such as N(0, I)'s: a checkpoint has them, too
        derived = dict(module.named_buffers(remove_duplicate=False)).keys() - expected.keys()
        check_layout({k: v for k, v in self.layout.items() if k not in derived}, expected, self.file)
        limit = num_bytes(expected) + HEADER_BYTES + 8
        state = parse(read_bytes(self.file, limit), self.file) if self.tensors is None else self.tensors
        state = {name: tensor for name, tensor in state.items() if name not in derived}
        check_layout(layout_of(state), expected, self.file)
        if not allow_nonfinite:
            check_finite(state, module.state_dict(), self.file)
        module.load_state_dict(state)


def newer_checkpoint(path: Path, epochs: Any) -> Generation | None:
    """Read the best weights of the newest whole checkpoint, if it is of more epochs than these; None of others, or of none."""
    if type(epochs) is not int:  # of an older version, or put there by hand
        return None
    checkpoints = Checkpoints(path)
    if not any(trained(checkpoints.manifest(number)) > epochs for number in checkpoints.numbers()):
        return None
    try:
        newest = checkpoints.newest(groups=("best",))
    except CheckpointError:  # what is whole wins
        return None
    return newest if newest is not None and trained(newest.manifest) > epochs else None


def trained(manifest: Mapping[str, Any]) -> int:
    """Count the whole epochs that a checkpoint is of; −1 where it does not say."""
    epoch = manifest.get("epoch")
    return epoch - 1 if type(epoch) is int else -1


def current_weights(path: Path) -> str | None:
    """Return the digest of the weights that a folder holds now; None where it holds none, or they do not say."""
    with suppress(RunFolderError):
        return Weights.of(path).digest
    return None


def text(value: Any) -> str | None:
    """Return a digest as a file has it; None for what is none."""
    return value if isinstance(value, str) else None


def check_layout(saved: Layout, expected: Layout, path: Path) -> None:
    """Refuse tensors that differ from the model's in name, shape or dtype."""
    odd = sorted(name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name))
    if odd:
        raise RunFolderError(
            f"{path} is not of the model in config.json: {odd[0]!r} is {saved.get(odd[0], 'missing')} there and "
            f"{expected.get(odd[0], 'absent')} in the model ({len(odd)} tensors differ)"
        )


def check_finite(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinite values where the module, as it was built, has none: a mask may be of −∞."""
    if bad := [name for name, t in tensors.items() if spoiled(t, own[name])]:
        raise RunFolderError(
            f"{path} holds non-finite values in {bad[0]!r} ({len(bad)} tensors). Numbers of such a model mean nothing; "
            "to look at it all the same, in Python: load_run(path, allow_nonfinite=True)."
        )
