"""Programs whose x, or a context, is a dict, a tuple or a packed sequence of arrays: run on plain tensors of as many rows."""

from __future__ import annotations

from typing import Any

from pyro_vae.data.structures import Layout, is_structure, lay_out
from pyro_vae.errors import UsageError

from .sites import Program


class OnTensors:
    """A program on the tensors that its arguments are made of: ``program({"a": a, "b": b})`` as ``OnTensors(...)(a, b)``."""

    def __init__(self, program: Program, layouts: tuple[Layout, ...]) -> None:
        self.__wrapped__ = self.program = program  # its modules are found through it
        self.layouts = layouts

    def __call__(self, *tensors: Any, **kwargs: Any) -> Any:
        return self.program(*self.restore(tensors), **kwargs)

    def restore(self, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put the arguments together."""
        args, start = [], 0
        for layout in self.layouts:
            args.append(layout.restore(tensors[start : start + layout.size]))
            start += layout.size
        return tuple(args)


def on_tensors(model: Any, guide: Any, *args: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return programs that take plain tensors, and those that the arguments hold; all as it is where they hold one each.

    Raises:
        DataError, ShapeError: parts that are no arrays, or of another number of rows.

    Example:
        >>> def model(x):
        ...     return x["a"] + x["b"]
        >>> import torch
        >>> flat, _, tensors = on_tensors(model, None, {"a": torch.ones(2), "b": torch.zeros(2)})
        >>> flat(*tensors)
        tensor([1., 1.])
    """
    if not any(map(is_structure, args)):
        return model, guide, args
    pairs = [lay_out(a, "x" if i == 0 else f"x: context {i - 1}") for i, a in enumerate(args)]
    layouts, tensors = tuple(layout for layout, _ in pairs), tuple(t for _, arrays in pairs for t in arrays)
    programs = [None if program is None else OnTensors(program, layouts) for program in (model, guide)]
    return programs[0], programs[1], tensors


def tensors_as(program: Any, *args: Any) -> tuple[Any, ...]:
    """Return the tensors of further arguments (validation rows) for a program of :func:`on_tensors`.

    Raises:
        UsageError: they are put together otherwise; the order of keys counts, as a program may go through the values.
    """
    if not isinstance(program, OnTensors) and not any(map(is_structure, args)):
        return args
    pairs = [lay_out(a, "validation x" if i == 0 else f"validation x: context {i - 1}") for i, a in enumerate(args)]
    came, wanted = tuple(layout for layout, _ in pairs), getattr(program, "layouts", (Layout(),))
    if came != wanted:
        raise UsageError(
            f"the validation rows are {', '.join(map(str, came))}, the training rows {', '.join(map(str, wanted))}: give "
            "both in the same form, with the same keys in the same order."
        )
    return tuple(t for _, arrays in pairs for t in arrays)


def refuse_structure(x: Any, what: str) -> None:
    """Refuse an x of several arrays where one is wanted, whose entries `what` needs."""
    if is_structure(x):
        raise UsageError(
            f"{what} takes x as one array, and got a {type(x).__name__}. Fix: write the programs for one array (torch.cat), or "
            "pass the other parts as contexts."
        )
