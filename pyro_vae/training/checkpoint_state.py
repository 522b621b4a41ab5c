"""The whole state of a training between two steps, as a checkpoint holds it: captured, and restored to the bit.

Weights and buffers, the best weights, the optimizer, every generator (noise, order, binarization), the position in the epoch,
the history, early stopping and the aggressive encoder. Not in it: what a callable of the user's remembers of its own accord.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.common.identical import spoiled
from pyro_vae.common.processes import collective
from pyro_vae.common.random import seeded
from pyro_vae.common.sharded import gathered, is_sharded, part_of, whole
from pyro_vae.errors import CheckpointError, DivergedError

from .block_shuffle import ShuffledBlocks
from .precision import name_of
from .serialize import pack, unpack
from .shuffle import FIXED
from .trainer import Trainer
from .training_state import EpochPosition, FitResult, TrainingState, named_tensors

Groups = Mapping[str, Mapping[str, Tensor]]
Differences = Mapping[str, tuple[Any, Any]]  # name to (then, now)

ELEMENTWISE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")
ELSEWHERE = {
    "rows",
    "batch size",
    "drop last",
    "shuffled in",
    "data (SHA-256)",
    "device",
}  # where these changed, a position in an epoch is void
# by disk names
POSITION = {"epoch": "epoch", "seconds": "seconds", "skipped": "skipped_rows", "places": "batches_taken"}
EARLIER = {
    "drop last": False,
    "shards": 1,
    "precision": "float32",
    "autotune": False,
    "averaged over": 1,
}  # what states that do not say so were captured with
LONG = 80  # signs of a value, in a table of differences
FREE = (
    "device",
    "torch",
    "threads",
    "engine",
    "precision",
    "autotune",
    "kernels",
    "averaged over",
    "update",
)  # if these change, so may the bits
KERNELS = ("fused", "foreach")  # options of torch's optimizers that decide how a step is computed, and not what it is


class SavedState(Protocol):
    """A captured state as it was stored, such as a :class:`~pyro_vae.runs.checkpoint.Generation`."""

    @property
    def head(self) -> Mapping[str, Any]: ...

    @property
    def groups(self) -> Groups: ...


def identity(trainer: Trainer) -> dict[str, Any]:
    """Describe the run that a state goes with: another one cannot go on from it."""
    return windows_of(trainer) | {
        "rows": len(trainer.data.train[0]),
        "batch size": trainer.data.batch_size,
        "drop last": trainer.data.drop_last,
        "shards": 1 if trainer.step.shards is None else trainer.step.shards.count,
        "epochs": trainer.options.epochs,
        "patience": trainer.options.patience,
        "seed": trainer.options.seed,
        "data (SHA-256)": trainer.data.digest,
        "device": trainer.device.type,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "engine": trainer.step.engine.name,
        "precision": name_of(trainer.step.precision),
        "autotune": trainer.options.autotune,
        "averaged over": rounding_average(trainer),
    }


def rounding_average(trainer: Trainer) -> int:
    """Count the processes over which the gradients of sharded networks are averaged; 1 where that rounds nothing.

    All have the same gradient g, and W g / W is g where W is a power of two.
    """
    world = 1 if trainer.step.in_step is None else trainer.step.in_step.here.world
    return world if world & (world - 1) else 1


def windows_of(trainer: Trainer) -> dict[str, Any]:
    """Describe how rows on disk are shuffled, which their memory decides; nothing of rows in memory."""
    order = trainer.data.shuffle(0)
    if not isinstance(order, ShuffledBlocks):
        return {}
    return {"shuffled in": f"{len(order.bounds) - 1} blocks, windows of {order.window} rows"}


def capture(trainer: Trainer) -> tuple[dict[str, Any], Groups]:
    """Capture the state after the last step: plain values, and tensors by group (model, best, optimizer, rng).

    Of networks that are sharded over processes each calls this, and rank 0 gets the tensors, whole.

    Raises:
        ProcessesError: another process did not come.
    """
    state, optimizer = trainer.state, trainer.step.optimizer
    tensors = named_tensors(trainer.modules, trainer.step.parameters)
    best = {id(tensor): value for tensor, value in zip(trainer.tensors, state.best_tensors, strict=False)}
    moments: dict[str, Tensor] = {}
    packed = None if optimizer is None else pack(optimizer.state_dict(), "adam", moments)
    head = {"about": identity(trainer), "plain": pack(plain_state(trainer), "state", moments), "optimizer": packed}
    best_by_name = {name: best.get(id(tensor), tensor) for name, tensor in tensors.items()}
    groups = {"model": tensors, "best": best_by_name, "optimizer": moments, "rng": state.position.generator_states}
    return head, groups if trainer.step.in_step is None else in_whole(groups, trainer)


def in_whole(groups: Groups, trainer: Trainer) -> Groups:
    """Gather what is sharded of a state on rank 0, a tensor at a time; the others take part, and get nothing."""
    kept: dict[str, dict[str, Tensor]] = {}

    def gather() -> None:
        kept.update({group: gathered(tensors, trainer.step.here.leads) for group, tensors in groups.items()})

    collective(gather, f"the checkpoint of step {trainer.state.step}")
    return kept


def plain_state(trainer: Trainer) -> dict[str, Any]:
    """Collect the state but for its tensors, under the names that it has on disk."""
    state, position = trainer.state, trainer.state.position
    result = dataclasses.asdict(state.result)
    result["history"] = [record for record in result["history"] if record["epoch"] < position.epoch]
    return {
        "done": state.step,
        "bad": state.bad_steps,
        "best_elbo": state.best_elbo,
        "lagging": trainer.aggressive and trainer.aggressive.state(),
        "fit": result,
        "place": {key: getattr(position, name) for key, name in POSITION.items()} | {"total": float(position.loss_sum)},
        "engine": trainer.step.engine.state(),
    }


NO_GRAPHS: dict[str, Any] = {"graphs": [], "whole graphs": []}  # counted: another run makes graphs of its own


def restore(trainer: Trainer, saved: SavedState, fork: bool = False) -> None:
    """Load a captured state into a trainer that has not begun.

    Where the device, the version of torch, the threads, the engine or the precision changed, so may the bits, and where kernels
    are chosen by timing: a note says so, and ``trainer.result.exact`` is False.

    Args:
        trainer: of a model with the same tensors.
        saved: head and groups, as of :func:`capture`.
        fork: accept other data and settings. With other data or batches, or on another device, the epoch starts anew.

    Raises:
        CheckpointError: other settings or data, another model, or a state that was not captured here.
    """
    about = saved.head.get("about") or {}
    if not isinstance(about, dict):
        raise CheckpointError("the checkpoint's state cannot be used: its 'about' does not say what it is of")
    then, now = EARLIER | about, identity(trainer)
    changed = {name: (then.get(name), value) for name, value in now.items() if then.get(name) != value}
    if bound := {name: pair for name, pair in changed.items() if name not in FREE and not fork}:
        raise CheckpointError(
            f"this is another run than the checkpoint is of:\n{format_differences(bound)}\nFork it, or change them back."
        )
    try:
        plain = unpack(saved.head["plain"], saved.groups["optimizer"])
        load_state(trainer, plain, saved)
        if not changed.keys() & {"engine", *ELSEWHERE}:
            trainer.step.engine.load_state(plain["engine"] | (NO_GRAPHS if changed else {}))
        changed |= {**other_kernels(trainer, saved), **kernels_by_timing(then, now)}
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"the checkpoint's state cannot be used: {error!r}") from error
    adapt(trainer, changed)
    if fork:
        rescore_best(trainer)


def rescore_best(trainer: Trainer) -> None:
    """Measure the ELBO of the best weights so far anew: of a fork's rows and programs it is another number.

    Else a fork whose ELBO lies lower throughout, on other rows or under another likelihood, would end with the weights that it
    began from. Where neither changed it is the same number, as validation rows have the same noise each time.
    """
    state = trainer.state
    if trainer.data.validation is None or not state.result.best_epoch:
        return
    newest = TrainingState()
    newest.copy_best(trainer.tensors)
    try:
        state.load_best(trainer.tensors)
        elbo = trainer.metrics.elbo(f"step {state.step + 1}")["elbo"]
    finally:
        newest.load_best(trainer.tensors)
    state.best_elbo = elbo if elbo is not None and math.isfinite(elbo) else -math.inf


def adapt(trainer: Trainer, changed: Differences) -> None:
    """Give up of a loaded state what does not hold under other data, settings or machines."""
    state = trainer.state
    if changed.keys() & ELSEWHERE:
        state.position = EpochPosition(state.position.epoch)
        state.step = (state.position.epoch - 1) * trainer.data.steps_per_epoch
    if changed.keys() & {"data (SHA-256)", "patience", "epochs"}:
        state.result.stopped = ""
    if other := {name: pair for name, pair in changed.items() if name in FREE}:
        state.result.exact = False
        if trainer.step.here.leads:
            print(f"note: training goes on, but not bit-exact:\n{format_differences(other)}", file=sys.stderr)


def load_state(trainer: Trainer, plain: dict[str, Any], saved: SavedState) -> None:
    """Load plain values and tensors; the optimizer is made first, if it was there."""
    state, step = trainer.state, trainer.step
    state.step, state.bad_steps, state.best_elbo = int(plain["done"]), int(plain["bad"]), float(plain["best_elbo"])
    if saved.head["optimizer"] is not None:
        trainer.options.tell_progress(max(0, state.step - 1) / trainer.planned_steps)
        make_optimizer(trainer)
    tensors = named_tensors(trainer.modules, step.parameters)
    copy_into(tensors, saved.groups["model"])
    if step.optimizer is not None:
        moments = unpack(saved.head["optimizer"], saved.groups["optimizer"])
        parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
        check_moments(parameters, moments)
        step.optimizer.load_state_dict(as_held(moments, step.optimizer, parameters))
    names, best = {id(tensor): name for name, tensor in tensors.items()}, saved.groups["best"]
    state.best_tensors = [part_of(best[names[id(t)]], t).to(t.dtype, copy=True) for t in trainer.tensors]
    if trainer.aggressive and plain["lagging"]:
        trainer.aggressive.load_state(plain["lagging"])
    state.result = FitResult(**{field.name: plain["fit"][field.name] for field in dataclasses.fields(FitResult)})
    position = {name: plain["place"][key] for key, name in POSITION.items()}
    rng = dict(saved.groups["rng"])
    state.position = EpochPosition(loss_sum=plain["place"]["total"], generator_states=rng, **position)


def make_optimizer(trainer: Trainer) -> None:
    """Have the step find its parameters and make its optimizer, and drop the gradients of that call."""
    batch = trainer.metrics.fixed_batch(tuple(a[: trainer.data.batch_size] for a in trainer.data.train))
    with seeded(trainer.options.seed, FIXED, device=trainer.device):
        try:
            trainer.step.loss_and_grads(*batch)
        except DivergedError:
            if trainer.step.optimizer is None:
                raise
    assert trainer.step.optimizer is not None
    trainer.step.optimizer.zero_grad(set_to_none=True)


def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values in, if they are of the same names, shapes and dtypes."""
    ours, saved = ({n: (tuple(t.shape), t.dtype) for n, t in d.items()} for d in (tensors, values))
    if odd := sorted(name for name in ours.keys() | saved.keys() if ours.get(name) != saved.get(name)):
        raise CheckpointError(
            f"the checkpoint is of another model: {odd[0]!r} is {saved.get(odd[0], 'missing')} there and "
            f"{ours.get(odd[0], 'absent')} in the model ({len(odd)} tensors differ)"
        )
    if bad := [
        name for name, v in values.items() if not v.isfinite().all() and spoiled(v, whole(tensors[name].detach()))
    ]:
        raise CheckpointError(f"the checkpoint holds non-finite values in {bad[0]!r}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(part_of(values[name], tensor))


def check_moments(parameters: list[Tensor], moments: dict[str, Any]) -> None:
    """Refuse an optimizer's state of other parameters."""
    for index, state in moments["state"].items():
        for name in ELEMENTWISE:
            if name in state and state[name] is not None and state[name].shape != parameters[index].shape:
                what = f"the checkpoint's optimizer holds {name!r} of another shape for parameter {index}"
                raise CheckpointError(what)


def as_held(moments: dict[str, Any], optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> dict[str, Any]:
    """Return an optimizer's saved state as this process holds it: its part of sharded tensors, and its own kernels."""
    state = {
        index: {
            name: part_of(value, parameters[index])
            if isinstance(value, Tensor) and is_sharded(parameters[index]) and value.shape == parameters[index].shape
            else value
            for name, value in of_one.items()
        }
        for index, of_one in moments["state"].items()
    }
    ours = [{name: group[name] for name in KERNELS if name in group} for group in optimizer.param_groups]
    groups = [saved | own for saved, own in zip(moments["param_groups"], ours, strict=True)]
    return {**moments, "state": state, "param_groups": groups}


def other_kernels(trainer: Trainer, saved: SavedState) -> Differences:
    """Return by what kernels the optimizer's steps were computed, and are now, where these differ."""
    if saved.head["optimizer"] is None or trainer.step.optimizer is None:
        return {}
    then = kernels(unpack(saved.head["optimizer"], saved.groups["optimizer"])["param_groups"], trainer.device)
    now = kernels(trainer.step.optimizer.param_groups, trainer.device)
    return {} if then == now else {"update": (then, now)}


def kernels_by_timing(then: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """Return that kernels were chosen by timing and are again, which only torch's cache of the times makes the same choice."""
    chosen = then.get("autotune") is True and now["autotune"] is True
    return {"kernels": ("chosen by timing", "the same, if by the same cache")} if chosen else {}


def kernels(groups: Sequence[Mapping[str, Any]], device: torch.device) -> str:
    """Name the kernels of an optimizer's groups; torch's own choice, None, is a loop on the CPU, and foreach elsewhere."""
    names = []
    for group in groups:
        foreach = group.get("foreach")
        foreach = device.type != "cpu" if foreach is None else foreach
        names.append("fused" if group.get("fused") else "foreach" if foreach else "loop")
    return ", ".join(dict.fromkeys(names))


def format_differences(changed: Differences) -> str:
    """Write differences in lines: name, then, now."""
    lines = [
        ("", "checkpoint", "now"),
        *((name, str(then)[:LONG], str(now)[:LONG]) for name, (then, now) in changed.items()),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)
