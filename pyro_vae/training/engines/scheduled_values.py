"""Numbers that change as training goes on (β, a capacity), as tensors: a trace would freeze a Python number.

An object says which of its numbers they are, and moves them (:class:`~pyro_vae.objectives.scheduled.Scheduled`). While a
step is traced each is a :class:`ScheduledValue`, and a question of the programs (``beta == 1``) is remembered with the answer:
the trace is good for as long as the answers are the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pyro_vae.objectives.scheduled import Scheduled, scheduled_numbers

Answers = list[tuple[Callable[[], bool], bool]]  # questions and their answers


class ReadAsNumber(Exception):
    """A scheduled value was turned into a plain number, which the trace would not follow."""


def combined_by(do: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make the method that does arithmetic with numbers, other scheduled values and tensors."""

    def combine(self: ScheduledValue, other: Any) -> Any:
        if isinstance(other, ScheduledValue):
            return ScheduledValue(lambda: do(self.read(), other.read()), do(self.tensor, other.tensor), self.answers)
        if isinstance(other, int | float):
            return ScheduledValue(lambda: do(self.read(), other), do(self.tensor, other), self.answers)
        return do(self.tensor, other) if isinstance(other, Tensor) else NotImplemented

    return combine


def compared_by(do: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    """Make the method that answers a question and remembers the answer; of a tensor, element by element, it does not."""

    def compare(self: ScheduledValue, other: Any) -> Any:
        if isinstance(other, Tensor):
            return do(self.tensor, other)
        other_read = other.read if isinstance(other, ScheduledValue) else lambda: other
        answer = do(self.read(), other_read())
        self.answers.append((lambda: do(self.read(), other_read()), answer))
        return answer

    return compare


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

    def __neg__(self) -> ScheduledValue:
        return self * -1.0

    __add__ = __radd__ = combined_by(operator.add)
    __mul__ = __rmul__ = combined_by(operator.mul)
    __sub__, __rsub__ = combined_by(operator.sub), combined_by(lambda a, b: b - a)
    __truediv__, __rtruediv__ = combined_by(operator.truediv), combined_by(lambda a, b: b / a)
    __eq__ = compared_by(operator.eq)
    __lt__, __le__ = compared_by(operator.lt), compared_by(operator.le)
    __gt__, __ge__ = compared_by(operator.gt), compared_by(operator.ge)


def as_tensor(value: Any) -> Any:
    """Put tensors in place of scheduled values, also within tuples, lists and dictionaries."""
    if isinstance(value, tuple | list):
        inner = map(as_tensor, value)
        return list(inner) if isinstance(value, list) else tuple(inner)
    if isinstance(value, dict):
        return {key: as_tensor(inner) for key, inner in value.items()}
    return value.tensor if isinstance(value, ScheduledValue) else value


class ScheduledValues:
    """The numbers that `scheduled` objects move; `unseen` if a function may move any other number, too.

    Example:
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
                setattr(owner, name, ScheduledValue(reader(owner, name, number), tensor, answers))
            yield
        finally:
            for (owner, name), number in zip(self.numbers, plain, strict=True):
                setattr(owner, name, number)


def reader(owner: Any, name: str, number: float) -> Callable[[], float]:
    """Make a function that reads an object's number; while a ScheduledValue stands in its place, the one that it had."""

    def read() -> float:
        now = getattr(owner, name)
        return number if isinstance(now, ScheduledValue) else now

    return read


def answers_hold(answers: Answers) -> bool:
    """Return whether every question still has the answer that the trace was made with."""
    return all(question() == answer for question, answer in answers)
