"""Steps from a trace of the programs, or from a compiled or recorded trace; eager where that is not safe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pyro_vae.common.inductor import compile_flat
from pyro_vae.programs.pair import without_validation
from pyro_vae.training.precision import rounds
from pyro_vae.training.step import EagerEngine, Engine, Step
from pyro_vae.training.training_state import PreStepSnapshot, buffers_of

from .cuda_graph import record
from .flat_graph import FlatGraph, Result, Unfinished, Untraceable, check_traces, trace
from .graph_tally import GraphTally, batch_key, graph_name
from .kernel_choice import KernelChoice
from .parts_at_once import AtOnce
from .scheduled_values import Answers, ScheduledValues, answers_hold
from .step_parts import AGREED, ANEW, AS_TRACED, EAGER, StepParts
from .trace_setting import kind_of, layout_of, setting_of, why_untraceable
from .verify import close, disagreement, is_kink, kink_alone, replayed

Accelerate = Callable[[FlatGraph, Sequence[Tensor]], Callable[..., Any]]
ACCELERATORS: dict[str, Accelerate] = {"compile": compile_flat, "graph": record}
MADE = {"compile": "compiled", "graph": "recorded as a CUDA graph"}
RARE = 8  # times in an epoch that a further kind of batch is met before it is traced, too
TRIES = 3  # audits that may fail before the run is eager
ELSEWHERE = "another process {} at this step"


@dataclass(eq=False)
class TracedEngine(Engine):
    """Loss and gradients from a flat graph, one for each kind of batch; eager, with the reason, where that is not safe.

    A graph is good for one key: shapes, dtypes and devices of the batch, modes of the modules, which parameters are
    trained, the objective's options, autocast, precision and threads. It is made twice from other rows and noise, and
    compared; then run against the eager step on the same state and noise. That is done anew at each epoch
    (:meth:`start_epoch`), for what was changed between them.

    After `patience` steps (a run that is stopped soon does not wait for a compiler), `make_faster` makes a faster function
    of the graph for the kind of batch that is met first: by Inductor, or as a CUDA graph.
    """

    step: Step
    modules: Sequence[nn.Module]
    scheduled_values: ScheduledValues
    make_faster: Accelerate | None = None
    name: str = "trace"
    patience: int = 0
    kernels: KernelChoice | None = field(default=None, init=False)  # None: the library's
    graphs: dict[Any, list[FlatGraph]] = field(default_factory=dict, init=False)
    tally: GraphTally = field(default_factory=GraphTally, init=False)  # of these
    whole_tally: GraphTally = field(default_factory=GraphTally, init=False)  # of graphs of whole steps
    seen: dict[str, int] = field(default_factory=dict, init=False)  # kinds of batch, this epoch
    often: set[str] = field(default_factory=set, init=False)  # kinds that were traced though not met first
    due: set[Any] = field(default_factory=set, init=False)  # keys whose graphs are checked when they are next met
    main: Any = field(default=None, init=False)  # the key that is met first
    first_kind: str = field(default="", init=False)  # its kind of batch
    eager_reason: str | None = field(default=None, init=False)
    whole_refused: str | None = field(default=None, init=False)  # why no whole steps are made of graphs
    log: list[str] = field(default_factory=list, init=False)
    checks: int = field(default=0, init=False)
    failed_checks: int = field(default=0, init=False)
    largest_difference: float = field(default=0.0, init=False)
    several: StepParts | None = field(default=None, init=False)  # the step that is made now, if it is of several parts
    verdict: int = field(default=AGREED, init=False)  # on that step

    def __post_init__(self) -> None:
        self.eager = EagerEngine(self.step)
        self.at_once = AtOnce(self)

    def __call__(self, *batch: Tensor) -> Tensor:
        if self.eager_reason or (self.step.optimizer is not None and self.step.in_graph(self.step.optimizer)):
            return self.eager(*batch)  # in a graph are whole steps, and this is one of the few beside them
        self.meet(kind_of(batch))
        return self.compute(*batch)

    def meet(self, kind: str) -> None:
        """Count a batch of this kind."""
        self.first_kind = self.first_kind or kind
        self.seen[kind] = self.seen.get(kind, 0) + 1

    @contextmanager
    def one_step(self, parts: Sequence[Sequence[Tensor]]) -> Iterator[None]:
        """Take the calls of :meth:`compute` inside for one step of these parts, of which other processes compute some.

        What decides how a step is computed counts all parts, and `patience` steps, a graph is traced from the first part of
        its kind, and one that is due is checked on every part, whoever has it: so it is the same on every process. What a
        graph that fails on one of them leads to is `verdict`, which all follow (:meth:`follow`).
        """
        several = self.several = StepParts.of(parts)
        self.verdict = AGREED
        for kind in several.kinds:
            self.meet(kind)
            if kind == self.first_kind or self.seen[kind] >= RARE:
                self.often.add(kind)
        patience = self.patience
        self.patience = sys.maxsize if patience > 0 else 0
        try:
            yield
        finally:
            self.patience, self.several = patience - 1, None
            self.due -= several.checked

    def untraced(self, own: range) -> list[int]:
        """Number parts of this step, one of each kind, that this process does not compute, and has no graph for.

        It traces them all the same: so each process has the graphs that one alone would have, and all come to the limit of
        their number at the same step.
        """
        several = self.several
        if self.eager_reason or several is None:
            return []
        self.scheduled_values.refresh()
        others = [number for number in several.firsts_of_others(own) if several.kinds[number] in self.often]
        return [number for number in others if not self.has_graph(several.parts[number])]

    def has_graph(self, batch: tuple[Tensor, ...]) -> bool:
        """Return whether a graph holds for such a batch as the scheduled numbers are now."""
        return self.graph_of(self.key(batch)) is not None

    def graph_of(self, key: Any) -> FlatGraph | None:
        """Find the graph that holds for a key as the scheduled numbers are now."""
        self.scheduled_values.refresh()
        return next((flat for flat in self.graphs.get(key, ()) if answers_hold(flat.answers)), None)

    def is_due(self, key: Any, flat: FlatGraph) -> bool:
        """Return whether a graph is to be checked, or made faster, at the next batch of its key."""
        return key in self.due or (self.is_slow(key, flat) and self.patience <= 0)

    def is_slow(self, key: Any, flat: FlatGraph) -> bool:
        """Return whether something faster could be made of a graph."""
        return self.make_faster is not None and flat.run is None and key == self.main

    def follow(self, verdict: int) -> bool:
        """Do what the worst verdict of any process asks for; return whether the step is to be computed anew, by all."""
        own, self.verdict = self.verdict, AGREED
        if verdict == EAGER and self.eager_reason is None:
            self.fall_back(ELSEWHERE.format("left its graph"))
        if verdict == AS_TRACED and own != AS_TRACED:
            self.make_faster = None
            self.log.append(f"the trace goes on as it is: {ELSEWHERE.format('could not make it faster')}")
        if verdict == ANEW:
            self.failed_checks += 1
            self.log.append(
                f"something changed between epochs, traced anew{'' if own else ', as another process says'}"
            )
        self.graphs.clear()
        self.tally.clear()
        return verdict != AGREED

    def compute(self, *batch: Tensor) -> Tensor:
        """Compute a batch that was counted."""
        if self.eager_reason:
            return self.eager(*batch)
        key, kind = self.key(batch), kind_of(batch)
        flat = self.graph_of(key)
        try:
            if flat is None:
                return self.trace_kind(key, kind, batch)
            self.accelerate(key, flat, batch)
            return self.check(key, flat, batch) if key in self.due else self.assign_gradients(*flat(*batch))
        except Untraceable as why:
            self.fall_back(str(why))
            self.verdict = EAGER
            return self.run_eager(batch)[0]

    def trace_kind(self, key: Any, kind: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Make a graph for a batch that has none, unless its kind is rare."""
        if kind == self.first_kind:
            self.main = self.main or key
        if key != self.main and key not in self.graphs and kind not in self.often and self.seen[kind] < RARE:
            return self.eager(*batch)
        if reason := self.why_untraceable():
            raise Untraceable(reason)
        self.tally.check_room()
        flat = self.trace_twice(batch if self.several is None else self.several.first_of(kind))
        flat.name = graph_name(batch_key(batch), self.setting(type), answers=flat.answers)
        self.tally.add(flat.name)
        if self.several is not None:
            self.several.fresh.append(flat)
        self.accelerate(key, flat, batch)
        loss = self.check(key, flat, batch)
        if self.several is not None:
            self.due.add(key)  # on the parts that come
        self.graphs.setdefault(key, []).append(flat)
        self.often.add(kind)
        return loss

    def trace_twice(self, batch: tuple[Tensor, ...]) -> FlatGraph:
        """Trace the step twice, from other rows and noise; refuse traces that differ, as a number was frozen in them."""
        start = time.perf_counter()
        flat = self.traced(batch)
        check_traces(flat, self.traced(tuple(a.flip(0) for a in batch)), self.buffers)
        seconds = time.perf_counter() - start
        self.log.append(f"traced {flat.operations} operations in {seconds:.1f} s, for {len(batch[0])} rows")
        return flat

    def traced(self, batch: tuple[Tensor, ...]) -> FlatGraph:
        answers: Answers = []
        parameters = self.step.parameters
        scheduled = self.scheduled_values.traced(parameters[0], answers)
        with replayed(self.buffers, batch[0].device), without_validation(), scheduled:
            flat = trace(self.eager.value, parameters, batch)
        flat.answers = answers
        return flat

    def accelerate(self, key: Any, flat: FlatGraph, batch: tuple[Tensor, ...]) -> None:
        """Make something faster of the main graph, once it is time; it is checked before it is used."""
        self.patience -= 1
        if self.make_faster is None or not self.is_slow(key, flat) or self.patience >= 0:
            return
        start = time.perf_counter()
        try:
            with replayed(self.buffers, batch[0].device):
                flat.run = self.make_faster(flat, tuple(a.flip(0) for a in batch))  # not the batch of its check
        except Unfinished as why:
            self.make_faster = None
            self.verdict = max(self.verdict, AS_TRACED)
            self.log.append(f"the trace goes on as it is: {why}")
            return
        self.log.append(f"{MADE[self.name]} in {time.perf_counter() - start:.1f} s")
        self.due.add(key)

    def compile(self, flat: FlatGraph, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Put a graph through Inductor, with kernels chosen by timing where that was asked for."""
        plain = ACCELERATORS["compile"]
        return plain(flat, inputs) if self.kernels is None else self.kernels.compile(plain, flat, inputs)

    def check(self, key: Any, flat: FlatGraph, batch: tuple[Tensor, ...]) -> Tensor:
        """Run a step of the graph after the same by eager: refuse it if they differ, trace anew if it is an old graph."""
        several = self.several
        if several is None:
            self.due.discard(key)
        else:
            several.checked.add(key)
        with replayed(self.buffers, batch[0].device):
            eager = self.run_eager(batch)
            eager_buffers = [b.clone() for b in self.buffers]
        before = PreStepSnapshot(self.buffers, batch[0].device)
        captured = flat(*batch)
        off, what = disagreement(eager, captured, self.rounded)
        same_buffers = close(eager_buffers, self.buffers)
        if what is None and not same_buffers:
            what = "it leaves other buffers (batch statistics)"
        if what is None:
            self.checks, self.largest_difference = self.checks + 1, max(off, self.largest_difference)
            return self.assign_gradients(*captured)
        if is_kink(what) and same_buffers and self.kink_alone(flat, batch):
            self.checks += 1
            return self.assign_gradients(*captured)
        before.restore()
        fresh = several is not None and flat in several.fresh
        if fresh or flat not in self.graphs.get(key, ()) or self.failed_checks >= TRIES:
            raise Untraceable(f"the captured step is not the eager one: {what}")
        if several is not None:  # all parts of this step, by all processes
            self.verdict = max(self.verdict, ANEW)
            return self.assign_gradients(*eager)
        self.failed_checks += 1
        self.log.append(f"{what}: something changed between epochs, traced anew")
        for old in self.graphs.pop(key):
            self.tally.drop(old.name)
        return self.trace_kind(key, kind_of(batch), batch)

    def kink_alone(self, flat: FlatGraph, batch: tuple[Tensor, ...]) -> bool:
        """Return whether a graph's gradient differs by kinks of some rows alone; buffers and noise are as before."""

        def look(rows: Tensor) -> str | None:
            some = tuple(a[rows.to(a.device)] for a in batch)
            with replayed(self.buffers, some[0].device):
                eager = self.run_eager(some)
            with replayed(self.buffers, some[0].device):
                return disagreement(eager, flat(*some), self.rounded)[1]

        return kink_alone(len(batch[0]), look)

    def run_eager(self, batch: tuple[Tensor, ...]) -> Result:
        """Run the eager step, whatever another has left on the parameters."""
        for p in self.step.parameters:
            p.grad = None
        loss = self.eager(*batch)
        return loss, [p.grad for p in self.step.parameters]

    def assign_gradients(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
        """Leave the gradients where the optimizer looks for them."""
        for p, gradient in zip(self.step.parameters, gradients, strict=True):
            p.grad = gradient
        return loss

    def start_epoch(self) -> None:
        """Have each graph checked before it is next used: what ran since the last epoch may have changed the programs."""
        self.due = set(self.graphs)
        self.seen.clear()
        self.at_once.start_epoch()

    def state(self) -> dict[str, Any]:
        """Return which kinds of batch are traced, and what decides when others are, and when the compiler is called."""
        kinds = {"seen": dict(self.seen), "often": sorted(self.often), "first": self.first_kind}
        kinds |= {"graphs": self.tally.names, "whole graphs": self.whole_tally.names}
        return kinds | {"patience": self.patience, "refused": self.eager_reason, "whole": self.whole_refused}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over decisions, not traces: these are made anew, and compute the same to the bit."""
        self.seen, self.often, self.first_kind = dict(state["seen"]), set(state["often"]), str(state["first"])
        self.patience, self.whole_refused = int(state["patience"]), state.get("whole")
        self.tally.load(state.get("graphs", ()))  # an older checkpoint has none
        self.whole_tally.load(state.get("whole graphs", ()))
        if state["refused"] is not None:
            self.fall_back(str(state["refused"]))

    @property
    def notes(self) -> list[str]:
        """List what was traced, checked and refused."""
        choice = [] if self.kernels is None else self.kernels.notes
        checked = f"checked against eager {self.checks} times: off by {self.largest_difference:.1g} at most"
        return [*self.log, *choice, *([checked] if self.checks else [])]

    def key(self, batch: tuple[Tensor, ...]) -> Any:
        """Describe all that a graph is traced under: it is good for batches with the same key."""
        return layout_of(batch), *self.setting()

    def setting(self, told: Callable[[Any], Any] = id) -> tuple[Any, ...]:
        """Describe what a graph is traced under beside its batch; objects as `told`, by their type in any process alike."""
        return setting_of(self.step, self.modules, told)

    @property
    def rounded(self) -> bool:
        """Whether products are rounded to fewer bits than float32 has."""
        return rounds(self.step.precision)

    @property
    def buffers(self) -> list[Tensor]:
        return buffers_of(self.modules)

    def why_untraceable(self) -> str | None:
        """Give the reason why no trace could hold this run; None if one can."""
        return why_untraceable(self.eager, self.scheduled_values)

    def fall_back(self, reason: str) -> None:
        """Run eager from here on."""
        self.eager_reason = reason
        self.graphs.clear()
        self.tally.clear()
        self.log.append(f"eager from here on: {reason}")
