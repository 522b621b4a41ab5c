"""The whole state of a training between two steps: captured, and put back to the bit.

Weights and buffers, the best weights, the optimizer, every generator (noise, order, binarization), the place in the epoch, the
history, early stopping and the aggressive encoder. Not in it: what a callable of the user's remembers of its own accord.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.random import seeded
from pyro_vae.common.torch_private import version
from pyro_vae.errors import CheckpointError, DivergedError

from .serialize import pack, unpack
from .shuffle import FIXED, Order

Loop = Any  # a loop.Loop, which imports this
Groups = dict[str, dict[str, Tensor]]
ORDERS = ("order", "further")
ELEMENTWISE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")


class Saved(Protocol):
    """What was captured, as it was stored: a :class:`~pyro_vae.runs.checkpoint.Generation`, say."""

    @property
    def head(self) -> Mapping[str, Any]: ...

    @property
    def groups(self) -> Mapping[str, Mapping[str, Tensor]]: ...


@dataclass
class Place:
    """Where training is in an epoch.

    Attributes:
        epoch: counted from 1.
        total: the loss of the epoch's steps so far.
        seconds: that they took.
        skipped: rows of steps that were skipped, their loss or a gradient not being finite.
        order: of the epoch's batches; None between epochs.
        further: of the aggressive encoder's.
        states: of the generators after the last step, with the places in both orders; empty before the epoch's first.
        moves: updates of the weights so far, and versions of the buffers, when `states` was noted.
    """

    epoch: int = 1
    total: Tensor | float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    order: Order | None = None
    further: Order | None = None
    states: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    moves: int = 0
    versions: tuple[int, ...] = ()

    def open(self, loop: Loop, seeds: Mapping[str, int]) -> None:
        """Starts the epoch's orders, or finds the place in them that was noted. For inside the noise's own stream."""
        for name, seed in seeds.items():
            order = loop.order(seed)
            if name in self.places:
                order.find(self.places[name], {k: self.states[f"{name}.{k}"] for k in ("before", "now")})
            setattr(self, name, order)
        self.moves, self.versions = loop.moves, versions(loop)
        set_noise({k: v for k, v in self.states.items() if k.startswith("noise")}, loop.device)

    def note(self, loop: Loop) -> None:
        """Notes the generators' states, between two steps."""
        orders = {name: getattr(self, name) for name in ORDERS[: 1 if loop.lagging is None else 2]}
        self.states = noise(loop.device)
        self.states |= {f"{name}.{k}": v for name, order in orders.items() for k, v in order.states().items()}
        self.places = {name: order.place for name, order in orders.items()}
        self.moves, self.versions = loop.moves, versions(loop)

    def is_whole(self, loop: Loop) -> bool:
        """Whether weights and buffers are still those of the last step."""
        return self.order is None or (self.moves, self.versions) == (loop.moves, versions(loop))


def versions(loop: Loop) -> tuple[int, ...]:
    """Of the buffers: a forward pass in training mode counts them up where it changes them."""
    return tuple(version(buffer) for module in loop.modules for buffer in module.buffers())


