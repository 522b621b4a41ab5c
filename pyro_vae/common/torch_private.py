"""Every private name of torch that the package uses, each with the public way out where a torch has it no more, or another.

Nothing is looked up on import. Adam's kernel is tried once, on numbers of its own; if torch's function is replaced, once more.
"""

from __future__ import annotations

import linecache
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
COUNTERS = "torch._dynamo.utils.counters"
SHARED = ("torch._subclasses.FakeTensorMode", "torch._guards.TracingContext", "torch._guards.tracing")
CACHING = (
    "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "torch._inductor.codegen.debug_utils.DebugPrinterManager",
)
WRITTEN = "torch._inductor.codecache.PyCodeCache"
CPP = "torch._inductor.codecache.CppCodeCache"
SOURCES = "torch.fx.graph_module._loader"
MAKE_FX = "torch.fx.experimental.proxy_tensor.make_fx"  # no underscore, but as free to go
STORE = "torch.distributed.distributed_c10d._get_default_store"
KERNELS = ("_foreach_add_", "_fused_adam_", "_foreach_sub_")  # what a fused step calls
LISTS = {
    "add": "_foreach_add",
    "sub": "_foreach_sub",
    "mul": "_foreach_mul",
    "div": "_foreach_div",
    "sqrt": "_foreach_sqrt",
}


