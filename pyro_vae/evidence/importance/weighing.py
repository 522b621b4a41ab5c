r"""log w of whole blocks of particles from a flat graph: guide, draws, model and log w, with none of the programs' Python.

A graph is made for one kind of block (rows, particles, how many of these from the prior), checked against the programs on the
same noise, and draws what they draw. As traced it computes their bits. Compiled it computes the same to rounding, and
evidence says so. What cannot be traced, or comes out otherwise, is weighed by the programs, and the reason is noted.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.common import torch_private
from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.flat_program import FlatProgram, Unfinished, Untraceable
from pyro_vae.common.inductor import compile_flat, compiler
from pyro_vae.common.notes import Notes
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError
from pyro_vae.programs.determinism import identical
from pyro_vae.programs.flat_evaluation import TRACES, Work, flat_evaluation, work_of
from pyro_vae.programs.problem import Problem

from .accumulator import PAIRS, ROWS
from .proposals import Proposal, order_of, propose_in, terms_at

ENGINES = ("auto", "eager", "trace", "compile")
EAGER, COMPILED, AND = "eager", "compiled", " and "  # arithmetics: a graph that is not compiled has the programs' own
WORTH_TRACE = 150  # blocks whose Python takes as long as two traces
WORTH_FIRST = 400  # as long as these, and importing torch's tracer
GAIN, GAIN_EACH = 3e-10, 1e-5  # seconds that compiling saves: for an element that is written, and for an operation
WORTH_COMPILE = 20.0  # seconds that compiling must save: about twice what it takes
DIGITS = {torch.float64: 1e-9, torch.float32: 3e-5}  # of a compiled log w, relative to a block's largest, or to one nat
CUDA_PAIRS = 2**18  # in a block on a GPU
LIVE = 8  # tensors as large as the largest that are there at a time, at most
NOISE = 2  # of the probe's streams, after those of two traces
Kind = tuple[int, int, int]  # rows, particles, how many of them from the prior


def weigh(proposal: Proposal, problem: Problem, particles: int, prior: int) -> Callable[..., list[Tensor]]:
    """Return the function to be traced: the arguments of a block, and the order of a mixture's, to log w ``(K, N)``."""

    def log_w(*inputs: Tensor) -> list[Tensor]:
        *args, order = inputs if prior else (*inputs, torch.empty(particles))
        some = problem.over(*args)
        weights = proposal.log_w(terms_at(some, propose_in(order, prior, proposal, some)))
        if weights.shape != (particles, len(some)):
            raise ProgramError("the programs gave log weights for other rows")
        is_doubtful((weights.isnan() | (weights == math.inf)).any())
        return [weights]

    return log_w


