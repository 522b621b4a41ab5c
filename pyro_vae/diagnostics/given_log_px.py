"""log p(x) that is given to a diagnosis: of these rows, and of this model, or refused by what differs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import DataError, ShapeError, UnknownProgramsWarning, UsageError
from pyro_vae.evidence.estimate import LOG_PX, LogPx, apart_se, quantity_of, row_difference
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.importance.same_evaluation import UNKNOWN_PROGRAMS
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.program_ids import ProgramIds


def refuse_other_model(log_px: Any, problem: Problem) -> None:
    """Refuse evidence that is not of this model, whatever guide it was found by; a warning where it does not say.

    Raises:
        UsageError: at a draw of its own the model has other log-probabilities, or, where that is not known, the programs have
            other parameters.
    """
    if not isinstance(log_px, Evidence):
        return
    if log_px.program_ids is None:
        warnings.warn(UNKNOWN_PROGRAMS, UnknownProgramsWarning, stacklevel=4)
    elif how := ProgramIds.of(problem).model_difference(log_px.program_ids):
        raise UsageError(
            f"log_px is evidence of another model: {how}. Score x with this one (load the weights that it was made with); if "
            "the guide alone is another, pass the numbers: log_px=evidence.log_px"
        )


def as_truth(log_px: Tensor | LogPx, rows: int, ids: RowIds) -> tuple[Tensor, Tensor, Tensor]:
    """Read a given log p(x), its error, 0 for bare numbers, and which rows it is believed of, all of these.

    Raises:
        UsageError: an estimate of something else than log p(x) of a model.
        ShapeError, DataError: other rows than these.
    """
    if (quantity := quantity_of(log_px)) != LOG_PX:
        raise UsageError(
            f"log_px is {quantity}, and the gap is between {LOG_PX} of this model and its ELBO: give log_likelihood of this "
            "model on these rows"
        )
    values, se = (log_px, None) if isinstance(log_px, Tensor) else (log_px.log_px, apart_se(log_px))
    values = values.detach().to("cpu", torch.float64)
    if values.shape != (rows,):
        raise ShapeError(
            f"log_px has shape {tuple(values.shape)} where x has {rows} rows: give one number for each row"
        )
    if how := row_difference(log_px, ids):
        raise DataError(f"log_px is of other rows than x: {how}. Score these rows, in this order.")
    reliable = torch.ones(rows, dtype=torch.bool)
    reliable[getattr(log_px, "flagged", torch.empty(0, dtype=torch.long))] = False
    return values, torch.zeros_like(values) if se is None else se.to("cpu", torch.float64), reliable
