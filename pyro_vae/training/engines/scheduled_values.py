"""Numbers that change as training goes on (β, a capacity), as tensors: a trace would freeze a Python number.

An object says which of its numbers they are, and moves them (:class:`~pyro_vae.objectives.scheduled.Scheduled`). While a
step is traced each is a :class:`ScheduledValue`, and what the programs ask of it (``beta == 1``) is remembered with the answer:
the trace holds for as long as the answers do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pyro_vae.objectives.scheduled import Scheduled, scheduled_numbers

Answers = list[tuple[Callable[[], bool], bool]]  # what was asked, and what the answer was


class ReadAsNumber(Exception):
    """A scheduled value was turned into a plain number, which the trace would not follow."""


class ScheduledValue:
    """A number with two faces: a plain one, read afresh, for questions; a 0-d tensor for arithmetic with tensors."""

    def __init__(self, read: Callable[[], float], tensor: Tensor, answers: Answers) -> None:
        self.read, self.tensor, self.answers = read, tensor, answers

    def __repr__(self) -> str:
        return f"ScheduledValue({self.read()})"

    def __float__(self) -> float:
        raise ReadAsNumber("a number that changes as training goes on is turned into a plain one")

    __int__ = __index__ = __bool__ = __float__
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*as_tensor(args), **as_tensor(kwargs or {}))

    def combine(self, other: Any, do: Callable[[Any, Any], Any]) -> Any:
        if isinstance(other, ScheduledValue):
            return ScheduledValue(lambda: do(self.read(), other.read()), do(self.tensor, other.tensor), self.answers)
        if isinstance(other, int | float):
            return ScheduledValue(lambda: do(self.read(), other), do(self.tensor, other), self.answers)
        return do(self.tensor, other) if isinstance(other, Tensor) else NotImplemented

    def compare(self, other: Any, do: Callable[[Any, Any], Any]) -> Any:
        """Answer, and remember the answer; of a tensor, element by element and without remembering."""
        if isinstance(other, Tensor):
            return do(self.tensor, other)
        that = other.read if isinstance(other, ScheduledValue) else lambda: other
        answer = do(self.read(), that())
        self.answers.append((lambda: do(self.read(), that()), answer))
        return answer

    def __add__(self, other: Any) -> Any:
        return self.combine(other, operator.add)

    def __sub__(self, other: Any) -> Any:
        return self.combine(other, operator.sub)

    def __mul__(self, other: Any) -> Any:
        return self.combine(other, operator.mul)

    def __truediv__(self, other: Any) -> Any:
        return self.combine(other, operator.truediv)

    def __rsub__(self, other: Any) -> Any:
        return self.combine(other, lambda a, b: b - a)

    def __rtruediv__(self, other: Any) -> Any:
        return self.combine(other, lambda a, b: b / a)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> ScheduledValue:
        return self * -1.0

    def __eq__(self, other: object) -> bool:
        return self.compare(other, operator.eq)

    def __lt__(self, other: Any) -> bool:
        return self.compare(other, operator.lt)

    def __le__(self, other: Any) -> bool:
        return self.compare(other, operator.le)

    def __gt__(self, other: Any) -> bool:
        return self.compare(other, operator.gt)

    def __ge__(self, other: Any) -> bool:
        return self.compare(other, operator.ge)


def as_tensor(value: Any) -> Any:
    """Put tensors in place of scheduled values, also within tuples, lists and dictionaries."""
    if isinstance(value, tuple | list):
        inner = map(as_tensor, value)
        return list(inner) if isinstance(value, list) else tuple(inner)
    if isinstance(value, dict):
        return {key: as_tensor(inner) for key, inner in value.items()}
    return value.tensor if isinstance(value, ScheduledValue) else value


class ScheduledValues:
    """The numbers that a run moves.

    Args:
        scheduled: the objects that move them.
        unseen: whether a function may move any other number, too, which nobody could follow.

    Example:
        >>> import torch
        >>> from pyro_vae import Beta, warmup, constant
        >>> beta = Beta(4.0, warmup(constant, 0.5))
        >>> scheduled_values = ScheduledValues([beta])
        >>> answers = []
        >>> with scheduled_values.traced(torch.zeros(1), answers):
        ...     torch.ones(2) * beta.value, beta.value == 4
        (tensor([0., 0.]), False)
        >>> beta.at(0.5)
        >>> scheduled_values.refresh()
        >>> scheduled_values.tensors, answers_hold(answers)     # the tensor follows; an answer has changed
        ([tensor(4.)], False)
    """

    def __init__(self, scheduled: Sequence[Scheduled] = (), unseen: bool = False) -> None:
        self.numbers, self.unseen = scheduled_numbers(scheduled), unseen
        self.tensors: list[Tensor] = []

    def refresh(self) -> None:
        """Copy the numbers of now into the tensors."""
        for tensor, (owner, name) in zip(self.tensors, self.numbers, strict=False):  # none before the first trace
            tensor.fill_(getattr(owner, name))

    @contextmanager
    def traced(self, like: Tensor, answers: Answers) -> Iterator[None]:
        """Put a ScheduledValue in the place of each number while it lasts, in the dtype and on the device of `like`."""
        plain = [getattr(owner, name) for owner, name in self.numbers]
        if not self.tensors:
            self.tensors = [like.new_tensor(number) for number in plain]
        try:
            for (owner, name), number, tensor in zip(self.numbers, plain, self.tensors, strict=True):
                setattr(owner, name, ScheduledValue(Reader(owner, name, number), tensor, answers))
            yield
        finally:
            for (owner, name), number in zip(self.numbers, plain, strict=True):
                setattr(owner, name, number)


class Reader:
    """Reads an object's number; the one that it had, while a ScheduledValue stands in its place."""

    def __init__(self, owner: Any, name: str, number: float) -> None:
        self.owner, self.name, self.number = owner, name, number

    def __call__(self) -> float:
        now = getattr(self.owner, self.name)
        return self.number if isinstance(now, ScheduledValue) else now


def answers_hold(answers: Answers) -> bool:
    """Ask whether every question still has the answer that the trace was made with."""
    return all(question() == answer for question, answer in answers)
