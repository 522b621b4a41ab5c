"""Weights of a run, as its folder holds them: saved, found, checked against the model, loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.safe_read import HEADER_BYTES, Layout, dump, layout_of, num_bytes, parse, read_bytes, read_layout
from pyro_vae.errors import RunFolderError

from .checkpoint import Checkpoints

MODEL = "model.safetensors"


def save_model(path: Path, module: nn.Module) -> None:
    """Save the module's parameters and buffers in a run folder."""
    write_atomic(path / MODEL, dump(module.state_dict()))


@dataclass(frozen=True, eq=False)
class Weights:
    """A run's weights: of model.safetensors, or, before training has ended, the best of its newest checkpoint.

    Attributes:
        file: holds them.
        layout: names, shapes and dtypes, as its header says.
        tensors: the weights, where they had to be read to be trusted.
    """

    file: Path
    layout: Layout
    tensors: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, path: Path) -> Weights:
        """Find the weights of a run folder.

        Raises:
            RunFolderError: there are none, or they are damaged.
        """
        file = path / MODEL
        if os.path.lexists(file):
            return cls(file, read_layout(file))
        newest = Checkpoints(path).newest(groups=("best",))
        if newest is None:
            raise RunFolderError(f"{path} is no whole run: {MODEL} is missing. Train it again.")
        file = Checkpoints(path).folder / f"{newest.number:06d}" / "best.safetensors"
        return cls(file, layout_of(newest.groups["best"]), newest.groups["best"])

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
            check_finite(state, self.file)
        module.load_state_dict(state)


def check_layout(saved: Layout, expected: Layout, path: Path) -> None:
    """Refuse tensors that differ from the model's in name, shape or dtype."""
    odd = sorted(name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name))
    if odd:
        raise RunFolderError(
            f"{path} is not of the model in config.json: {odd[0]!r} is {saved.get(odd[0], 'missing')} there and "
            f"{expected.get(odd[0], 'absent')} in the model ({len(odd)} tensors differ)"
        )


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinite values."""
    if bad := [name for name, t in tensors.items() if not t.isfinite().all()]:
        raise RunFolderError(
            f"{path} holds non-finite values in {bad[0]!r} ({len(bad)} tensors). Numbers of such a model mean nothing; "
            "to look at it all the same, in Python: load_run(path, allow_nonfinite=True)."
        )
