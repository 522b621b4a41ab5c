"""Every private name of torch that the package uses, each with the public way out where a torch has it no more, or another.

Nothing is looked up on import. What a call has to be tried for is tried once, on numbers of its own; if torch's function is
replaced, once more.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

MODE = "torch.utils._python_dispatch.TorchDispatchMode"
INDUCTOR = (
    "torch._inductor.config",
    "torch._inductor.compile_fx.compile_fx",
    "torch._inductor.decomposition.select_decomp_table",
)
SHARED = ("torch._subclasses.FakeTensorMode", "torch._guards.TracingContext", "torch._guards.tracing")
MAKE_FX = "torch.fx.experimental.proxy_tensor.make_fx"  # no underscore, but as free to go


def find(path: str) -> Any:
    """What torch has under a dotted name, imported if need be; None if it has no such thing, or importing it fails.

    Example:
        >>> find("torch.utils._python_dispatch.TorchDispatchMode").__name__, find("torch._inductor.no_such_thing")
        ('TorchDispatchMode', None)
    """
    parent, _, name = path.rpartition(".")
    for module, attributes in ((parent, (name,)), (path, ())):
        try:
            thing: Any = import_module(module)
            for attribute in attributes:
                thing = getattr(thing, attribute)
            return thing
        except Exception:  # a broken installation raises what it likes
            continue
    return None


def lacks(*paths: str) -> str | None:
    """What torch has not, of these; None if it has all of them."""
    absent = [path for path in paths if find(path) is None]
    return f"torch has no {absent[0]}" if absent else None


# Adam's fused kernel


def fused_adam(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    group: Mapping[str, Any],
    rate: float | Tensor,
    skip: Tensor | None,
) -> None:
    """One step of Adam by its kernel alone, where :func:`kernel_works`; none where `skip` is 1."""
    steps = [state["step"] for state in states]
    with torch.no_grad():
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            list(parameters),
            [p.grad for p in parameters if p.grad is not None],  # all of them
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=rate,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        if skip is not None:
            torch._foreach_sub_(steps, [skip] * len(steps))


def public_adam(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    group: Mapping[str, Any],
    rate: float | Tensor,
    skip: Tensor | None,
) -> None:
    """The same by torch's documented function."""
    beta1, beta2 = group["betas"]
    own = {"weight_decay": group["weight_decay"], "eps": group["eps"], "amsgrad": False, "maximize": False}
    tensors = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq"))
    gradients, steps = [p.grad for p in parameters], [s["step"] for s in states]
    step: Any = find("torch.optim.adam.adam")
    with torch.no_grad():
        step(
            parameters,
            gradients,
            *tensors,
            [],
            steps,
            fused=True,
            found_inf=skip,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            **own,
        )


def kernels() -> tuple[Any, ...]:
    """What a fused step calls; each None where torch has it not."""
    return (
        getattr(torch, "_foreach_add_", None),
        getattr(torch, "_fused_adam_", None),
        getattr(torch, "_foreach_sub_", None),
    )


def kernel_works() -> bool:
    """Whether :func:`fused_adam` does here what torch's own fused Adam does, to the bit; tried once, on one number."""
    return agree(*kernels())


def fused_works() -> bool:
    """Whether torch's own Adam can be fused here."""
    return tried(public_adam, *kernels()) is not None


@cache
def agree(*of: Any) -> bool:
    ours, theirs = tried(fused_adam, *of), tried(public_adam, *of)
    return ours is not None and ours == theirs


@cache
def tried(step: Callable[..., None], *of: Any) -> tuple[float, ...] | None:
    """What steps of one number come to; None where they fail. Remembered of these kernels alone."""
    if None in of:
        return None
    made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    number, *state = (torch.full((1,), 0.5, **made) for _ in range(3))
    number.grad = torch.full((1,), 0.3, **made)
    states = [dict(zip(("exp_avg", "exp_avg_sq"), state, strict=True), step=torch.full((), 1.0, **made))]
    group = {"betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-3}
    try:
        for rate in (0.1, torch.full((), 0.1, **made)):
            for skip in (None, torch.zeros((), **made), torch.ones((), **made)):
                step([number], states, group, rate, skip)
    except Exception:  # another signature, or none at all
        return None
    return (number.item(), *(tensor.item() for tensor in states[0].values()))


def heard(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks wait for the optimizer's steps; True where torch does not tell, so that ``step()`` is called."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return any(getattr(optimizer, name, True) for name in names)


def takes_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer skips a step on the device where its ``found_inf`` is 1."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def reset() -> None:
    """Forgets what was tried."""
    agree.cache_clear()
    tried.cache_clear()


# Tensors and distributions


def version(tensor: Tensor) -> int:
    """A number that is another once a tensor was changed in place: torch's count, or a checksum of what it holds."""
    count: int | None = getattr(tensor, "_version", None)
    if count is not None:
        return count
    held = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return zlib.crc32(held.numpy().tobytes())


def has_hook(tensor: Tensor) -> bool:
    """Whether somebody waits for its gradient."""
    return bool(getattr(tensor, "_backward_hooks", None))


def validate_sample(distribution: Any, value: Tensor) -> None:
    """Raises ValueError for a value outside a distribution's support."""
    validate = getattr(distribution, "_validate_sample", None)
    if validate is not None:
        validate(value)
    elif not distribution.support.check(value).all():
        raise ValueError(f"value outside the support ({distribution.support}) of {distribution}")


# Tracing and compiling


def no_trace() -> str | None:
    """Why steps cannot be traced safely by this torch; None if they can. Imports torch's compiler, a second or two."""
    if getattr(torch.ops.aten.add_.Tensor, "_schema", None) is None:
        return "torch has no OpOverload._schema"
    if getattr(Tensor, "_backward_hooks", None) is None:
        return "torch has no Tensor._backward_hooks"
    return lacks(MODE, MAKE_FX)


def schema(operation: Any) -> Any:
    """What an operation takes and changes; None for a plain function."""
    return getattr(operation, "_schema", None)


def shared_fakes() -> AbstractContextManager[Any]:
    """Inside, a trace has one mode for its tensors' stand-ins; else each node makes its own, which takes twice as long."""
    mode, context, tracing = map(find, SHARED)
    try:
        shared: AbstractContextManager[Any] = tracing(context(mode(allow_fallback_kernels=True)))
    except Exception:  # one of them missing, or called otherwise
        return nullcontext()
    return shared


def dispatching(handle: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> AbstractContextManager[Any] | None:
    """A context in which ``handle(operation, args, kwargs)`` stands in for each tensor operation; None where torch has none."""
    mode = find(MODE)
    return None if mode is None else dispatcher(mode)(handle)


@cache
def dispatcher(mode: Any) -> Any:
    """A subclass of torch's mode that hands on."""

    def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, kwargs or {})

    def init(self: Any, handle: Any) -> None:
        mode.__init__(self)
        self.handle = handle

    return type("Dispatcher", (mode,), {"__init__": init, "__torch_dispatch__": dispatch})
