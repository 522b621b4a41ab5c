"""A run's steps by whole-step graphs: one after the other on a CPU, many to a replay of a CUDA graph.

Each graph is checked against an eager step when it is made and at each epoch, parameters and moments included. On a CPU a step
that is not finite moves nothing. On a GPU nobody asks until much is done: then all returns to where somebody last looked, and
is made again in shorter stretches, up to the step that is not finite, which is made singly by who knows what to say of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.fused_adam import take_step
from pyro_vae.training.precision import whole_step
from pyro_vae.training.shuffle import ShuffledBatches
from pyro_vae.training.step import Step
from pyro_vae.training.training_state import PreStepSnapshot, TrainingOptions, TrainingState

from .beside_eager import BesideEager
from .eager_reference import LastLook, eager_step, look_at, loss_and_gradients
from .flat_graph import Untraceable
from .recorded_steps import STEPS, RecordedSteps
from .step_graphs import StepGraphs
from .step_numbers import StepNumbers
from .traced import TracedEngine
from .verify import Comparison, is_kink
from .whole_step import WholeStep, moments_of

SLICE = 0.05  # seconds of steps, after which somebody else has a turn
ROOM = 8192  # steps without a look whether all of them were finite
BEHIND = 12 * STEPS  # steps that a GPU is given before it is given the check of the first of them


@dataclass(eq=False)
class WholeSteps:
    """Makes steps of a run under torch's own Adam or AdamW, wherever the next batch is a whole one.

    What is not finite is noticed after each step, or, where several are made by one replay, by :meth:`settle`: at the latest
    after :data:`ROOM` steps, and then, closer and closer, until it is the next step.
    """

    engine: TracedEngine
    data: TrainingData
    options: TrainingOptions
    planned: int  # steps of the run
    compiler: bool = False  # graphs are compiled, once the engine's patience is over
    current: WholeStep | None = field(default=None, init=False)  # None: it is asked anew which one is good
    last_look: LastLook | None = field(default=None, init=False)  # None: nothing has been done since
    room: int = field(default=ROOM, init=False)  # steps until the next look
    unchecked: WholeStep | None = field(default=None, init=False)  # its check is of the first step since the last look
    comparison: Comparison | None = field(default=None, init=False)  # of that step, made and not waited for yet
    promptly: bool = field(default=False, init=False)  # its next check is not put off
    singly: bool = field(default=False, init=False)  # the next step is not finite, and for others to make

    def __post_init__(self) -> None:
        self.failed = torch.zeros((), dtype=torch.float32, device=self.data.device)  # 1 from the first bad step on
        self.beside = BesideEager(self.engine, self.data)
        self.numbers = StepNumbers(self.engine, self.options, self.planned)
        recorded = self.engine.name == "graph"
        self.several = RecordedSteps(self.engine, self.data, self.failed) if recorded else None
        self.graphs = StepGraphs(self.engine, self.data, self.failed, not recorded, self.compiler)

    @property
    def step(self) -> Step:
        return self.engine.step

    def start_epoch(self) -> None:
        """Have each graph checked before it is next used: what ran since the last epoch may have changed the programs."""
        self.graphs.due, self.current = set(self.graphs.held), None

    def run(self, order: ShuffledBatches, state: TrainingState, one: bool = False) -> bool:
        """Make the next steps, or just `one` (or one replay); add their losses to the epoch's.

        False: the next step is for others to make, and all steps so far are known to be finite.
        """
        while True:
            made = False
            try:
                if not self.singly and self.possible():
                    with torch.no_grad(), whole_step(self.step.precision):
                        made = self.make_steps(order, state, one)
            except Untraceable as why:
                self.settle(order, state)
                self.graphs.refuse(str(why))
                self.current = None
            if made and self.room == ROOM and self.since_look(state) < ROOM:
                return True
            if self.settle(order, state) and not self.singly:
                continue  # with less room
            made, self.singly = made and not self.singly, False
            return made

    def possible(self) -> bool:
        """Return whether the optimizer is one that a graph holds, and has begun, and batches fit into memory."""
        optimizer, fit = self.step.optimizer, self.step.micro_batches.rows is None
        return fit and optimizer is not None and self.step.in_graph(optimizer) and any(optimizer.state.values())

    def make_steps(self, order: ShuffledBatches, state: TrainingState, one: bool) -> bool:
        """Make steps until it is somebody else's turn; False where none could be made."""
        made, until = False, time.perf_counter() + SLICE
        order.begin()
        if self.current is None:
            self.settle(order, state)
        while not self.singly and order.full_left:
            whole = self.choose(order, state)
            self.check_later(whole, order, state)
            if not self.make_replay(whole, order, state) and not self.make_one(whole, order, state):
                break
            made = True
            if self.unchecked is not None and self.comparison is None and self.since_look(state) >= BEHIND:
                self.check_behind(order, state)
            if one or time.perf_counter() > until or self.since_look(state) >= self.room:
                return True
        return self.make_last(order, state) or made

    def make_last(self, order: ShuffledBatches, state: TrainingState) -> bool:
        """Make the pass's last, smaller step by the programs, behind what a GPU has not made yet; False if it is not next."""
        rows = order.next_rows
        if self.several is None or self.last_look is None or order.full_left or rows is None or self.singly:
            return False
        if self.unchecked is not None and self.comparison is None:
            self.check_behind(order, state)
        self.numbers.tell_progress(state.step)
        self.numbers.set_rates(self.numbers.rates(state.step))
        state.updates += 1
        loss, _ = loss_and_gradients(self.engine, self.data, order)
        take_step(self.step.optimizer)  # type: ignore[arg-type]
        for p in self.step.parameters:
            p.grad = None
        order.taken, state.step = order.taken + 1, state.step + 1
        state.position.loss_sum = state.position.loss_sum + loss.double()
        return True

    def make_one(self, whole: WholeStep, order: ShuffledBatches, state: TrainingState) -> bool:
        """Make one step; False if it is not finite, or one before it was not."""
        if whole in self.graphs.due and self.settle(order, state):
            return not self.singly
        self.look(order, state)
        rates = self.numbers.rates(state.step)
        numbers = self.numbers.of_update(whole, rates, state.updates)
        self.numbers.set_rates(rates)
        state.updates += 1  # before: who is interrupted within the step does not take it for complete
        try:
            loss = (self.make_checked if whole in self.graphs.due else self.beside.compute)(whole, order, numbers)
        except Untraceable:
            state.updates -= 1
            raise
        if loss is None:
            state.updates, self.last_look, self.singly = state.updates - 1, None, True
            return False
        order.taken, state.step = order.taken + 1, state.step + 1
        if self.several is None:
            if self.settle(order, state):
                return False
            loss = loss.item()  # type: ignore[assignment]
        state.position.loss_sum = state.position.loss_sum + (loss.double() if isinstance(loss, Tensor) else loss)
        return True

    def make_replay(self, whole: WholeStep, order: ShuffledBatches, state: TrainingState) -> bool:
        """Make some steps by one replay; False, and nothing done, where they must go one by one."""
        several = self.several
        if several is None or whole in self.graphs.due:
            return False
        most = min(STEPS, order.full_left, self.room - self.since_look(state))
        following = self.numbers.look_ahead(whole, state, 2 ** (most.bit_length() - 1))  # moves what is scheduled
        if following is None or not several.ready(whole, following):
            return False
        self.look(order, state)
        count = len(following)
        state.updates += count
        loss = several.replay(order.next_batches(count), following, order.generator)
        order.taken, state.step = order.taken + count, state.step + count
        state.position.loss_sum = state.position.loss_sum + loss
        self.engine.patience -= count - 1
        self.numbers.set_rates(following[-1].rates)
        return True

    # which graph

    def choose(self, order: ShuffledBatches, state: TrainingState) -> WholeStep:
        """Move what is scheduled, and choose the graph of the next step, or make it; raise Untraceable where there is none."""
        self.numbers.tell_progress(state.step)
        self.engine.scheduled_values.refresh()
        self.engine.patience -= 1
        whole = self.current
        if whole is None or self.options.scheduled or whole.compiled != self.graphs.compiles:
            whole = self.graphs.find() or self.graphs.make(order.generator)
            self.current = whole
            if self.last_look is None:
                self.numbers.ahead = whole.count() - state.updates
        return whole

    # whether it is right

    def make_checked(
        self, whole: WholeStep, order: ShuffledBatches, numbers: Sequence[Sequence[float]]
    ) -> Tensor | None:
        """Make a step of the graph after the same by eager: refuse it if they differ, trace anew if it is an old graph.

        None, and all as it was, where eager's step is not finite, and the graph would move all the same.
        """
        generator, self.promptly = order.generator.get_state(), False
        before = PreStepSnapshot([*whole.moved, *self.engine.buffers, self.failed], self.data.device)
        loss, off, what = self.beside.make_both(whole, order, numbers, before)
        if loss is None:
            return None
        if is_kink(what) and self.beside.kink_alone(whole, order, numbers, before):
            order.generator.set_state(generator)
            loss, off, what = self.beside.compute(whole, order, numbers), 0.0, None
        if what is None:
            self.graphs.passed(whole, off)
            return loss
        before.restore()
        order.generator.set_state(generator)
        self.graphs.give_up(whole, what)
        self.current = self.graphs.make(order.generator)
        return self.make_checked(self.current, order, numbers)

    def check_later(self, whole: WholeStep, order: ShuffledBatches, state: TrainingState) -> None:
        """Put off the check of a graph that was right before, so that a GPU has work while the programs run.

        Should the graph be wrong now, all is undone that was made with it (:meth:`settle`).
        """
        proven = {whole} <= self.graphs.due & self.graphs.proven
        if self.several is None or self.several.refused or self.promptly or not proven:
            return
        if not self.settle(order, state):
            self.look(order, state)
            self.graphs.due.discard(whole)
            self.unchecked = whole

    def check_behind(self, order: ShuffledBatches, state: TrainingState) -> None:
        """Make the first step since the last look anew, by the programs and by the graph, to be compared; all is put back."""
        look, whole, engine = self.last_look, self.unchecked, self.engine
        assert look is not None and whole is not None
        now = look_at(order, state, self.held)
        try:
            look.restore(order, state)
            self.numbers.tell_progress(state.step)
            engine.scheduled_values.refresh()
            rates = self.numbers.rates(state.step)
            self.numbers.set_rates(rates)
            eager = eager_step(engine, self.data, whole, order, wait=False)
            look.restore(order, state)
            numbers = self.numbers.of_update(whole, rates, state.updates)
            loss = self.beside.compute(whole, order, numbers)
            copies = {id(tensor): copy for tensor, copy in look.before.buffers}
            before = [copies[id(t)] for t in whole.moved]
            made = loss, whole.moved, [b.clone() for b in engine.buffers]
            self.comparison = Comparison.of(whole.groups, numbers, before, eager, made, engine.rounded)
        except Exception:  # the programs' own: they would have come no further
            now, self.last_look, self.unchecked = look, None, None
            raise
        finally:
            now.restore(order, state)
            self.numbers.tell_progress(state.step - 1)
            engine.scheduled_values.refresh()
            self.numbers.set_rates(self.numbers.rates(state.step - 1))

    # what was not finite

    def look(self, order: ShuffledBatches, state: TrainingState) -> None:
        """Note where training is, unless something has been done since it was last noted."""
        if self.last_look is None:
            self.last_look = look_at(order, state, self.held)

    @property
    def held(self) -> list[Tensor]:
        """List what steps change though they are not finite."""
        if self.several is None:
            return []
        return [*self.engine.buffers, *self.step.parameters, *moments_of(self.step.optimizer), self.failed]

    def since_look(self, state: TrainingState) -> int:
        """Count the steps since the last look."""
        return 0 if self.last_look is None else state.step - self.last_look.step

    def settle(self, order: ShuffledBatches, state: TrainingState) -> bool:
        """Look whether all steps were finite, and their graph right; else return to the last look, and go on from there.

        With less room, where a step was not finite; with another graph, where it was another step.
        """
        look, steps, whole = self.last_look, self.since_look(state), self.unchecked
        if whole is not None and steps and self.comparison is None:
            self.check_behind(order, state)
        comparison, self.last_look, self.unchecked, self.comparison = self.comparison, None, None, None
        if look is None:
            return False
        sound = self.sound(state)
        off, what = (0.0, None) if comparison is None or not sound else comparison.verdict()
        if sound and what is None:
            if whole is not None:
                self.graphs.passed(whole, off) if comparison is not None else self.graphs.due.add(whole)
            self.room = min(2 * self.room, ROOM)
            return False
        look.restore(order, state)
        self.failed.zero_()
        self.current = None
        if whole is not None:
            self.graphs.due.add(whole)
        if sound and is_kink(what):
            self.promptly = True
        elif sound and whole is not None:
            self.doubt(whole, str(what))
        else:
            self.room, self.singly = max(1, steps // 2), steps == 1
        return True

    def doubt(self, whole: WholeStep, what: str) -> None:
        """Give up a graph that is not the step any more, or all graphs."""
        try:
            self.graphs.give_up(whole, what)
        except Untraceable as why:
            self.graphs.refuse(str(why))

    def sound(self, state: TrainingState) -> bool:
        """Return whether all steps were finite: a gradient that was not stays in the moments for good, a loss in the sum."""
        failed = self.failed > 0
        if self.several is not None:
            largest = torch.nn.utils.get_total_norm(moments_of(self.step.optimizer), math.inf)
            failed = failed | ~largest.isfinite() | ~torch.as_tensor(state.position.loss_sum).isfinite()
        return not failed.item()
