"""A warning where a training has next to no steps, as a small table under the default batch size has."""

from __future__ import annotations

import sys

from pyro_vae.common.counted import counted
from pyro_vae.common.spread import sharing

from .config import Config

FEW_STEPS = 5  # of which the cosine's last has a rate of 0, and the one before it of a tenth


def tell_few_steps(config: Config, rows: int) -> None:
    """Warn where a schedule that ends at 0 leaves a training of few steps next to none."""
    steps = config.epochs * max(1, -(-rows // config.batch_size))
    if config.schedule == "cosine" and steps < FEW_STEPS and sharing().leads:
        of_these = (
            "and its learning rate is 0: nothing is trained" if steps == 1 else "the last at a learning rate of 0"
        )
        print(
            f"warning: {counted(steps, 'step')} in all, of {counted(min(rows, config.batch_size), 'row')}, "
            f"{of_these}. Take more "
            "--epochs or a smaller --batch-size (or --schedule constant).",
            file=sys.stderr,
        )
