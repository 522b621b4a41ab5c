"""Processes that share an evaluation have the same programs, rows and options, or are refused before they begin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pyro_vae.common.exchange import agree, gather_text
from pyro_vae.common.sharded import any_sharded
from pyro_vae.common.spread import sharing
from pyro_vae.data.lazy_rows import rows_digest
from pyro_vae.errors import UsageError

from .pair import owners
from .problem import Problem
from .program_ids import ProgramIds


def check_same_on_ranks(problem: Problem, options: Mapping[str, Any], ids: ProgramIds | None = None) -> None:
    """Refuse ranks that would run other rows, programs or options; with one process, do nothing.

    Args:
        problem: the programs, with all rows.
        options: of what is asked of them, by name, of what JSON can hold.
        ids: of the programs, if they are known.

    Raises:
        UsageError: on each rank; names what differs, and on which ranks.
    """
    if sharing().world == 1:
        return
    if any_sharded(owners(problem.model, problem.guide)):
        raise UsageError(
            "processes that share rows run networks each in its own time, and these are sharded over the processes, which run "
            "them in step: gather the weights into a whole model first (get_model_state_dict(vae, "
            "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict), and score that."
        )
    agree("the data (its digest)", rows_digest({str(i): a for i, a in enumerate(problem.args)}))
    if ids is None:
        with problem.quiet(0):
            ids = ProgramIds.of(problem)
    told = gather_text(json.dumps(ids.to_dict()), "the comparison of the programs")
    first, *others = (ProgramIds.from_dict(json.loads(text)) for text in told)
    for rank, other in enumerate(others, 1):
        if how := first.difference(other):
            raise UsageError(f"the programs must be the same on each rank, and on ranks 0 and {rank} {how}")
    for name, value in options.items():
        agree(name, value)
