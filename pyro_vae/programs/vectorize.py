r"""K particles of a program that does not broadcast: as K · N rows, or one after the other; what comes out looks the same.

Under a plate of particles on the left, ``softmax(dim=1)``, ``x.view(len(x), ...)``, BatchNorm1d, a packed RNN or attention
mean something else than they do on N rows, or fail. Run on K · N rows, or K times on N, they mean what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, constraints, kl_divergence, register_kl

from pyro_vae.common.pyro_private import mask_of
from pyro_vae.errors import ProgramError

from .plates import WITHOUT_SIZE, Plates, frame_of_rows
from .sites import PARTICLES, has_density, with_values

Mode = Literal["plate", "rows", "loop"]
MODES: tuple[Mode, ...] = ("plate", "rows", "loop")  # the fastest first


@dataclass(frozen=True)
class Vectorizing:
    """How each program is run for K particles: under a plate of them, as K · N rows, or one after the other."""

    model: Mode = "plate"
    guide: Mode = "plate"
    random_guide: bool = False  # the guide draws numbers outside of its sites, on the way to its parameters
    guide_reads: str = ""  # where the guide's density of a row is another beside other rows; empty where it is not

    def __str__(self) -> str:
        """Name the mode, or both where they differ.

        Example:
            >>> str(Vectorizing()), str(Vectorizing("rows", "plate"))
            ('plate', 'model as rows, guide as plate')
        """
        return self.model if self.model == self.guide else f"model as {self.model}, guide as {self.guide}"


@dataclass(frozen=True)
class Grouping:
    """Tensors of K · N rows, ``(..., K N, ..., *event)``, as K particles of N rows, ``(K, ..., N, ..., *event)``."""

    plates: Plates
    particles: int  # K
    taken: int = 0  # dimensions on the right of a batch shape that a product around the distribution makes events of

    def split(self, values: Tensor, event_dim: int = 0) -> Tensor:
        """``(..., K N, ..., *event)`` as ``(K, ..., N, ..., *event)``; what is the same for all rows gets K = 1."""
        events = event_dim + self.taken
        dim, padded = self.plates.dim - events, pad(values, self.plates.nesting + events)
        if padded.shape[dim] == 1:
            return padded.unsqueeze(0)
        return padded.unflatten(dim, (self.particles, -1)).movedim(dim - 1, 0)

    def merge(self, values: Tensor, event_dim: int = 0) -> Tensor:
        """``(K, ..., N, ..., *event)`` as ``(..., K N, ..., *event)``."""
        events = event_dim + self.taken
        dim, padded = self.plates.dim - events, pad(values, 1 + self.plates.nesting + events)
        return padded.expand(self.particles, *padded.shape[1:]).movedim(0, dim - 1).flatten(dim - 1, dim)

    def batch_shape(self, shape: Sequence[int]) -> list[int]:
        """Return the batch shape ``[K, ..., N, ...]`` of a distribution of K · N rows."""
        padded = [1] * (self.plates.nesting + self.taken - len(shape)) + list(shape)
        if padded[dim := self.plates.dim - self.taken] != 1:
            padded[dim] //= self.particles
        return [self.particles, *padded]


def pad(values: Tensor, dims: int) -> Tensor:
    """Add dimensions of size 1 on the left, up to `dims` in all."""
    return values.reshape((1,) * (dims - values.dim()) + values.shape) if values.dim() < dims else values


class ParticleDistribution(TorchDistribution):
    """Distributions of K · N rows each, as one of all their particles: batch shape ``(K, ..., N, ...)``."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    codes_on_the_right = (
        0  # dimensions of a batch shape beside the rows' (:class:`~pyro_vae.programs.by_code.CodeDistribution`)
    )

    def __init__(self, parts: Sequence[Any], grouping: Grouping) -> None:
        self.parts, self.grouping = tuple(parts), grouping
        first, *inner = grouping.batch_shape(parts[0].batch_shape)
        batch = torch.Size([first * len(parts), *inner])
        super().__init__(batch, parts[0].event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(getattr(part, "has_rsample", False) for part in self.parts)

    @property
    def support(self) -> Any:
        return self.split_support([part.support for part in self.parts])

    def split_support(self, supports: Sequence[Any]) -> Any:
        """Return one support of all particles; of bounds that belong to rows, each particle and row gets its own."""
        return split_support(supports, self.grouping, self.event_dim)

    @property
    def mean(self) -> Tensor:
        return self.joined(lambda part: part.mean, self.event_dim)

    @property
    def variance(self) -> Tensor:
        return self.joined(lambda part: part.variance, self.event_dim)

    def entropy(self) -> Tensor:
        return self.joined(lambda part: part.entropy())

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw as each part is drawn by ``pyro.sample``: with a path to its parameters where it has one."""
        return self.joined(lambda part: part(*args, **kwargs), self.event_dim).expand(self.shape())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return torch.stack([self() for _ in range(shape.numel())]).reshape(shape + self.shape())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.scored(value, lambda part, own: part.log_prob(own))

    def scored(self, value: Tensor, density: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Score a value part by part, each by ``density(part, its values)``."""
        full, _ = torch.broadcast_tensors(value, value.new_empty(()).expand(self.shape()))
        pieces = full.split(self.grouping.particles, 0)
        merged = [as_shaped(self.grouping.merge(p, self.event_dim), f) for p, f in zip(pieces, self.parts, strict=True)]
        terms = [self.grouping.split(density(part, own)) for part, own in zip(self.parts, merged, strict=True)]
        return torch.cat(terms).expand(self.batch_shape)

    def joined(self, of: Callable[[Any], Tensor], event_dim: int = 0) -> Tensor:
        """Join a quantity of all parts, ``(K, ..., N, ..., *event)``."""
        return join([self.grouping.split(of(part), event_dim) for part in self.parts])


@register_kl(ParticleDistribution, ParticleDistribution)
def kl_of_parts(q: ParticleDistribution, p: ParticleDistribution) -> Tensor:
    """KL(q ‖ p) part by part, where there is a closed form."""
    pairs = zip(q.parts, p.parts, strict=True)
    return join([q.grouping.split(kl_divergence(*pair)) for pair in pairs]).expand(q.batch_shape)


def as_shaped(value: Tensor, fn: Any) -> Tensor:
    """Return a value as the distribution of K · N rows draws it: without the dimensions of plates that it does not lie in."""
    shape = fn.shape()
    return value.reshape(shape) if value.numel() == shape.numel() else value


def join(pieces: Sequence[Tensor]) -> Tensor:
    """Join particles on the left; pieces that lack dimensions are broadcast beside the others."""
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat(torch.broadcast_tensors(*pieces) if len({p.shape for p in pieces}) > 1 else list(pieces))


PARAMETERS: dict[type, dict[str, int]] = {  # that make the distribution again, with their event dimensions
    dist.Normal: {"loc": 0, "scale": 0},
    dist.Laplace: {"loc": 0, "scale": 0},
    dist.StudentT: {"df": 0, "loc": 0, "scale": 0},
    dist.MultivariateNormal: {"loc": 1, "scale_tril": 2},
    dist.Bernoulli: {"logits": 0},
    dist.Categorical: {"logits": 1},
}


def regroup(parts: Sequence[Any], grouping: Grouping) -> Any:
    """Make one distribution ``(K, ..., N, ...)`` of those of K · N rows; products and simple families keep their own class."""
    first, kind = parts[0], type(parts[0])
    if isinstance(first, Independent):
        taken = first.reinterpreted_batch_ndims
        base = regroup([p.base_dist for p in parts], replace(grouping, taken=grouping.taken + taken))
        return dist.Independent(base, taken)
    if isinstance(first, MaskedDistribution):
        base, masks = regroup([p.base_dist for p in parts], grouping), list(map(mask_of, parts))
        if all(isinstance(mask, bool) for mask in masks):
            return MaskedDistribution(base, all(masks))
        return MaskedDistribution(base, join([grouping.split(mask) for mask in masks]).expand(base.batch_shape))
    parameters = PARAMETERS.get(kind)
    if parameters and all(name in vars(p) for p in parts for name in parameters):
        given = {n: join([grouping.split(getattr(p, n), dims) for p in parts]) for n, dims in parameters.items()}
        return kind(**given, validate_args=False)
    return ParticleDistribution(parts, grouping)


def split_support(supports: Sequence[Any], grouping: Grouping, event_dim: int) -> Any:
    """Return one constraint of all particles: bounds ``(..., K N, ...)`` become ``(K, ..., N, ...)``."""
    attributes = vars(supports[0])
    moved: dict[str, Any] = {}
    for name, value in attributes.items():
        each = [getattr(s, name) for s in supports]
        if isinstance(value, constraints.Constraint):
            moved[name] = split_support(each, grouping, event_dim)
        elif isinstance(value, Tensor) and value.dim():
            moved[name] = join([grouping.split(bound, event_dim - supports[0].event_dim) for bound in each])
    support = copy(supports[0])
    support.__dict__.update(moved)
    return support


class RowsAsParticles(Messenger):
    """Show a program of K · N rows to the handlers around it as one of K particles of N rows.

    Enter it before all others: they see, and put in, values ``(K, ..., N, ..., *event)``; the program gets ``(..., K N, ...)``.
    """

    def __init__(self, grouping: Grouping) -> None:
        super().__init__()
        self.grouping, self.kept = grouping, dict[str, dict[str, Any]]()
        self.fns = dict[str, Any]()  # the distributions of K · N rows, by site

    def _pyro_sample(self, msg: Any) -> None:
        name, fn, stack = msg["name"], msg["fn"], msg["cond_indep_stack"]
        data = next((f for f in stack if f.name == self.grouping.plates.data and f.vectorized), None)
        if data is None or not has_density(msg):
            return
        self.kept[name] = {key: msg[key] for key in ("fn", "mask", "scale", "cond_indep_stack")}
        self.fns[name] = fn
        msg["fn"] = regroup([fn], self.grouping)
        if isinstance(msg["value"], Tensor):
            msg["value"] = self.grouping.split(msg["value"], fn.event_dim)
        msg["mask"], msg["scale"] = (self.by_row(msg[key]) for key in ("mask", "scale"))
        if data.full_size not in (None, data.size):  # each of N rows stands for as many, however many particles it has
            msg["scale"] = msg["scale"] * self.grouping.particles
        frames = [self.frame(f, data) for f in stack]
        msg["cond_indep_stack"] = (
            *frames,
            CondIndepStackFrame(PARTICLES, self.grouping.plates.particles, self.grouping.particles, 0),
        )

    def by_row(self, weight: Any) -> Any:
        return self.grouping.split(weight) if isinstance(weight, Tensor) and weight.dim() else weight

    def frame(self, frame: CondIndepStackFrame, data: CondIndepStackFrame) -> CondIndepStackFrame:
        """Return the data plate, over N rows."""
        if frame is not data or frame.size == WITHOUT_SIZE:
            return frame
        return frame_of_rows(frame, self.grouping.particles)

    def _pyro_post_sample(self, msg: Any) -> None:
        if kept := self.kept.pop(msg["name"], None):
            fn = kept["fn"]
            value = as_shaped(self.grouping.merge(msg["value"], fn.event_dim), fn)
            msg.update(kept, value=value)


def repeated(args: tuple[Any, ...], times: int) -> tuple[Any, ...]:
    """Return the arguments with their N rows `times` over, particle by particle; what has no rows stays."""
    rows = len(args[0]) if args and isinstance(args[0], Tensor) and args[0].dim() else None
    return tuple(
        a.repeat(times, *[1] * (a.dim() - 1)) if isinstance(a, Tensor) and a.dim() and len(a) == rows else a
        for a in args
    )


def joined_traces(traces: Sequence[poutine.Trace], handlers: Sequence[RowsAsParticles]) -> poutine.Trace:
    """Return one trace of the particles of several, each with what its :class:`RowsAsParticles` saw."""
    trace = traces[0].copy()
    for name in handlers[0].fns:
        if not all(name in h.fns for h in handlers):
            raise ProgramError(
                f"site {name!r} is there for some draws only: a program must have the same sites each time."
            )
        nodes: list[Any] = [t.nodes[name] for t in traces]
        fns = [h.fns[name] for h in handlers]
        dims = 1 + handlers[0].grouping.plates.nesting
        value = join([pad(n["value"], dims + fns[0].event_dim) for n in nodes])
        fn, mask = regroup(fns, handlers[0].grouping), joined_masks([n["mask"] for n in nodes], dims)
        trace.nodes[name] = {**nodes[0], "fn": fn, "value": value, "mask": mask}
    return trace


def joined_masks(masks: Sequence[Any], dims: int) -> Any:
    """Return one mask of all particles; as it is where it is no tensor."""
    if not any(isinstance(mask, Tensor) for mask in masks):
        return masks[0]
    device = next(mask.device for mask in masks if isinstance(mask, Tensor))
    tensors: list[Tensor] = [torch.as_tensor(True if mask is None else mask, device=device) for mask in masks]
    return join([pad(mask, dims) for mask in tensors])


def particle_of(at: Any, k: int, of: int) -> Any:
    """Return the latents of particle k of K: of a trace, of values ``(K, ...)`` by site, or of a handler that puts them in."""

    def chosen(value: Any) -> Any:
        return value[k : k + 1] if isinstance(value, Tensor) and value.dim() and len(value) == of else value

    if isinstance(at, poutine.Trace):
        return with_values(at, {n: chosen(s["value"]) for n, s in at.nodes.items() if is_draw(s)})
    if isinstance(at, Mapping):
        return {name: chosen(value) for name, value in at.items()}
    return at if at is None else at.particle(k, of)


def is_draw(site: Any) -> bool:
    """Return whether a node of a trace has a value for each particle; nodes of bare values have no distribution."""
    return site["type"] == "sample" and ("fn" not in site or has_density(site))


def without_rows(at: Any, plates: Plates) -> Any:
    """Return a trace without the row numbers of the data plate, which are others where there are K · N rows."""
    if not isinstance(at, poutine.Trace) or plates.data not in at.nodes:
        return at
    trace = at.copy()
    trace.remove_node(plates.data)
    return trace
