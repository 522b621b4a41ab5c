"""The members' tensors, stacked: each member's parameters and buffers are views of its slice while all train together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.common.identical import identical
from pyro_vae.training.engines.flat_graph import FlatGraph, Untraceable

from .members import Member


@dataclass(eq=False)
class Stack:
    """What the members' graphs hold: `tensors[j]` is slot j of all, along dimension `dims[j]`, or the one that all share."""

    members: Sequence[Member]
    flats: Sequence[FlatGraph]
    tensors: list[Tensor] = field(default_factory=list)
    dims: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owned = [{id(t) for t in (*m.parameters, *m.buffers)} for m in self.members]
        self.check_storage()
        for j in range(len(self.flats[0].state)):
            self.add(self.slot(j))
        self.trained = [self.slot_of([m.parameters[k] for m in self.members]) for k in self.reached]
        changed = {id(t) for t in self.flats[0].mutated()}
        self.changed = [j for j, t in enumerate(self.flats[0].state) if id(t) in changed]

    def slot(self, j: int) -> list[Tensor]:
        return [flat.state[j] for flat in self.flats]

    @property
    def reached(self) -> list[int]:
        """Number the parameters that a gradient reaches."""
        return [k for k, reached in enumerate(self.flats[0].reached) if reached]

    def add(self, slot: list[Tensor]) -> None:
        """Stack one slot."""
        if all(t is slot[0] for t in slot) or self.is_constant(slot):
            self.tensors.append(slot[0])
            self.dims.append(None)
            return
        if any(t.shape != slot[0].shape or t.dtype != slot[0].dtype for t in slot):
            raise Untraceable("a tensor that the programs hold is of another shape or dtype in another member")
        self.tensors.append(torch.stack([t.detach() for t in slot]))
        self.dims.append(0)

    def is_constant(self, slot: list[Tensor]) -> bool:
        """Return whether these are equal tensors that nobody moves: neither modules' nor scheduled numbers."""
        moved = [
            {*owned, *map(id, m.scheduled_values.tensors)} for m, owned in zip(self.members, self.owned, strict=True)
        ]
        loose = all(id(t) not in ids for t, ids in zip(slot, moved, strict=True))
        return loose and all(identical(t, slot[0]) for t in slot)

    def attach(self) -> None:
        """Make the members' own tensors views of the stack."""
        for j, (stacked, dim) in enumerate(zip(self.tensors, self.dims, strict=True)):
            for i, tensor in enumerate(self.slot(j)):
                if dim is not None and id(tensor) in self.owned[i]:
                    stacked[i].copy_(tensor.detach())
                    tensor.data = stacked[i]

    def detach(self) -> None:
        """Give each member tensors of its own again."""
        for member in self.members:
            for tensor in (*member.parameters, *member.buffers):
                tensor.data = tensor.data.clone()

    def slot_of(self, tensors: list[Tensor]) -> int:
        """Find where all members' graphs hold the tensors of one role."""
        found = {
            next((j for j, t in enumerate(f.state) if t is own), -1) for f, own in zip(self.flats, tensors, strict=True)
        }
        if len(found) > 1 or -1 in found:
            raise Untraceable("the members' graphs take their parameters in other orders")
        return found.pop()

    def check_storage(self) -> None:
        """Refuse parameters or buffers of one member that are views of one memory, which stacking would tear apart."""
        for member in self.members:
            tensors = [t for t in {id(t): t for t in (*member.parameters, *member.buffers)}.values() if t.numel()]
            if len({t.untyped_storage().data_ptr() for t in tensors}) < len(tensors):
                raise Untraceable("two of a member's parameters or buffers share memory")
