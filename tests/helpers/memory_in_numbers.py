"""How much memory a computation takes, in numbers: what its operations put out, seen by torch's dispatcher."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryInNumbers(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and their peak; `largest` is that of one operation's output."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        key = storage.data_ptr()
        self.largest = max(self.largest, storage.nbytes())
        if storage.nbytes() and key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
            self.peak = max(self.peak, sum(self.alive.values()))
