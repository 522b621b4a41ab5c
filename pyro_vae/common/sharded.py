"""Networks whose parameters are sharded over processes (``fully_shard`` of ``torch.distributed.fsdp``, FSDP2)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def reshard(module: nn.Module) -> None:
    """Have each sharded module within this one hold its parameters as they are trained: its own part of each.

    From its forward pass to its backward pass such a module has its parameters whole, in tensors that are freed after. Whoever
    lists parameters in between would be given those. Where the whole ones are wanted again, torch gathers them again.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None:  # no module of this process is sharded
        return
    for part in module.modules():
        if isinstance(part, kind):
            part.reshard()


def gathered_parameters(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each sharded parameter within a module, and the tensor that stands for it, whole, from forward to backward pass."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    for part in module.modules() if kind is not None else ():
        if isinstance(part, kind):  # type: ignore[arg-type]
            part.reshard()
            sharded = dict(part.named_parameters())
            part.unshard()
            yield from [(sharded[name], whole) for name, whole in part.named_parameters()]
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from all processes where it is sharded; every process calls this."""
    gather = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor if gather is None else gather()
    return found


def to_read(tensor: Tensor) -> Tensor:
    """Return all of a tensor in memory that numpy may share: torch frees no memory that numpy has seen, and FSDP wants to."""
    tensor = whole(tensor.detach()).cpu()
    return tensor.clone() if "torch.distributed.fsdp" in sys.modules else tensor


def any_sharded(modules: Iterable[nn.Module]) -> bool:
    """Return whether a parameter of some module is sharded."""
    return any(is_sharded(parameter) for module in modules for parameter in module.parameters())


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor lies in parts on several processes."""
    return hasattr(tensor, "full_tensor")
