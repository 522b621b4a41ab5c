"""How far a training is that has not ended, as its newest checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.common.held_folder import no_links_below
from pyro_vae.errors import RunFolderError

from .checkpoint import Checkpoints, read_manifest


def unfinished(path: Path, epochs: int) -> dict[str, int] | None:
    """Return epoch, epochs and step of a training that was interrupted, killed or still runs; None where none is known of.

    `epoch` is the one that it was in, from 1; `epochs` are those that it was to have.
    """
    checkpoints = Checkpoints(path)
    for number in checkpoints.numbers():
        try:
            with no_links_below(path):
                manifest = read_manifest(checkpoints.folder / f"{number:06d}")
            done, step, epoch = manifest.get("finished"), int(manifest["step"]), int(manifest["epoch"])
        except (RunFolderError, KeyError, TypeError, ValueError):
            continue  # an older generation may be whole
        return None if done else {"epoch": min(epoch, epochs), "epochs": epochs, "step": step}
    return None


def format_unfinished(training: Mapping[str, Any] | None) -> str | None:
    """Format how far the training was when its weights were scored; None of one that has ended."""
    if not (so_far := (training or {}).get("unfinished")):
        return None
    return (
        f"the training has not ended: these are its best weights up to epoch {so_far['epoch']} of {so_far['epochs']} "
        f"(step {so_far['step']})"
    )
