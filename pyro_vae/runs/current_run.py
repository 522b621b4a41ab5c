"""A run's weights while they are scored: those that its folder holds once it is locked, and whether they are its own still."""

from __future__ import annotations

import sys
from dataclasses import replace

from pyro_vae.common.digests import tensor_digest

from .evaluations import is_stale
from .load import Run, check_still, load_run
from .weights import current_weights


def as_it_is_now(run: Run) -> Run:
    """Return the run with the weights that its folder holds now. For the holder of the lock.

    Raises:
        RunFolderError: another run has taken its place.
    """
    if is_stale({"weights": tensor_digest(run.vae.state_dict())}, current_weights(run.path)):
        run = replace(load_run(run.path, run.components, str(next(run.vae.parameters()).device)), record=run.record)
    check_still(run.path, run.record)
    return run


def check_same_weights(run: Run, weights: str) -> None:
    """Print a note where training has saved other weights while these were scored.

    Raises:
        RunFolderError: another run has taken this one's place: nothing is to be written into it.
    """
    check_still(run.path, run.record)
    if is_stale({"weights": weights}, current_weights(run.path)):
        print(
            f"note: training went on meanwhile: these numbers are of the weights {run.path} had before.",
            file=sys.stderr,
        )