def noise(device: torch.device) -> dict[str, Tensor]:
    """The global generators' states: of the CPU, and of a CUDA device."""
    states = {"noise": torch.default_generator.get_state()}
    return states | {"noise.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_noise(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts them back, as far as they are there. For inside `seeded`."""
    if "noise" in states:
        torch.set_rng_state(states["noise"])
    if "noise.cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["noise.cuda"], device)


def named(loop: Loop) -> dict[str, Tensor]:
    """Every tensor that is trained or kept with the modules, by name."""
    found: dict[str, Tensor] = {}
    for i, module in enumerate(loop.modules):
        prefix = f"{i}." if len(loop.modules) > 1 else ""
        for name, tensor in (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ):
            found[prefix + name] = tensor
    known = {id(tensor) for tensor in found.values()}
    names = {id(tensor): name for name, tensor in pyro.get_param_store().named_parameters()}
    loose = [p for p in loop.step.parameters if id(p) not in known]
    return found | {f"param/{names.get(id(p), i)}": p for i, p in enumerate(loose)}


def about(loop: Loop) -> dict[str, Any]:
    """What a state goes with: another run's cannot be gone on from."""
    data = {f"{i}": array for i, array in enumerate((*loop.train, *(loop.valid or ())))}
    return {
        "rows": len(loop.train[0]),
        "batch size": loop.size,
        "epochs": loop.epochs,
        "patience": loop.patience,
        "seed": loop.seed,
        "data (SHA-256)": tensor_digest(data),
        "device": loop.device.type,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "engine": loop.step.engine.name,
    }


ELSEWHERE = {"rows", "batch size", "data (SHA-256)", "device"}  # with these others, the place in an epoch says nothing
FREE = ("device", "torch", "threads", "engine")  # may change, but then the bits do, too


def capture(loop: Loop) -> tuple[dict[str, Any], Groups]:
    """The state after the last step: plain values, and tensors by group (model, best, optimizer, rng)."""
    place, tensors = loop.place, named(loop)
    kept = {id(tensor): value for tensor, value in zip(loop.tensors, loop.kept, strict=False)}
    moments: dict[str, Tensor] = {}
    optimizer = None if loop.step.optimizer is None else pack(loop.step.optimizer.state_dict(), "adam", moments)
    lagging = loop.lagging and {name: getattr(loop.lagging, name) for name in ("on", "best", "stale", "inner")}
    run = dataclasses.asdict(loop.fit)
    run["history"] = [record for record in run["history"] if record["epoch"] < place.epoch]
    plain = {
        "done": loop.done,
        "bad": loop.bad,
        "best_elbo": loop.best_elbo,
        "lagging": lagging,
        "fit": run,
        "place": {name: getattr(place, name) for name in ("epoch", "seconds", "skipped", "places")}
        | {"total": float(place.total)},
        "engine": loop.step.engine.state(),
    }
    head = {"about": loop.about, "plain": pack(plain, "state", moments), "optimizer": optimizer}
    best = {name: kept.get(id(tensor), tensor) for name, tensor in tensors.items()}
    return head, {"model": tensors, "best": best, "optimizer": moments, "rng": place.states}


def restore(loop: Loop, saved: Saved, fork: bool = False) -> None:
    """Puts a captured state into a loop that has not begun.

    Args:
        loop: with the model as it was built, or any other of the same tensors.
        saved: head and groups, as of :func:`capture`.
        fork: lets the data and the settings be others. With other data or batches, or on another device, the epoch starts
            anew.

    What the bits depend on beside these (:data:`FREE`) may have changed: that is said, and ``loop.fit.exact`` is False.

    Raises:
        CheckpointError: other settings or data, another model, or a state that was not captured here.
    """
    changed = differences(loop, saved)
    if bound := {name: pair for name, pair in changed.items() if name not in FREE and not fork}:
        raise CheckpointError(
            f"this is another run than the checkpoint is of:\n{table(bound)}\nFork it, or change them back."
        )
    try:
        state = unpack(saved.head["plain"], saved.groups["optimizer"])
        put(loop, state, saved)
        if not changed.keys() & {"engine", *ELSEWHERE}:
            loop.step.engine.go_on(state["engine"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the checkpoint's state cannot be used: {error!r}") from error
    if changed.keys() & ELSEWHERE:
        loop.place = Place(loop.place.epoch)
        loop.done = (loop.place.epoch - 1) * -(-len(loop.train[0]) // loop.size)
    if changed.keys() & {"data (SHA-256)", "patience", "epochs"}:
        loop.fit.stopped = ""
    if other := {name: pair for name, pair in changed.items() if name in FREE}:
        loop.fit.exact = False
        print(f"note: training goes on, but not bit-exact:\n{table(other)}", file=sys.stderr)


def put(loop: Loop, state: dict[str, Any], saved: Saved) -> None:
    loop.done, loop.bad, loop.best_elbo = int(state["done"]), int(state["bad"]), float(state["best_elbo"])
    if saved.head["optimizer"] is not None:
        loop.move_schedules(max(0, loop.done - 1) / loop.planned)
        prime(loop)
    fill(named(loop), saved.groups["model"])
    if loop.step.optimizer is not None:
        moments = unpack(saved.head["optimizer"], saved.groups["optimizer"])
        check_moments(loop, moments)
        loop.step.optimizer.load_state_dict(moments)
    names = {id(tensor): name for name, tensor in named(loop).items()}
    best = saved.groups["best"]
    loop.kept = [best[names[id(t)]].to(t.device, t.dtype, copy=True) for t in loop.tensors]
    for name, value in (state["lagging"] or {}).items() if loop.lagging else ():
        setattr(loop.lagging, name, value)
    loop.fit.__dict__.update({field.name: state["fit"][field.name] for field in dataclasses.fields(loop.fit)})
    loop.place = Place(**state["place"], states=dict(saved.groups["rng"]))


def prime(loop: Loop) -> None:
    """Has the step find its parameters and make its optimizer, and forgets what else the call did."""
    batch = loop.fixed_draw(tuple(a[: loop.size] for a in loop.train))
    with seeded(loop.seed, FIXED, device=loop.device):
        try:
            loop.step.loss_and_grads(*batch)
        except DivergedError:
            if loop.step.optimizer is None:
                raise
    assert loop.step.optimizer is not None
    loop.step.optimizer.zero_grad(set_to_none=True)


def fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values in, if they are of the same names, shapes and dtypes."""
    wanted, found = ({n: (tuple(t.shape), t.dtype) for n, t in d.items()} for d in (tensors, values))
    if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise CheckpointError(
            f"the checkpoint is of another model: {odd[0]!r} is {found.get(odd[0], 'missing')} there and "
            f"{wanted.get(odd[0], 'absent')} in the model ({len(odd)} tensors differ)"
        )
    if bad := [name for name, value in values.items() if not value.isfinite().all()]:
        raise CheckpointError(f"the checkpoint holds non-finite values in {bad[0]!r}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def check_moments(loop: Loop, moments: dict[str, Any]) -> None:
    """Refuses an optimizer's state of other parameters."""
    for index, state in moments["state"].items():
        for name in ELEMENTWISE:
            if name in state and state[name] is not None and state[name].shape != loop.step.parameters[index].shape:
                raise CheckpointError(
                    f"the checkpoint's optimizer holds {name!r} of another shape for parameter {index}"
                )


def differences(loop: Loop, saved: Saved) -> dict[str, tuple[Any, Any]]:
    """What a state says of its run that is otherwise here: name to (then, now)."""
    then, now = saved.head.get("about") or {}, loop.about
    return {name: (then.get(name), value) for name, value in now.items() if then.get(name) != value}


def table(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in lines: name, then, now."""
    lines = [("", "checkpoint", "now"), *((name, str(then), str(now)) for name, (then, now) in changed.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)
