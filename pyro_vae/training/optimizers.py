"""What may be given for `optimizer`: a function of parameters, or one of Pyro's or torch's own, converted or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor

from pyro_vae.common.given import described
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.sharded import is_sharded
from pyro_vae.common.torch_private import fused_works
from pyro_vae.errors import UsageError
from pyro_vae.programs.parameters import stored_parameters

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
LISTED = 3  # names, in a message


@suggest_keywords
def adam(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> MakeOptimizer:
    """Adam over all parameters at once, in one fused kernel where torch has one for the device.

    References:
        Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015), https://arxiv.org/abs/1412.6980

    Example:
        >>> adam(lr=1e-2)([torch.zeros(1, requires_grad=True)]).defaults["lr"]
        0.01
    """

    def make(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        parameters = list(parameters)
        if any(map(is_sharded, parameters)):  # no kernel takes these beside parameters that are whole
            return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=False, foreach=False)
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=fused_works() or None)

    return make


WANTED = (
    "optimizer takes a function of the parameters, such as adam(lr=1e-3) or functools.partial(torch.optim.SGD, lr=0.1)"
)
SCHEDULES = "fit's own schedule=, such as warmup(cosine), moves the learning rate"


def optimizer_of(given: Any) -> MakeOptimizer:
    """Return the function of parameters that `given` stands for.

    A class of torch's is taken with its defaults; an optimizer that was built takes part as it is, on the parameters that the
    programs declare; a ``pyro.optim`` wrapper is taken for the torch optimizer that it wraps, with its options.

    Raises:
        UsageError: anything else, or a wrapper with what `fit` does in another way (schedules, clipping, options by name).

    Example:
        >>> import pyro
        >>> optimizer_of(pyro.optim.Adam({"lr": 0.01}))([torch.zeros(1, requires_grad=True)]).defaults["lr"]
        0.01
    """
    if given is None or given is adam:
        return adam()
    if isinstance(given, torch.optim.Optimizer):
        return BuiltOptimizer(given)
    if isinstance(given, PyroOptim):
        return of_pyro(given)
    if isinstance(scheduled := getattr(given, "optimizer", None), torch.optim.Optimizer):
        kind = type(scheduled).__name__
        raise UsageError(
            f"optimizer is a {type(given).__name__} around an {kind}: give the optimizer alone. {SCHEDULES}."
        )
    if isinstance(given, int | float) and not isinstance(given, bool):
        raise UsageError(f"optimizer={given!r}: a learning rate goes into one, optimizer=adam(lr={given!r})")
    if not callable(given):
        raise UsageError(f"{WANTED}; got {described(given)}")
    return given


def of_pyro(given: Any) -> MakeOptimizer:
    """Unwrap a pyro.optim optimizer, which keeps one torch optimizer for each parameter, into one for all."""
    constructor, options = getattr(given, "pt_optim_constructor", None), getattr(given, "pt_optim_args", None)
    name = getattr(constructor, "__name__", type(given).__name__)
    if isinstance(given, PyroLRScheduler) or not (
        isinstance(constructor, type) and issubclass(constructor, torch.optim.Optimizer)
    ):
        raise UsageError(
            f"optimizer is a {type(given).__name__} of Pyro's around {name}, which fit does not step. {WANTED}; {SCHEDULES}."
        )
    if not isinstance(options, dict):
        raise UsageError(
            f"optimizer is Pyro's {name} with options by a function of each parameter's name, and fit makes one optimizer for "
            "all: give optimizer=a function of the parameters that puts them into groups of a torch optimizer."
        )
    if getattr(given, "pt_clip_args", None):
        raise UsageError(
            f"optimizer is Pyro's {name} with clip_args, which fit does not apply: take "
            "pyro.optim.ClippedAdam, which clips by itself, or clip in a torch optimizer of your own."
        )
    return partial(constructor, **options)


class BuiltOptimizer:
    """An optimizer that was made already: of just the parameters that the programs declare."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __call__(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        declared = list(parameters)
        held = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        if missing := [p for p in declared if id(p) not in held]:
            names, kind = name_parameters(missing), type(self.optimizer).__name__
            raise UsageError(
                f"optimizer is a {kind} that lacks {len(missing)} of the {len(declared)} parameters that the programs train: "
                f"{names}. Give a function in its place, optimizer=functools.partial(torch.optim.{kind}, lr=...), which fit "
                "calls on all of them, and freeze with requires_grad_(False) what is not to be trained."
            )
        for p in held.values():  # those of no program keep what earlier work left on them, and must not move
            p.grad = p.grad if any(p is d for d in declared) else None
        return self.optimizer


def name_parameters(tensors: list[Tensor]) -> str:
    """Name the first few as Pyro's store or their module does; by shape where neither does."""
    names = {id(tensor): name.rpartition("$$$")[2] for name, tensor in stored_parameters()}
    told = [names.get(id(t), f"one of shape {tuple(t.shape)}") for t in tensors[:LISTED]]
    return ", ".join(map(repr, told)) + (", …" if len(tensors) > LISTED else "")


def make_checked(make: MakeOptimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Make an optimizer of parameters; a UsageError where its arguments are wrong, or `fit` cannot step what comes."""
    try:
        made = make(parameters)
    except TypeError as error:
        raise UsageError(f"optimizer could not be made of the parameters: {error}. {WANTED}.") from error
    return checked(made)


def checked(optimizer: Any) -> torch.optim.Optimizer:
    """Return what a function of the parameters made, if `fit` can step it.

    Raises:
        UsageError: it is no torch optimizer, calls the loss itself, has no learning rate or moves it by itself.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        way_out = "call it first, such as optimizer=adam(lr=1e-3)" if callable(optimizer) else WANTED
        raise UsageError(
            f"optimizer gave {described(optimizer)} for the parameters, and wanted is a torch optimizer: {way_out}"
        )
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            f"optimizer: {kind} evaluates the loss several times a step, which no step of fit does. {WANTED}."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise UsageError(f"optimizer: {kind} takes sparse gradients only, and those of networks are dense. {WANTED}.")
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise UsageError(f"optimizer: {kind} has no learning rate `lr` that a schedule could move. {WANTED}.")
        if group.get("lrd", 1.0) != 1.0:
            raise UsageError(
                f"optimizer: {kind} lowers its own learning rate (lrd={group['lrd']}); leave lrd out. {SCHEDULES}."
            )
    return optimizer
