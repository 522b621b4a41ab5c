"""The whole-step graphs of a run: made as things are, found again while they are good, given up where they are not the step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.finite_checks import choose_finite_check

from .flat_graph import Unfinished, Untraceable
from .graph_tally import graph_name
from .scheduled_values import answers_hold
from .traced import TRIES, TracedEngine
from .verify import replayed
from .whole_step import WholeStep, WholeStepTracer


@dataclass(eq=False)
class StepGraphs:
    """Graphs of a run's step, one for each setting and answer of the programs, and which of them are to be checked."""

    engine: TracedEngine
    data: TrainingData
    failed: Tensor  # 1 from the first step on that was not finite
    guarded: bool  # they move nothing where a step is not finite
    compiler: bool  # they are compiled, once the engine's patience is over
    held: list[WholeStep] = field(default_factory=list, init=False)
    proven: set[WholeStep] = field(default_factory=set, init=False)  # were right once
    due: set[WholeStep] = field(default_factory=set, init=False)  # are checked when they are next used

    @property
    def compiles(self) -> bool:
        """Whether it is time for a compiler."""
        return self.compiler and self.engine.patience < 0

    def find(self) -> WholeStep | None:
        """Find the graph that is good as things are; drop those of an optimizer's former memory."""
        if reason := self.engine.why_untraceable():
            raise Untraceable(reason)
        optimizer, key = self.engine.step.optimizer, self.engine.setting()
        assert optimizer is not None
        for whole in [whole for whole in self.held if not whole.holds_of(optimizer)]:
            self.drop(whole)
        return next(
            (w for w in self.held if (w.key, w.compiled) == (key, self.compiles) and answers_hold(w.flat.answers)),
            None,
        )

    def make(self, generator: torch.Generator) -> WholeStep:
        """Trace the step as things are, and compile it if it is time."""
        self.engine.whole_tally.check_room()
        start, engine, compiles = time.perf_counter(), self.engine, self.compiles
        tracer = WholeStepTracer(engine, self.data, self.failed, generator, engine.setting(), self.guarded, compiles)
        with torch.enable_grad():
            whole = tracer.trace()
        seconds = time.perf_counter() - start
        engine.log.append(
            f"traced {whole.flat.operations} operations in {seconds:.1f} s, for {self.data.batch_size} rows"
        )
        if compiles and not self.compile(whole, tracer):
            return self.find() or self.make(generator)
        whole.flat.name = graph_name(compiles, engine.setting(type), answers=whole.flat.answers)
        engine.whole_tally.add(whole.flat.name)
        self.held.append(whole)
        self.due.add(whole)
        return whole

    def drop(self, whole: WholeStep) -> None:
        """Hold a graph no longer."""
        self.held.remove(whole)
        self.engine.whole_tally.drop(whole.flat.name)

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
        self.held.clear()
        self.engine.whole_tally.clear()
        self.due.clear()
        step = self.engine.step
        if (optimizer := step.optimizer) is not None:
            step.finite_check = choose_finite_check(self.data.device, optimizer, step.immediate)

    def passed(self, whole: WholeStep, off: float) -> None:
        """Note that a graph was right."""
        self.due.discard(whole)
        self.proven.add(whole)
        self.engine.checks += 1
        self.engine.largest_difference = max(off, self.engine.largest_difference)

    def give_up(self, whole: WholeStep, what: str) -> None:
        """Drop a graph that is not the step any more; raise Untraceable if it never was, or this has happened too often."""
        engine, why = self.engine, f"the captured step is not the eager one: {what}"
        if whole in self.proven and engine.failed_checks >= TRIES:
            engine.fall_back(why)
        if whole not in self.proven or engine.eager_reason:
            raise Untraceable(why)
        engine.failed_checks += 1
        engine.log.append(f"{what}: something changed between epochs, traced anew")
        self.drop(whole)
