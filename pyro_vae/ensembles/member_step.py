"""One member's step: traced, recorded, or as its programs run."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.common import torch_private
from pyro_vae.programs.pair import without_validation
from pyro_vae.training.engines.flat_graph import FlatGraph, check_traces, trace
from pyro_vae.training.engines.noise_outside import Recorder
from pyro_vae.training.engines.scheduled_values import Answers
from pyro_vae.training.engines.verify import replayed
from pyro_vae.training.step import EagerEngine

from .members import Member

Batch = tuple[Tensor, ...]


def traced(member: Member, batch: Batch) -> FlatGraph:
    """Trace a member's step on a batch, its scheduled numbers as tensors; generators and buffers are as before."""
    answers: Answers = []
    step = member.training.step
    scheduled = member.scheduled_values.traced(step.parameters[0], answers)
    with replayed(member.buffers, batch[0].device), without_validation(), scheduled:
        flat = trace(EagerEngine(step).value, step.parameters, batch)
    flat.answers = answers
    return flat


def traced_twice(member: Member, batch: Batch) -> FlatGraph:
    """Trace a step from two batches; refuse traces that differ, as a number was frozen in them."""
    flat = traced(member, batch)
    check_traces(flat, traced(member, tuple(a.flip(0) for a in batch)), member.buffers)
    return flat


def untraceable(member: Member) -> str | None:
    """Give the reason why no trace could hold a member's step; None if one can."""
    step = member.training.step
    if EagerEngine(step).loss is None:
        return f"{type(step.objective).__name__} reads numbers back at each step"
    hooked = any(torch_private.has_hook(p) for p in step.parameters)
    return "a parameter has a hook on its gradient" if hooked else None


def bare(flat: FlatGraph) -> FlatGraph:
    """Return a graph without its tensors, which differ from member to member."""
    return FlatGraph(flat.module, [], reached=flat.reached)


def record(flat: FlatGraph, batch: Batch, member: Member) -> Recorder:
    """Run a member's graph, and remember its draws; generators and buffers are as before."""
    recorder = Recorder(flat.module)
    with torch.no_grad(), replayed(member.buffers, batch[0].device):
        recorder.run(*batch, *flat.state)
    return recorder


def run_eager(member: Member, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    """Compute a member's loss and gradients as its programs run."""
    step = member.training.step
    for p in step.parameters:
        p.grad = None
    loss = EagerEngine(step)(*batch)
    gradients = [p.grad for p in step.parameters]
    for p in step.parameters:
        p.grad = None
    return loss, gradients