@dataclass(eq=False)
class WeighingEngine:
    """Graphs of a pair on checked rows, one for each kind of whole block, made when it is first met.

    What a block's digits depend on is the same in every part of an evaluation, and in its continuation: the name, and traces
    and checks on the first and the last rows with noise of their own.
    """

    proposal: Proposal
    problem: Problem  # of all rows
    rows: int  # in a block; the last may have fewer
    particles: int  # in a whole block
    whole: int  # whole blocks of so many rows in all, this part of the evaluation or not
    name: str = "eager"  # "eager", "trace" or "compile"
    notes: Notes = field(default_factory=Notes)
    graphs: dict[Kind, FlatProgram | None] = field(default_factory=dict, init=False)
    ran: set[str] = field(default_factory=set, init=False)  # arithmetics of whole blocks

    @classmethod
    def of(cls, problem: Problem, proposal: Proposal, pairs: int, num_samples: int, rows: int = ROWS) -> WeighingEngine:
        """Make the engine of an evaluation in blocks of `rows`, which weighs nothing until it is told its name.

        Blocks of one row are not compiled unless that is asked for: whether it pays depends on how many rows there are, and
        the bits of a row shall not.
        """
        size = min(max(rows, problem.own_rows), len(problem))
        particles = max(1, pairs // size)
        whole = len(problem) // size * (num_samples // particles) if rows > 1 else 0
        return cls(proposal, problem, size, particles, whole)

    def chunk(self) -> int:
        """Return how many pairs the model is run on at a time: a block, on a GPU as many as have room."""
        pairs, device = self.rows * self.particles, self.problem.device
        if device.type != "cuda":
            return pairs
        few = max(1, min(PAIRS, pairs) // self.rows)
        bytes_of_pair = LIVE * self.work(few).largest / (few * self.rows)
        return min(pairs, max(1, int(torch.cuda.mem_get_info(device)[0] / max(bytes_of_pair, 1))))

    def work(self, particles: int) -> Work:
        """Count what the first rows take with so many particles; nothing where the programs do not run on them."""
        function, block = weigh(self.proposal, self.problem, particles, 0), self.problem.rows(slice(self.rows)).args
        try:
            return work_of(lambda: self.on_noise(0, function, block))
        except Exception:  # whatever it is, it comes again where it is explained
            return Work()

    def choose(self, engine: str, here: int, resumed: str | None) -> None:
        """Take the engine that was asked for, or choose it by the number of whole blocks in all and `here`.

        Tracing pays from some hundred blocks on. Compiling pays, or not, for the whole, so that its parts have the same digits,
        and goes on as it was `resumed`: the time saved goes with operations, and with what they write beside matrix products.
        """
        if engine != "auto":
            self.name = engine
            return
        known = torch_private.MAKE_FX.rpartition(".")[0] in sys.modules or self.problem.device.type == "cuda"
        if resumed == COMPILED or (resumed is None and self.pays()):
            self.name = "compile"
        elif here >= (WORTH_TRACE if known else WORTH_FIRST):
            self.name = "trace"

    def pays(self) -> bool:
        """Return whether compiling pays for the whole evaluation; on a GPU it is not known to."""
        if self.whole < WORTH_TRACE or self.problem.device.type != "cpu" or compiler() is None:
            return False
        work = self.work(self.particles)
        return (GAIN * work.elements + GAIN_EACH * work.operations) * self.whole > WORTH_COMPILE

    def facts(self, resumed: str | None) -> dict[str, str]:
        """Say what weighed the evidence, along with that which it was resumed from."""
        names = self.ran | set((resumed or "").split(AND)) - {""}
        return {"engine": AND.join(sorted(names)) or EAGER, "engine_note": "; ".join(self.notes)}

    def graph(self, kind: Kind) -> FlatProgram | None:
        """Return the checked graph of a kind of block; None for one that the programs weigh."""
        if kind[:2] != (self.rows, self.particles):
            return None
        flat = None if self.name == EAGER else self.made(kind)
        self.ran.add(COMPILED if flat is not None and flat.run else EAGER)
        return flat

    def made(self, kind: Kind) -> FlatProgram | None:
        """Make the graph of a kind of block, once."""
        if kind not in self.graphs:
            try:
                self.graphs[kind] = self.checked(kind)
            except Untraceable as why:
                self.graphs[kind] = None
                self.notes.add(f"weighed by the programs themselves: {why}")
        return self.graphs[kind]

    def checked(self, kind: Kind) -> FlatProgram:
        """Trace a kind of block, and compile it where that is asked for; run both against the programs."""
        if "loop" in (self.problem.vectorizing.model, self.problem.vectorizing.guide):
            raise Untraceable("particles are run one after the other")
        function, blocks = weigh(self.proposal, self.problem, *kind[1:]), self.blocks(kind)
        start = time.perf_counter()
        flat = flat_evaluation(function, *blocks)
        seconds = time.perf_counter() - start
        try:
            expected = [self.on_noise(i, function, block)[0] for i, block in enumerate(blocks)]
        except ProgramError as error:
            raise Untraceable(str(error)) from error
        if apart := self.apart(flat, blocks, expected):
            raise Untraceable(apart)
        self.notes.add(f"{flat.operations} operations traced in {seconds:.1f} s, the same to the bit as the programs")
        if self.name == "compile":
            self.compile(flat, blocks, expected)
        return flat

    def blocks(self, kind: Kind) -> list[list[Tensor]]:
        """Return two blocks of a kind, as different as these rows have them."""
        rows, particles, prior = kind
        first, last = self.problem.rows(slice(rows)).args, self.problem.rows(slice(-rows, None)).args
        ahead = [k < prior for k in range(particles)]
        orders = [[order_of(order).to(self.problem.device)] if prior else [] for order in (ahead, ahead[::-1])]
        return [[*first, *orders[0]], [*(a.flip(0) for a in last), *orders[1]]]

    def on_noise(self, i: int, function: Callable[..., list[Tensor]], block: Sequence[Tensor]) -> list[Tensor]:
        """Run a function on noise of the probe."""
        with seeded(TRACES, NOISE + i, device=self.problem.device):
            return function(*block)

    def apart(
        self, flat: FlatProgram, blocks: Sequence[Sequence[Tensor]], expected: Sequence[Tensor], digits: float = 0.0
    ) -> str | None:
        """Describe how a graph's log w differ from the programs' on the same noise; None where they do not."""
        for i, (block, log_w) in enumerate(zip(blocks, expected, strict=True)):
            other, doubtful = self.on_noise(i, flat, block)
            if doubtful:
                return "some parameters or weights of the first or the last rows are to be looked at"
            off = difference_of(log_w, other)
            if off > digits:
                return f"its log weights are off by {off:.1g} nats"
        return None

    def compile(self, flat: FlatProgram, blocks: Sequence[Sequence[Tensor]], expected: Sequence[Tensor]) -> None:
        """Compile a graph, unless it comes out otherwise."""
        largest = max(1.0, *(w[w.isfinite()].abs().max().item() for w in expected if w.isfinite().any()))
        start = time.perf_counter()
        try:
            flat.run = compile_flat(flat, blocks[0])
            if apart := self.apart(flat, blocks, expected, largest * DIGITS.get(expected[0].dtype, 1e-9)):
                raise Untraceable(apart)
        except (Untraceable, Unfinished) as why:
            flat.run = None
            self.notes.add(f"not compiled: {why}")
        else:
            self.notes.add(f"compiled in {time.perf_counter() - start:.0f} s")

    def give_up(self, why: str) -> None:
        """Leave the blocks to come to the programs."""
        self.name = EAGER
        self.notes.add(f"weighed by the programs from here on: {why}")


def difference_of(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors, ∞ where one holds NaN or an infinity that the other does not."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if identical(a, b):
        return 0.0
    apart = torch.where(a == b, 0, (a - b).abs())
    return apart.nan_to_num(math.inf).max().item()


def joined_engines(facts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Say what weighed parts of one evaluation together, of :meth:`WeighingEngine.facts` of each.

    Example:
        >>> joined_engines([{"engine": "eager", "engine_note": "why"}, {"engine": "compiled", "engine_note": ""}])
        {'engine': 'compiled and eager', 'engine_note': 'why'}
    """
    facts = list(facts)
    names = {name for one in facts for name in one["engine"].split(AND)}
    notes = dict.fromkeys(one["engine_note"] for one in facts if one["engine_note"])
    return {"engine": AND.join(sorted(names)), "engine_note": "; ".join(notes)}
