"""Training of networks sharded over processes (``fully_shard``): each makes whole steps, in step with the others.

Torch exchanges the parameters by hooks within each step. Whatever else all processes must do together, as to gather a state
for a checkpoint, they do at the same step: where one has heard a signal, or when rank 0's clock says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vae.common.exchange import agree, gather
from pyro_vae.common.processes import Processes, explain
from pyro_vae.common.sharded import any_sharded, layout
from pyro_vae.common.spread import sharing
from pyro_vae.errors import PyroVAEError, UsageError

SHARED = "of a folder that all processes see"
SINGLE = "of networks that are sharded over the processes"


def engine_of_sharded(modules: Sequence[torch.nn.Module], engine: str, **refused: Any) -> str:
    """Return the engine that networks sharded over processes (``fully_shard``) run in: the programs themselves, or as asked.

    Raises:
        UsageError: an engine that traces, or another way to share the work or to train a part of it.
    """
    if not any_sharded(modules):
        return engine
    if engine not in ("auto", "eager"):
        raise UsageError(
            f"engine={engine!r} with parameters that are sharded over processes: torch gathers them by hooks, which no trace "
            "holds. Leave engine out (eager)."
        )
    if given := [name for name, value in refused.items() if value]:
        raise UsageError(
            f"{given[0]}= with parameters that are sharded over processes, which make whole steps together, of all parameters: "
            f"leave {given[0]}= out, or train whole networks."
        )
    return "eager"


@dataclass(eq=False)
class InStep:
    """What processes agree on between two steps that all of them make.

    Attributes:
        here: this process among them.
        heard: the largest signal that any of them has heard, 0 if none.
    """

    here: Processes
    heard: int = 0

    def due(self, callbacks: Sequence[Any], own: Sequence[Any]) -> list[Any]:
        """Return the callbacks whose time it is by rank 0's clock, or all of them where a process has heard a signal.

        Args:
            callbacks: all.
            own: those whose time it is by this process's clock.

        Raises:
            ProcessesError: another process did not come.
        """
        if self.here.world > 1:
            told = [heard_by(callbacks), *(any(c is mine for mine in own) for c in callbacks)]
            rows = gather(torch.tensor(told, dtype=torch.int64), "the end of a step")
            self.heard = int(rows[:, 0].max())
            own = [c for c, is_due in zip(callbacks, rows[0, 1:].tolist(), strict=True) if is_due]
        else:
            self.heard = heard_by(callbacks)
        return list(callbacks if self.heard else own)

    def by_rank_0(self, answer: bool) -> bool:
        """Return rank 0's answer on each process.

        Raises:
            ProcessesError: another process did not come.
        """
        if self.here.world == 1:  # also within by_itself(), where others have work of their own
            return answer
        return bool(gather(torch.tensor([answer]), "what rank 0 decides between two steps")[0])


def heard_by(callbacks: Sequence[Any]) -> int:
    """Return the largest signal that callbacks of this process have heard, 0 if none."""
    return max((getattr(callback, "signal", None) or 0 for callback in callbacks), default=0)


def in_step(modules: Sequence[torch.nn.Module], callbacks: Sequence[Any], resumes: bool) -> InStep | None:
    """Return what lets processes with sharded networks train in step; None where no network is sharded.

    Raises:
        UsageError: networks that are sharded over other processes than those that train; in another way, with other
            callbacks, or from a checkpoint on one process alone.
    """
    if not any_sharded(modules):
        return None
    found, here = layout(modules), sharing()
    for name, (mesh, *_) in found.items():
        if (count := math.prod(mesh)) != here.world:
            raise UsageError(
                f"parameter {name.partition('.')[2]!r} is sharded over {count} process{'es' * (count != 1)}, and "
                f"{here.world} train together: shard over all of them, fully_shard(network, "
                f"mesh=init_device_mesh(device, ({here.world},)))."
            )
    if here.world > 1:
        agree("how the networks are sharded", found)
        agree(f"callbacks= {SINGLE}, each of which takes part in a checkpoint,", [type(c).__name__ for c in callbacks])
        agree(f"whether the training {SINGLE} resumes from a checkpoint (resume=, {SHARED})", resumes)
    return InStep(here)


@contextmanager
def absence_named(here: Processes) -> Iterator[None]:
    """Say which process did not come, where torch's own exchange of parameters fails inside.

    Raises:
        ProcessesError: names the rank.
    """
    try:
        yield
    except RuntimeError as error:
        if here.world == 1 or not of_a_connection(error):
            raise
        try:
            explain("a step", error)
        except PyroVAEError as named:
            for note in getattr(error, "__notes__", ()):  # where it stopped, and how to go on
                named.add_note(note)
            raise


def of_a_connection(error: RuntimeError) -> bool:
    """Return whether an error is of an exchange between processes; gloo's have no class of their own."""
    kind = getattr(torch.distributed, "DistError", ())
    return isinstance(error, kind) or "gloo" in str(error)
