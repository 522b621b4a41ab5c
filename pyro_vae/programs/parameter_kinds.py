"""Parameters that nothing can be computed with: of lazy modules, on the meta device, not dense, or spread over two GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pyro_vae.errors import ProgramError

from .pair import named_owners

DENSE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # floating-point types that torch computes in


def check_values(*programs: Any) -> None:
    """Refuse programs whose modules hold parameters or buffers without values, or on two GPUs, before torch stops within.

    Raises:
        ProgramError: names the first, and how to go on.

    Example:
        >>> check_values(nn.LazyLinear(2))
        Traceback (most recent call last):
          ...
        pyro_vae.errors.ProgramError: LazyLinear.weight belongs to a lazy module (LazyLinear) that has not run, and has no ...
    """
    found: dict[str, Tensor] = {}
    for label, owner in named_owners(*programs).items():
        for prefix, module in owner.named_modules():
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for name, tensor in own:
                where = ".".join(filter(None, (label or type(owner).__name__, prefix, name)))
                if why := valueless(module, tensor):
                    raise ProgramError(f"{where} {why}")
                found.setdefault(where, tensor)
    check_one_gpu(found)


def check_one_gpu(tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters on two GPUs: rows go to one of them, and draws on the other would follow no seed.

    Those on the CPU beside are no matter: a single number there goes with any device, and torch names what does not.
    """
    first: dict[torch.device, str] = {}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            first.setdefault(tensor.device, name)
    if len(first) > 1:
        (one, a), (other, b) = list(first.items())[:2]
        raise ProgramError(
            f"{a} is on {one}, {b} on {other}: rows and noise go to one device, and draws on another would follow no seed. "
            f"Fix: move the whole model, module.to({str(one)!r})."
        )


def valueless(module: nn.Module, tensor: Tensor) -> str:
    """Say what a tensor lacks, and how to go on; nothing where it lacks nothing."""
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return (
            f"belongs to a lazy module ({type(module).__name__}) that has not run, and has no values, nor a shape. Fix: run "
            "the network on a row of zeros first, network(torch.zeros(1, D)), or give the layer its width (nn.Linear(D, ...))."
        )
    if tensor.is_meta:
        return (
            "is on the meta device, and has a shape, but no values. Fix: module.to_empty(device='cpu'), then load its weights "
            "(load_state_dict) or draw them (reset_parameters)."
        )
    if not isinstance(tensor, nn.Parameter):
        return ""  # a sparse buffer, as of a graph's edges, is the user's to multiply by
    if tensor.layout != torch.strided and not hasattr(tensor, "full_tensor"):
        return f"is a sparse tensor ({tensor.layout}). Fix: nn.Parameter(p.to_dense()); a mask may hold its zeros."
    if tensor.is_floating_point() and tensor.dtype not in DENSE:
        return f"is in {tensor.dtype}, a format to store numbers in. Fix: module.float()."
    return ""
