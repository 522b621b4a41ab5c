"""Devices by name: CPU, CUDA, or automatic."""

from __future__ import annotations

import torch

from pyro_vae.errors import DeviceError


def resolve_device(device: torch.device | str) -> torch.device:
    """Return the device of that name ("auto": CUDA where there is one).

    Raises:
        DeviceError: no such device here. Never falls back to another in silence.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:  # torch's own words for what is no name are its overloads
        raise DeviceError(f"{device!r} is no device: say cpu, cuda, cuda:1 or auto") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {device!r} was asked for, but torch sees no CUDA here. Say device='cpu' or 'auto'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= (seen := torch.cuda.device_count()):
        raise DeviceError(f"device {device!r} was asked for, but torch sees {seen} CUDA device(s) here.")
    return resolved
