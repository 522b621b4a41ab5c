"""A run's steps by whole-step graphs: one after the other on a CPU, many to a replay of a CUDA graph.

Each graph is checked against an eager step when it is made and at each epoch, parameters and moments included. A step that is
not finite moves nothing, nor does any after it, until somebody looks: then all is as it was before that step, which is made
again, singly, by who knows what to say of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.finite_checks import choose_finite_check
from pyro_vae.training.precision import whole_step
from pyro_vae.training.shuffle import ShuffledBatches
from pyro_vae.training.step import Step
from pyro_vae.training.training_state import (
    PreStepSnapshot,
    TrainingOptions,
    TrainingState,
    load_noise_states,
)

from .eager_reference import LastLook, eager_step, look_at
from .flat_graph import Unfinished, Untraceable
from .recorded_steps import STEPS, NextStep, RecordedSteps
from .scheduled_values import answers_hold
from .traced import MOST, TRIES, TracedEngine
from .verify import close, replayed, step_disagreement
from .whole_step import WholeStep, WholeStepTracer, inputs_of

SLICE = 0.05  # seconds of steps, after which somebody else has a turn
Loss = Tensor | float


@dataclass(eq=False)
class WholeSteps:
    """Makes steps of a run under torch's own Adam or AdamW, wherever the next batch is a whole one.

    What is not finite is noticed after each step, or, where several are made by one replay, by :meth:`settle`.
    """

    engine: TracedEngine
    data: TrainingData
    options: TrainingOptions
    planned: int  # steps of the run
    compiler: bool = False  # graphs are compiled, once the engine's patience is over
    graphs: list[WholeStep] = field(default_factory=list, init=False)
    proven: set[WholeStep] = field(default_factory=set, init=False)  # graphs that were right once
    due: set[WholeStep] = field(default_factory=set, init=False)  # graphs that are checked when they are next used
    current: WholeStep | None = field(default=None, init=False)  # None: it is asked anew which one is good
    last_look: LastLook | None = field(default=None, init=False)  # None: nothing has been done since
    singly: bool = field(default=False, init=False)  # the next step is not finite, and for others to make

    def __post_init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float32, device=self.data.device)
        self.failed = zero  # 1 from the first bad step on
        self.good = zero.clone()  # steps before it, since the last look
        self.ahead = 0.0  # Adam's count of steps, less the run's count of updates
        recorded = self.engine.name == "graph"
        self.several = RecordedSteps(self.engine, self.data, self.failed, self.good) if recorded else None

    @property
    def step(self) -> Step:
        return self.engine.step

    def start_epoch(self) -> None:
        """Have each graph checked before it is next used: what ran since the last epoch may have changed the programs."""
        self.due, self.current = set(self.graphs), None

    def run(self, order: ShuffledBatches, state: TrainingState, one: bool = False) -> Loss | None:
        """Make the next steps, or just `one` (or one replay); return their summed loss.

        None: the next step is for others to make, and all steps so far are known to be finite.
        """
        total: Loss | None = None
        try:
            if not self.singly and self.possible():
                with torch.no_grad(), whole_step(self.step.precision):
                    total = self.make_steps(order, state, one)
        except Untraceable as why:
            self.settle(order, state)
            self.refuse(str(why))
        if total is None:
            self.settle(order, state)
            self.singly = False
        return total

    def possible(self) -> bool:
        """Return whether the optimizer is one that a graph holds, and has begun, and batches fit into memory."""
        optimizer, fit = self.step.optimizer, self.step.micro_batches.rows is None
        return fit and optimizer is not None and self.step.in_graph(optimizer) and any(optimizer.state.values())

    def make_steps(self, order: ShuffledBatches, state: TrainingState, one: bool) -> Loss | None:
        total: Loss | None = None
        until = time.perf_counter() + SLICE
        order.begin()
        if self.current is None:
            self.settle(order, state)
        while not self.singly and (rows := order.next_rows) is not None and len(rows) == self.data.batch_size:
            whole = self.choose(order, state)
            loss: Loss | None = self.make_replay(whole, order, state)
            loss = self.make_one(whole, order, state) if loss is None else loss
            if loss is None:
                break
            total = loss if total is None else total + loss
            if one or time.perf_counter() > until:
                break
        return total

    def make_one(self, whole: WholeStep, order: ShuffledBatches, state: TrainingState) -> Loss | None:
        """Make one step; return its loss, or None if it is, or one before it was, not finite."""
        if whole in self.due:
            self.settle(order, state)
            if self.singly:
                return None
        self.last_look = self.last_look or look_at(order, state)
        rates = self.rates(state.step)
        numbers = whole.rows_of_numbers(rates, state.updates + 1 + self.ahead)
        self.set_rates(rates)
        state.updates += 1  # before: who is interrupted within the step does not take it for complete
        try:
            make = self.make_checked if whole in self.due else self.compute
            loss = make(whole, order, numbers)
        except Untraceable:
            state.updates -= 1
            raise
        order.taken, state.step = order.taken + 1, state.step + 1
        if self.several:
            self.good += 1 - self.failed
            return torch.where(self.failed > 0, 0.0, loss.double())
        self.settle(order, state)
        return None if self.singly else loss.item()

    def compute(self, whole: WholeStep, order: ShuffledBatches, numbers: Sequence[Sequence[float]]) -> Tensor:
        """Run a graph on the next rows."""
        rows = order.next_rows
        assert rows is not None
        return whole(inputs_of(self.data, whole.draws, rows, order.generator), whole.numbers.new_tensor(numbers))

    def make_replay(self, whole: WholeStep, order: ShuffledBatches, state: TrainingState) -> Tensor | None:
        """Make many steps by one replay; None, and nothing done, where they must go one by one."""
        several = self.several
        rows = order.next_batches(STEPS) if several is not None and whole not in self.due else None
        following = None if rows is None else self.look_ahead(whole, state)  # moves what is scheduled
        if several is None or rows is None or following is None or not several.ready(whole, following):
            return None
        self.last_look = self.last_look or look_at(order, state)
        state.updates += STEPS
        loss = several.replay(rows, following, order.generator)
        order.taken, state.step = order.taken + STEPS, state.step + STEPS
        self.engine.patience -= STEPS - 1
        self.set_rates(following[-1].rates)
        return loss

    def look_ahead(self, whole: WholeStep, state: TrainingState) -> list[NextStep] | None:
        """List what each of the next steps takes; None unless one graph is good for all of them."""
        following = []
        for i in range(STEPS):
            self.options.tell_progress((state.step + i) / self.planned)
            if not answers_hold(whole.flat.answers):
                return None
            rates = self.rates(state.step + i)
            scheduled = [float(getattr(owner, name)) for owner, name in self.engine.scheduled_values.numbers]
            numbers = whole.rows_of_numbers(rates, state.updates + 1 + i + self.ahead)
            following.append(NextStep(numbers, scheduled, rates))
        return following

    def set_rates(self, rates: Sequence[float]) -> None:
        """Leave the learning rates where the optimizer has them."""
        for group, rate in zip(self.step.optimizer.param_groups, rates, strict=True):  # type: ignore[union-attr]
            group["lr"] = rate

    def rates(self, step: int) -> list[float]:
        """Return the groups' learning rates in the step after so many."""
        multiple = self.options.schedule((step + 1) / self.planned)
        return [base * multiple for base in self.step.base_rates]

    # which graph

    def choose(self, order: ShuffledBatches, state: TrainingState) -> WholeStep:
        """Move what is scheduled, and choose the graph of the next step, or make it; raise Untraceable where there is none."""
        self.options.tell_progress(state.step / self.planned)
        self.engine.scheduled_values.refresh()
        self.engine.patience -= 1
        whole = self.current
        if whole is None or self.options.scheduled or whole.compiled != self.compiles:
            whole = self.find() or self.make(order.generator)
            self.current = whole
            self.ahead = whole.count() - state.updates if self.last_look is None else self.ahead
        return whole

    @property
    def compiles(self) -> bool:
        """Whether it is time for a compiler."""
        return self.compiler and self.engine.patience < 0

    def find(self) -> WholeStep | None:
        """Find the graph that is good as things are; drop those of an optimizer's former memory."""
        if reason := self.engine.why_untraceable():
            raise Untraceable(reason)
        optimizer, key = self.step.optimizer, self.engine.setting()
        assert optimizer is not None
        self.graphs = [whole for whole in self.graphs if whole.holds_of(optimizer)]
        return next(
            (w for w in self.graphs if (w.key, w.compiled) == (key, self.compiles) and answers_hold(w.flat.answers)),
            None,
        )

    def make(self, generator: torch.Generator) -> WholeStep:
        """Trace the step as things are, and compile it if it is time."""
        if len(self.graphs) >= MOST:
            raise Untraceable(f"more than {MOST} kinds of batch or of changing numbers")
        start, engine, compiles = time.perf_counter(), self.engine, self.compiles
        tracer = WholeStepTracer(engine, self.data, self.failed, generator, engine.setting(), compiles)
        with torch.enable_grad():
            whole = tracer.trace()
        seconds = time.perf_counter() - start
        engine.log.append(
            f"traced {whole.flat.operations} operations in {seconds:.1f} s, for {self.data.batch_size} rows"
        )
        if compiles and not self.compile(whole, tracer):
            return self.find() or self.make(generator)
        self.graphs.append(whole)
        self.due.add(whole)
        return whole

    def compile(self, whole: WholeStep, tracer: WholeStepTracer) -> bool:
        """Put a graph through Inductor; False where the step goes on as it was traced."""
        start = time.perf_counter()
        try:
            with replayed([], self.data.device):
                whole.flat.run = self.engine.compile(whole.flat, [*tracer.example(whole.draws), whole.numbers])
        except Unfinished as why:
            self.compiler = False
            self.engine.log.append(f"the trace goes on as it is: {why}")
            return False
        self.engine.log.append(f"compiled in {time.perf_counter() - start:.1f} s")
        return True

    def refuse(self, why: str) -> None:
        """Leave all steps to the engine from here on."""
        self.engine.whole_refused = why
        self.engine.log.append(f"no whole steps: {why}")
        self.graphs.clear()
        self.due.clear()
        self.current = None
        if (optimizer := self.step.optimizer) is not None:
            self.step.finite_check = choose_finite_check(self.data.device, optimizer, self.step.immediate)

    # whether it is right

    def make_checked(self, whole: WholeStep, order: ShuffledBatches, numbers: Sequence[Sequence[float]]) -> Tensor:
        """Make a step of the graph after the same by eager: refuse it if they differ, trace anew if it is an old graph."""
        engine, generator = self.engine, order.generator.get_state()
        before = PreStepSnapshot([*whole.moved, *engine.buffers, self.failed], self.data.device)
        moved = [copy for _, copy in before.buffers[: len(whole.moved)]]
        eager = eager_step(engine, self.data, whole, order)
        before.restore()
        order.generator.set_state(generator)
        loss = self.compute(whole, order, numbers)
        off, what = step_disagreement(whole.groups, numbers, moved, eager, loss, engine.rounded)
        if what is None and eager.finite and not close(eager.buffers, engine.buffers):
            what = "it leaves other buffers (batch statistics)"
        if what is None:
            self.due.discard(whole)
            self.proven.add(whole)
            engine.checks, engine.largest_difference = engine.checks + 1, max(off, engine.largest_difference)
            return loss
        before.restore()
        order.generator.set_state(generator)
        self.give_up(whole, what)
        self.current = self.make(order.generator)
        return self.make_checked(self.current, order, numbers)

    def give_up(self, whole: WholeStep, what: str) -> None:
        """Drop a graph that is not the step any more; raise Untraceable if it never was, or this has happened too often."""
        engine, why = self.engine, f"the captured step is not the eager one: {what}"
        if whole in self.proven and engine.failed_checks >= TRIES:
            engine.fall_back(why)
        if whole not in self.proven or engine.eager_reason:
            raise Untraceable(why)
        engine.failed_checks += 1
        engine.log.append(f"{what}: something changed between epochs, traced anew")
        self.graphs.remove(whole)

    # what was not finite

    def settle(self, order: ShuffledBatches, state: TrainingState) -> None:
        """Look whether all steps were finite; return to the first that was not, which the next step is."""
        look, self.last_look = self.last_look, None
        if look is None or not self.failed.item():
            if self.several is not None:
                self.good.zero_()
            return
        good = int(self.good.item())
        state.step, state.updates, order.taken = look.step + good, look.updates + good, look.taken
        load_noise_states(look.noise, self.data.device)
        order.generator.set_state(look.transform)
        for _ in range(good):  # which moves nothing, but draws what these steps drew
            whole = self.current or self.find() or self.make(order.generator)
            with torch.no_grad():
                self.compute(whole, order, [[1.0] * 4 for _ in whole.groups])
            order.taken += 1
        self.failed.zero_()
        self.good.zero_()
        self.singly = True
