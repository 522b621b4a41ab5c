"""What training in shards, and by several processes, takes: said before the first step, and looked at after each epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor, enable_grad

from pyro_vae.common.digests import digest_of, tensor_digest
from pyro_vae.common.exchange import agree, gather_text
from pyro_vae.common.given import whole
from pyro_vae.common.identical import identical
from pyro_vae.common.processes import Processes
from pyro_vae.common.sharded import is_sharded
from pyro_vae.common.spread import sharing
from pyro_vae.errors import ProcessesError, ProgramError, UsageError
from pyro_vae.objectives.pyro_elbos import tensor_loss
from pyro_vae.objectives.scheduled import scheduled_numbers
from pyro_vae.programs.pair import owners, without_validation
from pyro_vae.programs.parameters import ParametersRegistered, store_restored
from pyro_vae.programs.proposal_guide import set_up_undone

from .batch_source import Batch
from .constant_noise import constant_noise
from .last_batch import training_mode
from .micro_batches import ROWS, coupled
from .sharded_networks import SHARED
from .shards import Shards
from .step import Step
from .training_state import PreStepSnapshot, TrainingOptions, buffers_of

Record = dict[str, Any]


def resolve_shards(shards: int, batch_size: int, seed: int, aggressive: Any = None) -> Shards | None:
    """Return how batches are cut into `shards`; None for one, by one process, which is no shard.

    Raises:
        UsageError: no power of two, more than rows of a batch, or not a multiple of the number of processes; an aggressive
            encoder.
    """
    count, here = whole("shards", shards, 1), sharing()
    if count & (count - 1):
        below = 1 << (count.bit_length() - 1)
        raise UsageError(
            f"shards={count}: sums over shards are a binary tree, so take a power of two: {below}, {2 * below}"
        )
    if count > batch_size:
        fix = f"take shards={1 << (batch_size.bit_length() - 1)} at most, or a larger batch_size"
        raise UsageError(f"shards={count} with batches of {batch_size} rows leaves shards without rows: {fix}")
    if count % here.world:
        least = 1 << (here.world - 1).bit_length()
        fix = f"take shards={least}, or more" if least == here.world else f"start {least // 2} or {least} processes"
        raise UsageError(
            f"shards={count} cannot be shared by {here.world} processes, which all compute as many: {fix}. A run has the bits "
            "of its number of shards, whatever the processes: shards=8 runs on 1, 2, 4 or 8. What each process "
            "trains for itself goes within pyro_vae.common.spread.by_itself()."
        )
    if count > 1 and aggressive is not None:
        raise UsageError(
            f"shards={count} with aggressive=...: its further updates of the guide are not shared by shards. Take shards=1, or "
            "no aggressive encoder."
        )
    return None if count == 1 else Shards(count, seed, here)


def check_shards(step: Step, batch: Batch, options: TrainingOptions) -> None:
    """Refuse programs and objectives whose loss of a batch is not the sum of its shards' losses.

    As training begins, and with the numbers that `scheduled` ends with: a weight of zero hides what it weighs. In training
    mode, whatever mode the modules were left in: batch statistics are of the batch in that mode alone.

    Raises:
        ProgramError: names the term, the layer or the site.
    """
    if step.shards is None:
        return
    numbers = scheduled_numbers(options.scheduled)
    before = [getattr(owner, name) for owner, name in numbers]
    try:
        for done in (0.0, 1.0) if numbers else (0.0,):
            for moved in options.scheduled:
                moved.at(done)
            with training_mode(owners(step.model, step.guide)):
                why = coupled(step, batch) or moved_buffer(step, batch)
            if why:
                what = f"shards={step.shards.count} add up the losses of parts of a batch"
                raise ProgramError(f"{what}, which are not the batch's: {why}. Train with shards=1, in one process.")
    finally:
        for (owner, name), value in zip(numbers, before, strict=True):
            setattr(owner, name, value)


def moved_buffer(step: Step, batch: Batch) -> str | None:
    """Say that a step changes a buffer, of which each process would have its own; None where it changes none."""
    modules, loss = owners(step.model, step.guide), tensor_loss(copy(step.objective))
    rows, before = tuple(a[:ROWS] for a in batch), PreStepSnapshot(buffers_of(modules), batch[0].device)
    assert loss is not None
    try:
        with (
            without_validation(),
            ParametersRegistered(),
            store_restored(),
            set_up_undone(step.guide),
            constant_noise(),
            enable_grad(),
            step.precision(),
        ):
            loss(step.model, step.guide, *rows)
        moved = any(not identical(value, buffer) for buffer, value in before.buffers)
    finally:
        before.restore()
    return "the programs change a buffer as they run" if moved else None


def check_alike(step: Step, about: Callable[[], dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    """Refuse processes that train other models, on other data, or in another way.

    Raises:
        UsageError: names the ranks, and what differs.
    """
    if step.here.world > 1:
        agree("the training", about())
        agree("the weights to begin with (seed them: pyro.set_rng_seed)", tensor_digest(tensors))


def check_resumed(here: Processes, saved: Any) -> None:
    """Refuse processes that resume from other states."""
    if here.world > 1:
        head = None if saved is None else digest_of(json.loads(json.dumps(saved.head, default=str)))
        tensors = (
            {} if saved is None else {f"{g}/{n}": t for g, named in saved.groups.items() for n, t in named.items()}
        )
        agree(f"the state to resume from ({SHARED})", [head, tensor_digest(tensors)])


def share_epoch(here: Processes, record: Record, stopped: str, tensors: dict[str, Tensor]) -> tuple[Record, str]:
    """Return rank 0's record of an epoch, and why any of the processes stops, "" where none does.

    Raises:
        ProcessesError: their weights are not the same to the bit.
    """
    if here.world == 1:
        return record, stopped
    held = {name: tensor for name, tensor in tensors.items() if not is_sharded(tensor)}  # of others, each has its part
    try:
        text = json.dumps({"record": record, "stopped": stopped, "weights": tensor_digest(held)})
    except TypeError as error:
        raise UsageError(f"on_epoch returned what processes cannot share as JSON: {error}") from error
    everyone = [json.loads(one) for one in gather_text(text, f"the end of epoch {record['epoch']}")]
    if odd := [rank for rank, one in enumerate(everyone) if one["weights"] != everyone[0]["weights"]]:
        raise ProcessesError(
            f"after epoch {record['epoch']} rank {odd[0]} has other weights than rank 0: something beside the training moves "
            "them (on_step, on_epoch, a callback), or the processes run on other machines. Give them the same."
        )
    return (record if here.leads else everyone[0]["record"]), next((o["stopped"] for o in everyone if o["stopped"]), "")
