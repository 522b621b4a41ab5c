"""An evaluation of programs as a flat graph that can be trusted: traced twice, and it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.common import torch_private
from pyro_vae.common.doubts import any_of, put_off
from pyro_vae.common.flat_program import FlatProgram, Untraceable, check_traces, flattened
from pyro_vae.common.random import seeded

TRACES = 0x74726163  # of the random streams that traces draw from: no number that is handed out does
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")  # which a compiler makes no faster


def flat_evaluation(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], others: Sequence[Tensor]
) -> FlatProgram:
    """Trace ``function(*inputs)``; the graph's last result is a flag, ``()``: there is something to look at.

    Questions that scoring asks about numbers are put off (:mod:`~pyro_vae.common.doubts`); where the flag is set the function
    itself is to be run. It is traced twice, on `inputs` and on `others` and on other noise: a number that differs was frozen.
    The global random state stays as it is.

    Raises:
        Untraceable: with the reason.
    """

    def flagged(*tensors: Tensor) -> list[Tensor]:
        with put_off() as flags:
            results = function(*tensors)
        return [*results, any_of(flags, results[0])]

    device, traces = inputs[0].device, []
    for i, given in enumerate((inputs, others)):
        with seeded(TRACES, i, device=device):
            traces.append(flattened(flagged, given))
    flat, other = traces
    check_traces(flat, other)
    if away := [t for t in flat.state if t.device != device and t.dim()]:
        raise Untraceable(f"the programs hold a tensor of shape {tuple(away[0].shape)} on {away[0].device}")
    return flat


@dataclass
class Work:
    """What a function computes: operations; elements written in all but matrix products; bytes of its largest tensor."""

    operations: int = 0
    elements: int = 0
    largest: int = 0

    def note(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and count what it writes."""
        result = operation(*args, **kwargs)
        schema = torch_private.schema(operation)
        aliases = schema is not None and any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        self.operations += not aliases
        if isinstance(result, Tensor) and not aliases:
            self.largest = max(self.largest, result.nbytes)
            if schema is None or schema.name.partition("::")[2] not in PRODUCTS:
                self.elements += result.numel()
        return result


def work_of(function: Callable[[], Any]) -> Work:
    """Run a function, and count what it computes; nothing is counted by a torch that cannot tell.

    Example:
        >>> work_of(lambda: torch.ones(3, 4) @ torch.ones(4, 5) + 1).elements     # 12 + 20 ones, 15 sums
        47
    """
    work = Work()
    counting = torch_private.dispatching(work.note)
    if counting is None:
        function()
        return work
    with counting:
        function()
    return work
