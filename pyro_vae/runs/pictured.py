"""What pictures show of p(x | z): its mean, and the most probable class of columns that have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.errors import ProgramError

from .load import Run

CLASSES = " (of classes: the most probable)"


def typical(d: Any) -> tuple[Tensor, str]:
    """Return the mean of p(x | z), with the mode of elements that have no mean, and a word on it if there are such.

    Classes have none: torch hands out NaN for their mean.

    Raises:
        ProgramError: a likelihood with neither mean nor mode.
    """
    try:
        mean = d.mean
    except NotImplementedError:
        mean = None
    if mean is not None and not mean.isnan().any():
        return mean, ""
    mode = mode_of(d)
    if mode is None and mean is None:
        raise ProgramError(f"the likelihood p(x | z) is a {type(d).__name__}, which has no mean or mode in closed form")
    if mode is None or mean is None:
        return (mean, "") if mode is None and mean is not None else (mode, " by its mode")  # type: ignore[return-value]
    return torch.where(mean.isnan(), mode.to(mean), mean), CLASSES


def mode_of(d: Any) -> Tensor | None:
    """Return the mode, block by block where columns differ (NaN in a block without one); None where there is none."""
    if hasattr(d, "blocks"):
        modes = [mode_of(block) for block in d.blocks]
        like = next((mode for mode in modes if mode is not None), None)
        if like is None:
            return None
        filled = [
            like.new_full(block.shape(), torch.nan, dtype=torch.get_default_dtype()) if mode is None else mode
            for mode, block in zip(modes, d.blocks, strict=True)
        ]
        return torch.cat([mode.to(torch.get_default_dtype()) for mode in filled], -1)
    try:
        return d.mode
    except (NotImplementedError, AttributeError):
        return None


def pictured_reconstructions(run: Run, part: Split) -> tuple[Tensor, str]:
    """Return what stands for x at the codes of rows, ``(N, elements)``, and a word on it."""
    device = next(run.vae.parameters()).device
    shown, word = shown_of(run.kind.likelihood_of_rows(run.vae, *(a.to(device) for a in run.rows(part))))
    return run.kind.flat(shown, run.shape), word


def pictured_samples(run: Run, count: int, seed: int = 0) -> tuple[Tensor, str]:
    """Return what stands for x at as many z ~ p(z), and a word on it; the z are those of :func:`~pyro_vae.sample`."""
    return shown_of(run.kind.likelihood_of_draws(run.vae, run.shape, count, seed))


@torch.no_grad()
def shown_of(d: Any) -> tuple[Tensor, str]:
    """Return :func:`typical` of a distribution; means as they are."""
    return (d, "") if isinstance(d, Tensor) else typical(d)
