"""What is logged of all members after an epoch, computed at once: each member's own log as a flat graph, mapped over all.

A log has the same noise after each epoch, so that it is drawn once, each member's from its own streams. What the programs hold
is read anew each time, from the members' own tensors. What else of them may change shows where a member's own log is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_vae.common.doubts import any_of, put_off
from pyro_vae.common.identical import identical
from pyro_vae.common.random import stream
from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.errors import PyroVAEError
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.parameters import ParametersRegistered
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.proposal_guide import as_written
from pyro_vae.training.engines.flat_graph import FlatGraph, Untraceable, check_traces, flattened
from pyro_vae.training.engines.noise_outside import (
    Recorder,
    drawing_from,
    free_draws,
    is_random,
    with_draws_as_inputs,
)
from pyro_vae.training.metrics import CHUNK, Record, drawn_once, information_terms, paired_rows, record_of_latents
from pyro_vae.training.shuffle import ELBO_NOISE, LATENTS

from .member_step import Batch, bare
from .members import Member
from .stack import Stack
from .together import stacked

WORTH = 100  # epochs: in fewer, traces take longer than the logs that they save
CLOSE, LESS_CLOSE = 1e-5, 1e-3  # what rounding leaves, of an ELBO's size; nats, of what is logged to four decimals
Of = Callable[[Problem], list[Tensor]]
Logged = tuple[Record, Record]  # of the ELBO, of the latents
REASONS = (PyroVAEError, RuntimeError, ValueError, TypeError, IndexError)


@dataclass(eq=False)
class Mapped:
    """A function of each member's rows as one graph; its last result flags members whose numbers are to be looked at."""

    run: Callable[..., list[Tensor]]
    given: list[Tensor]  # rows and draws, the same each time
    slots: list[list[Tensor]]  # what the programs hold, each member's; one tensor where all share it
    stacks: list[Tensor | None]  # the tensor whose slices a slot's are; None of others, which are stacked each time
    rows: int

    def __call__(self) -> list[Tensor]:
        return self.run(*self.given, *self.held())

    def held(self) -> list[Tensor]:
        """Read what the programs hold now."""
        return [
            slot[0] if len(slot) == 1 else torch.stack([t.detach() for t in slot]) if whole is None else whole
            for slot, whole in zip(self.slots, self.stacks, strict=True)
        ]


