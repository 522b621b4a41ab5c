"""What a process holds that nobody asked it to keep: objects, parameters in the store, files, threads, hooks."""

import gc
import os
import signal
import threading
from collections import Counter
from importlib import import_module
from pathlib import Path

import pyro
import torch
from torch import nn
from torch.nn.modules import module as torch_module

optimizers = import_module("torch.optim.optimizer")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def objects():
    """Count what the garbage collector knows, by class."""
    gc.collect()
    counts: Counter[str] = Counter()
    for kind, n in Counter(map(type, gc.get_objects())).items():
        counts[f"{kind.__module__}.{kind.__qualname__}"] += n
    return counts


def held():
    """Count all else: files, threads, hooks, entries of the store and handlers that are on."""
    gc.collect()
    hooks = [d for name, d in vars(torch_module).items() if name.startswith("_global_") and isinstance(d, dict)]
    return {
        "files": len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0,
        "threads": threading.active_count(),
        "hooks of all modules": sum(map(len, hooks)),
        "hooks of optimizers": len(optimizers._global_optimizer_pre_hooks)
        + len(optimizers._global_optimizer_post_hooks),
        "parameters in the store": len(pyro.get_param_store()),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "signal handlers": [signal.getsignal(number) for number in SIGNALS],
        "grad": torch.is_grad_enabled(),
        "settings": pyro.settings.get(),
    }


def resident():
    """MiB of the process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def hooks_of(module):
    """Count the hooks on a module and its parameters."""
    on_modules = sum(len(part) for m in module.modules() for name, part in vars(m).items() if name.endswith("_hooks"))
    return on_modules + sum(len(p._backward_hooks or ()) for p in module.parameters() if isinstance(p, nn.Parameter))


def grown(before, after, per=0):
    """The classes with more than `per` more objects than before, the most first."""
    return [(name, n) for name, n in (after - before).most_common() if n > per]
