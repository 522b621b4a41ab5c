"""Networks whose parameters are sharded over processes (``fully_shard`` of ``torch.distributed.fsdp``, FSDP2)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pyro_vae.errors import UsageError


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


def held_whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, as this process alone can have it.

    Raises:
        UsageError: it lies in parts on several processes.
    """
    parts = getattr(tensor, "device_mesh", None)
    if parts is not None and parts.size() > 1:
        raise UsageError(
            f"what is to be saved is sharded over {parts.size()} processes, and this one has a part of it: gather it on all of "
            "them first, torch.distributed.checkpoint.state_dict.get_model_state_dict(vae, "
            "options=StateDictOptions(full_state_dict=True)), or save by a Checkpointer."
        )
    return whole(tensor)


def any_sharded(modules: Iterable[nn.Module]) -> bool:
    """Return whether some module is sharded, whole as its parameters may be at the moment."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return kind is not None and any(isinstance(part, kind) for module in modules for part in module.modules())


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor lies in parts on several processes."""
    return hasattr(tensor, "full_tensor")


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return tensors whole, each that is sharded gathered to the CPU before the next one is; every process calls this.

    Args:
        tensors: by name, in one order on all processes.
        keep: whether this process is to have them; the others, that only take part, return none.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        entire = whole(tensor.detach()).cpu() if is_sharded(tensor) else tensor
        if keep:
            kept[name] = entire
    return kept


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Return what a tensor such as `like` holds of whole values: this process's part, where that one is sharded.

    Nothing is sent: each process has the values, as of a checkpoint that it has read.
    """
    values = values.to(like.device)
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = like
    mesh = sharded.device_mesh
    same = DTensor.from_local(values, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = same.redistribute(mesh, sharded.placements)
    return part


def layout(modules: Iterable[nn.Module]) -> dict[str, list[Any]]:
    """Return, by name, over how many processes each sharded parameter lies, and how."""
    found: dict[str, list[Any]] = {}
    for i, module in enumerate(modules):
        reshard(module)
        sharded: list[tuple[str, Any]] = [(name, p) for name, p in module.named_parameters() if is_sharded(p)]
        found |= {f"{i}.{name}": [list(p.device_mesh.shape), *map(str, p.placements)] for name, p in sharded}
    return found