def find(path: str) -> Any:
    """Import what torch has under a dotted name; None if it has no such thing, or importing it fails.

    Example:
        >>> find("torch.utils._python_dispatch.TorchDispatchMode").__name__, find("torch._inductor.no_such_thing")
        ('TorchDispatchMode', None)
    """
    parent, _, name = path.rpartition(".")
    for module, attribute in ((parent, name), (path, None)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where warnings are errors, one of torch's own is not a missing name
                value = import_module(module)
            return value if attribute is None else getattr(value, attribute)
        except Exception:  # a broken installation raises what it likes
            continue
    return None


def lacks(*paths: str) -> str | None:
    """Name the first of these that torch lacks; None if it has them all."""
    return next((f"torch has no {path}" for path in paths if find(path) is None), None)


# Adam's fused kernel


def fused_adam(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    group: Mapping[str, Any],
    rate: float | Tensor,
    skip: Tensor | None,
) -> None:
    """Take one step of Adam by its kernel alone, where :func:`kernel_works`; none where `skip` is 1."""
    means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    gradients = [p.grad for p in parameters if p.grad is not None]  # all of them
    with torch.no_grad():
        adam_kernel(parameters, gradients, (means, squares, steps), {**group, "lr": rate}, False, skip)


def adam_kernel(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: tuple[Sequence[Tensor], ...],
    options: Mapping[str, Any],
    decoupled: bool,
    skip: Tensor | None,
) -> None:
    """Update parameters and moments (means, squares, steps) in place; `decoupled` is AdamW's weight decay."""
    means, squares, steps = map(list, moments)
    beta1, beta2 = options["betas"]
    given = {name: options[name] for name in ("lr", "weight_decay", "eps")} | {"amsgrad": False, "maximize": False}
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    torch._foreach_add_(steps, 1)
    kernel(
        list(parameters), list(gradients), means, squares, [], steps,
        beta1=beta1, beta2=beta2, found_inf=skip, **given,
    )  # fmt: skip
    if skip is not None:
        torch._foreach_sub_(steps, [skip] * len(steps))


def on_lists(name: str) -> Callable[..., Sequence[Tensor]]:
    """Return the operation of that name on lists of tensors, element by element: torch's own, or a loop.

    Example:
        >>> list(on_lists("add")([torch.zeros(1), torch.ones(2)], 2.0))
        [tensor([2.]), tensor([3., 3.])]
    """
    each = getattr(torch, name)

    def loop(tensors: Sequence[Tensor], *other: Any) -> list[Tensor]:
        if other and isinstance(other[0], list | tuple):
            return [each(t, o) for t, o in zip(tensors, other[0], strict=True)]
        return [each(t, *other) for t in tensors]

    return getattr(torch, LISTS[name], loop)


def adamw_works() -> bool:
    """Return whether there is a kernel for AdamW, too."""
    return getattr(torch, "_fused_adamw_", None) is not None


def kernels() -> tuple[Any, ...]:
    return tuple(getattr(torch, name, None) for name in KERNELS)


def kernel_works() -> bool:
    """Return whether :func:`fused_adam` does here what torch's own fused Adam does, to the bit."""
    return agree(*kernels())


def fused_works() -> bool:
    """Return whether torch's own Adam can be fused here."""
    return trial(False, *kernels()) is not None


@cache
def agree(*of: Any) -> bool:
    return trial(True, *of) == trial(False, *of) is not None


@cache
def trial(alone: bool, *of: Any) -> tuple[float, ...] | None:
    """Take steps of one number, by the kernel alone or torch's own ``step()``; None where they fail."""
    if None in of:
        return None
    number = torch.full((1,), 0.5, dtype=torch.float32, device="cpu", requires_grad=True)
    number.grad = torch.full_like(number, 0.3)
    try:
        optimizer: Any = torch.optim.Adam([number], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, fused=True)
        optimizer.step()  # makes the state
        group, state = optimizer.param_groups[0], optimizer.state[number]
        for group["lr"] in (0.1, torch.full((), 0.1, dtype=torch.float32, device="cpu")):
            for optimizer.found_inf in (None, *torch.arange(2.0, dtype=torch.float32, device="cpu")):
                if alone:
                    fused_adam([number], [state], group, group["lr"], optimizer.found_inf)
                else:
                    optimizer.step()
    except Exception:  # another signature, or none at all
        return None
    return (number.item(), *(tensor.item() for tensor in state.values()))


def reset() -> None:
    """Forget what was tried."""
    agree.cache_clear()
    trial.cache_clear()


def has_listeners(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether hooks wait for the optimizer's steps; True where torch does not tell, so that ``step()`` is called."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return any(getattr(optimizer, name, True) for name in names)


def takes_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer skips a step on the device where its ``found_inf`` is 1."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


# Tensors and distributions


def version(tensor: Tensor) -> int:
    """Return a number that is another once a tensor was changed in place: torch's count, or a checksum of its values."""
    count: int | None = getattr(tensor, "_version", None)
    if count is not None:
        return count
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def has_hook(tensor: Tensor) -> bool:
    """Return whether a hook waits for its gradient."""
    return bool(getattr(tensor, "_backward_hooks", None))


def computed_attributes(distribution: Any) -> list[str]:
    """List what a distribution of either probabilities or logits has computed from those that it was given.

    Example:
        >>> d = torch.distributions.Bernoulli(probs=torch.tensor(0.5))
        >>> d.logits, computed_attributes(d)
        (tensor(0.), ['logits'])
    """
    given, held = getattr(distribution, "_param", None), vars(distribution)
    names = [name for name in ("probs", "logits") if name in held] if given is not None else []
    return [name for name in names if held[name] is not given and len(names) > 1]


def validate_sample(distribution: Any, value: Tensor) -> None:
    """Raise ValueError for a value outside a distribution's support."""
    validate = getattr(distribution, "_validate_sample", None)
    if validate is not None:
        validate(value)
    elif not distribution.support.check(value).all():
        raise ValueError(f"value outside the support ({distribution.support}) of {distribution}")


# Tracing and compiling


def no_trace() -> str | None:
    """Explain why this torch cannot trace steps safely; None if it can. Imports torch's compiler, a second or two."""
    if schema(torch.ops.aten.add_.Tensor) is None:
        return "torch has no OpOverload._schema"
    if getattr(Tensor, "_backward_hooks", None) is None:
        return "torch has no Tensor._backward_hooks"
    return lacks(MODE, MAKE_FX)


def schema(operation: Any) -> Any:
    """Return what an operation takes and changes; None for a plain function."""
    return getattr(operation, "_schema", None)


def shared_fakes() -> AbstractContextManager[Any]:
    """Give a trace inside one mode for its tensors' stand-ins; else each node makes its own, which takes twice as long."""
    mode, context, tracing = map(find, SHARED)
    try:
        shared: AbstractContextManager[Any] = tracing(context(mode(allow_fallback_kernels=True)))
    except Exception:  # one of them missing, or called otherwise
        return nullcontext()
    return shared


def choosing_kernels(backends: str) -> AbstractContextManager[Any] | None:
    """Have Inductor time kernels for matrix products inside and take the fastest; None where it has no such switch.

    Its times stay in its own cache on disk, from which any later process takes them. It prints no tables.

    Args:
        backends: whose kernels, by Inductor's names: "ATEN" is the library's, "TRITON" and "CPP" are made by Inductor.
    """
    config = find(INDUCTOR[0])
    asked = {"max_autotune_gemm": True, "max_autotune_gemm_backends": backends}
    silent = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}
    if config is None or not all(hasattr(config, name) for name in asked):
        return None
    context: AbstractContextManager[Any] = config.patch(
        asked | {name: value for name, value in silent.items() if hasattr(config, name)}
    )
    return context


def products_timed() -> int | None:
    """Count the matrix products whose kernels this process has timed so far; None where torch does not tell."""
    counters: Any = find(COUNTERS)
    return None if counters is None else int(counters["inductor"]["select_algorithm_autotune"])


def load_cpp(source: str) -> Any:
    """Compile C++ into Inductor's cache, and load it from there; None where torch cannot, or the compiler gave up."""
    vectorized = ("-ftree-loop-vectorize",)  # which Inductor turns off, for its own loops
    try:
        return find(CPP).load(source, extra_flags=vectorized)
    except Exception:  # the compiler's own errors are many
        return None


@contextmanager
def without_sources() -> Iterator[None]:
    """Have torch forget the text of each graph that is made inside, which it keeps for tracebacks until the process ends."""
    texts = getattr(find(SOURCES), "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for name in texts.keys() - before:
            texts.pop(name, None)
            linecache.cache.pop(name, None)


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Have torch forget what it keeps of a compilation inside until the process ends; what was compiled goes on to work.

    That is the module which it wrote around the kernels, and what methods of its classes have cached: of shapes, some without a
    bound, which torch empties when it comes to another graph's shapes, unless both were changed as often.
    """
    written = find(WRITTEN)
    modules: list[Any] = getattr(written, "modules", [])
    before = set(map(id, modules))
    try:
        yield
    finally:
        for method in (m for name in CACHING for m in vars(find(name) or object).values()):
            if callable(clear := getattr(method, "cache_clear", None)):
                clear()
        shared = set(map(id, getattr(written, "modules_no_attr", {}).values()))  # of kernels, which others may use
        for module in [m for m in modules if id(m) not in before | shared]:
            modules.remove(module)
            getattr(written, "linemaps", {}).pop(module.__file__, None)
            sys.modules.pop(module.__name__, None)


def dispatching(handle: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> AbstractContextManager[Any] | None:
    """Have ``handle(operation, args, kwargs)`` stand in for each tensor operation inside; None where torch has none."""
    mode = find(MODE)
    return None if mode is None else dispatcher(mode)(handle)


@cache
def dispatcher(mode: Any) -> Any:
    class Dispatcher(mode):
        def __init__(self, handle: Any) -> None:
            super().__init__()
            self.handle = handle

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # else torch imports its compiler, most of a second, for a mode that is never compiled

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return self.handle(func, args, kwargs or {})

    return Dispatcher


def find_onednn() -> Any:
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return x wᵀ by oneDNN; None where this torch has it not, or calls it otherwise."""
    operation = find_onednn()
    try:
        x = torch.arange(6.0, dtype=torch.float32, device="cpu").reshape(2, 3)
        right = operation is not None and torch.equal(operation(x, x, None, "none", [], ""), x @ x.mT)
    except Exception:  # another signature, or none at all
        return None
    return (lambda x, w: operation(x, w, None, "none", [], "")) if right else None


# Processes


def group_store() -> Any | None:
    """Return the store that a group of processes met by; None without a group, or where torch does not tell."""
    store = find(STORE)
    try:
        return store() if store is not None else None
    except (RuntimeError, ValueError):  # no group is open
        return None
