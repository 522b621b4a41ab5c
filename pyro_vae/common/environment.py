"""Versions and machine, as saved beside every number."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from pyro_vae.common.counted import counted


def versions() -> dict[str, str]:
    """Return the versions that the numbers of a run may depend on."""
    packages = ("pyro-vae", "torch", "pyro-ppl")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def machine(device: torch.device) -> str:
    """Describe the machine that a number is made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = counted(torch.get_num_threads(), "thread")
    return f"CPU ({platform.machine()}), {f'{cores} cores' if cores != 1 else '1 core'}, {threads}"


@cache
def is_intel() -> bool:
    """Return whether the processor is Intel's, as the system tells; False where it does not."""
    with suppress(OSError):
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")
    return "GenuineIntel" in platform.processor()
