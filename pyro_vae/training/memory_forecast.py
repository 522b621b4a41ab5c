"""How much memory a step will take: measured on two small batches, and extrapolated to a whole one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.objectives.bound_objective import cuda_devices, free_bytes
from pyro_vae.objectives.pyro_elbos import tensor_loss
from pyro_vae.programs.buffers import buffers_restored
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.parameters import ParametersRegistered, store_restored
from pyro_vae.programs.proposal_guide import set_up_undone

SMALL = (16, 32)  # rows that are measured
COPIES = 3  # of each parameter: its gradient, and the two moments of Adam
TO_GO_BACK = 3  # more on a GPU's "graph", of itself and its moments, where steps are known to be finite


@dataclass(frozen=True)
class Forecast:
    """Bytes of a step: `fixed`, and `per_row` for each row of its batch."""

    fixed: float
    per_row: float

    def of(self, rows: int) -> float:
        """Return the bytes of a step on so many rows.

        Example:
            >>> Forecast(fixed=100.0, per_row=8.0).of(10)
            180.0
        """
        return self.fixed + rows * self.per_row

    def rows_in(self, free: float) -> int:
        """Return the most rows whose step takes no more than so many bytes; 0 for none."""
        return max(0, int((free - self.fixed) / self.per_row)) if self.per_row > 0 else 0


def forecast(step: Any, modules: list[nn.Module], first: Callable[[int], tuple[Tensor, ...]]) -> Forecast | None:
    """Measure what autograd keeps of the loss on the first 16 and 32 rows, and take it to grow by rows; add Adam's state.

    That is the peak but for what operations need on the way, a layer or two. None where the objective differentiates by
    itself (:func:`~pyro_vae.objectives.pyro_elbos.tensor_loss`), or the programs do not run on so few rows. Nothing is left
    changed: noise, buffers, parameters.
    """
    if (loss := tensor_loss(step.objective)) is None:
        return None
    try:
        few, more = (kept_bytes(step, loss, first(rows)) for rows in SMALL)
    except Exception:  # programs that run on whole batches only: they say themselves what is wrong with others
        return None
    per_row = (more - few) / (SMALL[1] - SMALL[0])
    of_parameters = sum(p.nbytes for m in modules for p in m.parameters() if p.requires_grad)
    copies = COPIES + TO_GO_BACK * (step.engine.name == "graph")
    return Forecast(few - SMALL[0] * per_row + copies * of_parameters, per_row)


def kept_bytes(step: Any, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> int:
    """Add up the storages that a loss keeps for its backward pass, those of parameters aside."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=cuda_devices(batch)),
        buffers_restored(step.model, step.guide),
        set_up_undone(step.guide),
        store_restored(),
        without_validation(),
        ParametersRegistered(),
        step.precision(),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        held = loss(step.model, step.guide, *batch)  # while it lives no storage is freed, and its address taken again
    del held
    return sum(kept.values())


def memory_notes(
    step: Any, modules: list[nn.Module], first: Callable[[int], tuple[Tensor, ...]], batch_size: int
) -> list[str]:
    """Say before training that a batch will not fit, where it will not; nothing is measured of batches of 64 rows or fewer."""
    if batch_size <= 2 * SMALL[1] or (free := free_bytes(first(1))) is None:
        return []
    if (found := forecast(step, modules, first)) is None or found.of(batch_size) <= free:
        return []
    fit = found.rows_in(free)
    smaller = f"batch_size={fit} would fit" if fit else "not even one row would fit"
    return [
        f"a step on {batch_size} rows needs about {found.of(batch_size) / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; "
        f"{smaller}. If it does not fit, it is computed in parts of its rows where that has the same gradient"
    ]
