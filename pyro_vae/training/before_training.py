"""What is looked at before the first step, of data and programs: what is wrong is raised, the rest is advice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

from pyro.infer import TraceEnum_ELBO

from pyro_vae.common.random import seeded
from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.errors import ProgramError
from pyro_vae.programs.data_scale import ROWS, scale_findings
from pyro_vae.programs.parameter_checks import check_pair_parameters
from pyro_vae.programs.support import check_support
from pyro_vae.programs.unobserved_gaps import check_context_gaps

from .last_batch import check_last_batch
from .memory_forecast import memory_notes
from .patience import patience_note
from .preflight import check_training
from .shuffle import FIXED
from .trainer import Trainer

FEW = 5  # of the notes that a first check leads to
LOOKED_AT = 500  # rows, by which parameters are judged before training


def examine(trainer: Trainer) -> list[str]:
    """Raise if the data has no likelihood; return advice on the programs."""
    step, data, metrics = trainer.step, trainer.data, trainer.metrics
    data.check_files()
    for rows in (data.train, data.validation or ()):
        check_context_gaps(step.model, rows)
    if any_lazy(*data.train):
        metrics.refuse_of_all_rows()
    if metrics.of_data_set is not None:
        metrics.inside, notes = metrics.of_data_set.examine(data, metrics.first)
        return advise(trainer, notes)
    summed_over = (ProgramError,) if isinstance(step.objective, TraceEnum_ELBO) else ()  # enumerated: not row by row
    with seeded(trainer.options.seed, FIXED, device=data.device), suppress(*summed_over):
        metrics.inside = check_support(step.model, step.guide, *data.train, prepare=metrics.fixed_batch)
        if data.validation is not None:
            metrics.inside &= check_support(step.model, step.guide, *data.validation)
        check_pair_parameters(step.model, step.guide, *metrics.first(LOOKED_AT))
    notes = check_training(step.model, step.guide, step.objective, metrics.first, data.batch_size)
    metrics.shared.check_batches(len(data.train[0]), data.batch_size)
    return advise(trainer, notes)


def advise(trainer: Trainer, notes: list[str]) -> list[str]:
    """Raise if the last batch does not run; return the notes with advice on scale, patience and memory."""
    step, data, metrics = trainer.step, trainer.data, trainer.metrics
    check_last_batch(step, trainer.modules, data, metrics)
    scale = scale_findings(step.model, step.guide, metrics.first(min(ROWS, len(data.train[0]))))
    waiting = patience_note(trainer.options.patience, data.validation is not None)
    trainer.noticed = [*waiting, *(finding.line for finding in scale)]
    return [*trainer.noticed, *notes, *memory_notes(step, trainer.modules, metrics.first, data.batch_size)]


def print_notes(notes: Sequence[str]) -> None:
    """Print the first few notes."""
    for note in notes[:FEW]:
        print(f"note: {note}", file=sys.stderr)
