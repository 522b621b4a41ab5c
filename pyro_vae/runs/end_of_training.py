"""What a training leaves to look at: the figures of its run, and the report made of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pyro_vae.common.plain_text import plain
from pyro_vae.data import Data
from pyro_vae.errors import StorageError

from . import run_figures
from .load import Run
from .report.page import report_training


def draw_figures(
    opened: Run, data: Data, history: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]], floor_px: float
) -> None:
    """Draw every figure of a run into figures/, and write its report.html; what cannot be drawn costs no number.

    Raises:
        StorageError: they cannot be written there.
    """
    run_figures.draw_figures(opened, data, history, points, floor_px)
    try:
        report_training(opened, data)
    except (StorageError, OSError):  # whoever fills a disk shall hear of it
        raise
    except Exception as error:
        print(f"note: no report.html: {plain(f'{type(error).__name__}: {error}')}", file=sys.stderr)
