"""What a transform draws (binarization, dequantization) as inputs of a graph, so that the generator stays outside of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common import torch_private
from pyro_vae.training.batch_source import Transform

from .flat_graph import Untraceable, leaves


@dataclass(eq=False)
class Draw:
    """A random operation of a transform, to be done again; `like` is the tensor that it fills, None where it makes one."""

    operation: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    like: Tensor | None

    def __call__(self, generator: torch.Generator) -> Tensor:
        options = self.options | {"generator": generator}
        if self.like is None:
            return self.operation(*self.arguments, **options)
        return self.operation(torch.empty_like(self.like), *self.arguments, **options)


@dataclass(eq=False)
class TransformDraws:
    """The draws of a transform, in their order; with them as arguments it is a function that draws nothing.

    Raises:
        Untraceable: a draw that depends on the rows, such as ``torch.bernoulli(x)``: it has no numbers of its own.

    Example:
        >>> from pyro_vae import binarize
        >>> x, draws = torch.full((2, 3), 0.5), TransformDraws(binarize)
        >>> draws.look(x, torch.Generator().manual_seed(0))
        >>> again = draws.draw(torch.Generator().manual_seed(0))
        >>> torch.equal(draws.transformed(x, again), binarize(x, torch.Generator().manual_seed(0)))
        True
    """

    transform: Transform | None
    draws: list[Draw] = field(default_factory=list)

    def look(self, x: Tensor, generator: torch.Generator) -> None:
        """Run the transform to see what it draws; `generator` moves on."""
        self.draws.clear()

        def handle(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("generator") is not None:
                self.draws.append(draw_of(operation, args, kwargs))
            return operation(*args, **kwargs)

        if self.transform is not None:
            with dispatching(handle):
                self.transform(x, generator)

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """Draw what the transform would, from a generator."""
        return [draw(generator) for draw in self.draws]

    def transformed(self, x: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Transform rows with these draws in place of new ones."""
        following: Iterator[Tensor] = iter(draws)

        def handle(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("generator") is None:
                return operation(*args, **kwargs)
            drawn = next(following)
            return args[0].copy_(drawn) if fills(operation) else drawn.clone()

        if self.transform is None:
            return x
        with dispatching(handle):
            return self.transform(x, torch.Generator(x.device))


def dispatching(handle: Callable[..., Any]) -> Any:
    mode = torch_private.dispatching(handle)
    if mode is None:
        raise Untraceable("torch does not tell which operations draw")
    return mode


def fills(operation: Any) -> bool:
    """Return whether an operation writes its draws into its first argument."""
    schema = torch_private.schema(operation)
    return bool(schema.arguments and schema.arguments[0].alias_info and schema.arguments[0].alias_info.is_write)


def draw_of(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Draw:
    """Note a random operation; refuse one whose draws depend on tensors."""
    like, rest = (args[0], args[1:]) if fills(operation) else (None, args)
    options = {name: value for name, value in kwargs.items() if name != "generator"}
    if any(isinstance(value, Tensor) for value in leaves((rest, options))):
        raise Untraceable(f"the transform's {operation} draws by the numbers in a tensor")
    return Draw(operation, tuple(rest), options, like)