@dataclass(eq=False)
class LoggedTogether:
    """The logs of all members, of one architecture."""

    members: Sequence[Member]
    stack: Stack
    train: list[Mapped] = field(default_factory=list)  # parts of the rows
    held_out: list[Mapped] = field(default_factory=list)
    site: str = ""

    @classmethod
    def of(cls, members: Sequence[Member], stack: Stack) -> LoggedTogether:
        """Trace each member's log, and map it over all.

        Raises:
            Untraceable: it cannot be traced or mapped, or is another in another member; says why.
        """
        found = cls(members, stack)
        try:
            found.make()
        except REASONS as error:  # vmap's own, and what programs raise on what they are traced with
            raise Untraceable((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
        return found

    def make(self) -> None:
        """Make the graphs of both sets of rows, and of I(x; z)."""
        metrics = [member.training.metrics for member in self.members]
        for one in metrics:
            if one.of_data_set is not None or one.shards is not None or isinstance(one.step.objective, TraceEnum_ELBO):
                raise Untraceable("the ELBO is not one of each row")
        validation = metrics[0].data.validation
        rows = [one.train_sample for one in metrics]
        if any_lazy(*rows[0], *(validation or ())):
            raise Untraceable("rows are on disk")
        self.train = self.passes(rows, latents=validation is None)
        if validation is not None:
            rows = [validation] * len(metrics)
            self.held_out = self.passes(rows, latents=True)
        some = [paired_rows(self.problem(i, batch)).args for i, batch in enumerate(rows)]
        streams = self.generators(lambda member: stream(stream(member.seed, LATENTS), 1))
        self.information = self.mapped(some, lambda problem: [information_terms(problem)], streams)

    def passes(self, rows: Sequence[Batch], latents: bool) -> list[Mapped]:
        """Map the pass over each member's rows, part by part, on one random stream a member."""
        streams = self.generators(lambda member: stream(member.seed, ELBO_NOISE))
        parts = [
            [tuple(a[start : start + CHUNK] for a in batch) for batch in rows]
            for start in range(0, len(rows[0][0]), CHUNK)
        ]
        return [self.mapped(part, lambda problem: self.sums(problem, latents), streams) for part in parts]

    def generators(self, seed_of: Callable[[Member], int]) -> list[torch.Generator]:
        """Make a generator for each member."""
        device = self.members[0].training.device
        return [torch.Generator(device).manual_seed(seed_of(member)) for member in self.members]

    def problem(self, i: int, batch: Batch) -> Problem:
        """Return a member's pair on some rows, as its own log has it; refuse one whose guide does more than draw latents."""
        problem = self.members[i].training.metrics.problem(batch)
        if problem.guide is not as_written(problem.guide):
            raise Untraceable("the guide does more than draw latents")
        return problem

    def sums(self, problem: Problem, latents: bool) -> list[Tensor]:
        """Sum reconstruction and KL over the rows; with `latents`, return the KL and mean of each row's units, too."""
        sums, drawn = drawn_once(problem, latents)
        if not latents:
            return [sums]
        if drawn is None:
            raise Untraceable("what is logged of the latents depends on draws of its own")
        ((self.site, site),) = drawn.items()
        return [sums, site.kl, site.mean]

    def mapped(self, rows: Sequence[Batch], of: Of, streams: Sequence[torch.Generator]) -> Mapped:
        """Trace a function of each member's rows, draw its noise, and map it over all."""
        flats = [self.traced(i, batch, of) for i, batch in enumerate(rows)]
        check_traces(flats[0], self.traced(0, tuple(a.flip(0) for a in rows[0]), of))
        for member, flat in zip(self.members[1:], flats[1:], strict=True):
            if apart := bare(flats[0]).difference(bare(flat)):
                raise Untraceable(f"the log of seed {member.seed} is not that of seed {self.members[0].seed}: {apart}")
        names, draws = self.drawn(flats, rows, streams)
        columns = list(zip(*rows, strict=True))
        alike = [all(identical(a, column[0]) for a in column) for column in columns]
        inputs = [column[0] if same else torch.stack(column) for column, same in zip(columns, alike, strict=True)]
        slots = [list(slot) for slot in zip(*(flat.state for flat in flats), strict=True)]
        slots = [slot[:1] if all(t is slot[0] for t in slot) else slot for slot in slots]
        dims = [None if same else 0 for same in alike] + [0] * len(draws) + [None if len(s) == 1 else 0 for s in slots]
        module = with_draws_as_inputs(flats[0].module, names, len(inputs))
        function = torch.vmap(module.forward, in_dims=tuple(dims), randomness="error")
        mapped = Mapped(function, [*inputs, *draws], slots, [self.stack_of(slot) for slot in slots], len(rows[0][0]))
        mapped.run = flattened(lambda *tensors: function(*tensors), [*mapped.given, *mapped.held()])
        return mapped

    def drawn(
        self, flats: Sequence[FlatGraph], rows: Sequence[Batch], streams: Sequence[torch.Generator]
    ) -> tuple[list[str], list[Tensor]]:
        """Draw each member's noise from its stream, stacked, by the names of the operations that draw it."""
        graph, draws = flats[0].module.graph, []
        names = [node.name for node in free_draws(graph)]
        if others := [node.name for node in graph.nodes if is_random(node) and node.name not in names]:
            raise Untraceable(f"the noise of {', '.join(others)} depends on parameters")
        for flat, batch, generator in zip(flats, rows, streams, strict=True):
            recorder = Recorder(flat.module)
            with torch.no_grad(), drawing_from(generator, batch[0].device):
                recorder.run(*batch, *flat.state)
            draws.append([recorder.drawn[name] for name in names])
        return names, [stacked(of_members) for of_members in zip(*draws, strict=True)]

    def stack_of(self, slot: Sequence[Tensor]) -> Tensor | None:
        """Find the tensor of which a slot's are the members' slices, which the steps of all move."""
        if len(slot) > 1 and all(id(t) in ids for t, ids in zip(slot, self.stack.owned, strict=True)):
            for j, whole in enumerate(self.stack.tensors):
                if self.stack.dims[j] is not None and all(
                    a is b for a, b in zip(slot, self.stack.slot(j), strict=True)
                ):
                    return whole
        return None

    def traced(self, i: int, batch: Batch, of: Of) -> FlatGraph:
        """Trace a function of one member's rows; questions about numbers are put off, and flagged by the last result."""
        step, problem = self.members[i].training.step, self.problem(i, batch)

        def flagged(*rows: Tensor) -> list[Tensor]:
            with put_off() as flags:
                results = of(problem.over(*rows))
            return [*results, any_of(flags, results[0])]

        with ParametersRegistered(), quiet(step.model, step.guide, seed=0, device=problem.device):
            flat = flattened(flagged, batch)
        return FlatGraph(flat.module, flat.state)

    def __call__(self) -> list[Logged | None]:
        """Return each member's log; None for one whose numbers are to be looked at, or are not finite."""
        train, held_out = ([part() for part in parts] for parts in (self.train, self.held_out))
        terms, doubt = self.information()
        doubts = torch.stack([doubt.cpu(), *(part[-1].cpu() for part in (*train, *held_out))]).any(0).tolist()
        of_train = elbos(train, self.train)
        records = elbos(held_out, self.held_out) if held_out else of_train
        kl, mean = (torch.cat([part[k] for part in held_out or train], 1) for k in (1, 2))
        activity = mean.var(1) if mean.shape[1] > 1 else mean[:, 0] * math.nan
        error = terms.std(1) / terms.shape[1] ** 0.5 if terms.shape[1] > 1 else terms.mean(1) * math.nan
        of_each = zip(
            doubts, records, of_train, *(t.tolist() for t in (activity, kl.mean(1), terms.mean(1), error)), strict=True
        )
        logged: list[Logged | None] = []
        for doubtful, record, train_record, active, kl_per_unit, *information in of_each:
            record = record | {"train_elbo": train_record["elbo"]}
            well = not doubtful and all(map(math.isfinite, record.values()))
            known = [a for a in active if not math.isnan(a)]  # codes have no mean
            logged.append((record, record_of_latents(known, kl_per_unit, tuple(information))) if well else None)
        return logged


def is_worth_it(epochs: int, members: int, device: torch.device) -> bool:
    """Return whether members are logged at once: where launches take longer than what they launch, in epochs enough."""
    return device.type == "cuda" and members > 1 and epochs >= WORTH


def elbos(results: Sequence[list[Tensor]], parts: Sequence[Mapped]) -> list[Record]:
    """Return each member's ELBO and its terms, in nats per datum, of the sums over parts of the rows."""
    rows = sum(part.rows for part in parts)
    sums = torch.stack([result[0].cpu() for result in results]).sum(0).tolist()
    return [{"elbo": (r - kl) / rows, "reconstruction": r / rows, "kl": kl / rows} for r, kl in sums]


def apart(own: Logged, among_all: Logged) -> str | None:
    """Say by which number a member's own log differs from that among all, by more than rounding; None where it does not.

    Example:
        >>> own = {"elbo": -90.0, "kl": 9.0}, {"active_units": 3, "kl_per_unit": [4.0, 5.0]}
        >>> apart(own, ({"elbo": -90.0001, "kl": 9.0}, own[1])), apart(own, ({"elbo": -91.0, "kl": 9.0}, own[1]))
        (None, 'its elbo is -90, and -91 among all')
    """
    for (mine, theirs), close in zip(zip(own, among_all, strict=True), (CLOSE * size(own[0]), LESS_CLOSE), strict=True):
        for name, value in mine.items():
            if name.startswith("active_units"):
                continue  # a unit on the threshold is on either side of it; the mean behind it is that of the KL
            pairs = zip(numbers(value), numbers(theirs[name]), strict=True)
            for a, b in pairs:
                if not abs(a - b) <= close:
                    return f"its {name} is {a:.6g}, and {b:.6g} among all"
    return None


def size(record: Record) -> float:
    """Return how large the log-densities of a record are, 1 nat at least."""
    return max([1.0, *(abs(number) for value in record.values() for number in numbers(value))])


def numbers(value: float | list[float | None] | None) -> list[float]:
    """List the numbers of one entry of a record; infinite for one that is not defined."""
    return [math.inf if v is None else v for v in (value if isinstance(value, list) else [value])]
