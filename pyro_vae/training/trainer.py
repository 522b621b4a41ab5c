"""The loop: epochs of steps, the true ELBO after each, best weights kept."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.common.memory import fitting
from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import DivergedError, Interrupted
from pyro_vae.objectives.scheduled import Scheduled
from pyro_vae.training.engines.multi_step import STEPS, Whole

from .aggressive_inference import Lagging
from .batch_source import Batch, Feed, Transform
from .divergence import Keeper, Miss, capsule
from .metrics import Reporter, collapsed, latent_use, row_elbo, true_elbo
from .schedules import Schedule
from .shuffle import ELBO_NOISE, FIXED, FURTHER, LATENTS, NOISE, SHUFFLE, Order
from .step import Step
from .training_state import Place, about


@dataclass
class Fit:
    """What a training run was.

    Attributes:
        history: one record an epoch: epoch, step, lr, loss (the objective's, per datum), elbo, reconstruction and kl (nats
            per datum, on the validation rows if there are any), train_elbo; of at most 500 of the same rows, active_units and
            active_units_0.001 (Var_x(E[z | x]) above 0.01 and 0.001), mutual_information (nats, a lower bound on I(x; z)
            and at most log of 200 rows, 32 where q is dear) and kl_per_unit (nats), each None where it is not defined, see
            :func:`~pyro_vae.diagnostics.latent_usage.latents`; seconds; with `aggressive`, whether the epoch was and its
            inner_steps;
            and what `on_epoch` returned.
        best_epoch: whose weights the model holds now.
        stopped: why it ended.
        warnings: what was noticed on the way: latents that carry nothing (posterior collapse).
        engine: how steps were computed, and why, a line each.
        exact: whether what the bits depend on (device, threads, torch, engine) was the same wherever it was gone on with.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""
    warnings: list[str] = field(default_factory=list)
    engine: str = ""
    exact: bool = True

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch."""
        return next((r for r in self.history if r["epoch"] == self.best_epoch), {})


@dataclass
class Loop:
    """One run of `fit`: what it trains, on what, and how far it is."""

    step: Step
    modules: list[nn.Module]
    train: Batch
    feed: Feed
    valid: Batch | None
    transform: Transform | None
    size: int
    epochs: int
    schedule: Schedule
    patience: int | None
    seed: int
    lagging: Lagging | None = None
    scheduled: Sequence[Scheduled] = ()
    on_step: Callable[[float], Any] | None = None
    keeper: Keeper | None = None
    bad_steps: int = 1
    whole: Whole | None = None
    done: int = 0
    moves: int = 0
    bad: int = 0
    place: Place = field(default_factory=Place)
    skipped: tuple[Miss, Tensor, Batch] | None = None  # the last step, if it diverged
    best_elbo: float = -math.inf
    kept: list[Tensor] = field(default_factory=list)
    fit: Fit = field(default_factory=Fit)

    def run(self, report: Reporter) -> Fit:
        """All epochs; restores the best weights, and the modules' modes, however it ends."""
        flags = [(m, m.training) for root in self.modules for m in root.modules()]
        self.kept = self.kept or self.state()
        try:
            if self.keeper is not None:
                self.keeper.before(self)
            for epoch in range(self.place.epoch, self.epochs + 1 if not self.fit.stopped else 0):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Encountered NaN")  # Pyro's; the DivergedError says more
                    record = self.epoch(epoch)
                report(record)  # before anything is kept: what was interrupted here is not the best
                self.fit.history.append(record)
                self.keep(record)
                self.warn(record, report)
                self.place = Place(epoch + 1)
                if self.patience is not None and epoch - self.fit.best_epoch >= self.patience:
                    self.fit.stopped = f"no better ELBO for {self.patience} epochs"
                    break
                if self.keeper is not None:
                    self.keeper.after_epoch(self)
            self.fit.stopped = self.fit.stopped or f"{self.epochs} epochs done"
            if self.keeper is not None:
                self.keeper.done(self)
            return self.fit
        except KeyboardInterrupt as signal:
            saved = "" if self.keeper is None else self.keeper.failed(self, signal)
            self.fit.stopped = "interrupted"
            what = f"interrupted at step {self.done}; the model holds {self.held}{saved}"
            raise Interrupted.kind(signal)(what, self.fit) from None
        except Exception as error:
            if self.keeper is not None and not isinstance(error, DivergedError):
                self.keeper.failed(self, error)
            raise
        finally:
            self.fit.engine = self.step.explain()
            self.feed.close()
            self.restore()
            for module, training in flags:
                module.training = training

    def epoch(self, epoch: int) -> dict[str, Any]:
        """One pass over the training rows, or what is left of it, and what it led to."""
        place, start = self.place, time.perf_counter() - self.place.seconds
        for module in self.modules:
            module.train()
        done = self.done
        if not place.states:  # what an engine counts in an epoch was put back with the place
            self.step.engine.renew()
        with seeded(self.seed, NOISE, epoch, device=self.device):
            place.open(self, {"order": stream(self.seed, SHUFFLE, epoch), "further": stream(self.seed, FURTHER, epoch)})
            further = self.further()
            for rows, batch in self.batches():
                place.total = place.total + self.update(rows, batch, further).double() + self.leap(place)
                if self.keeper is not None:
                    place.seconds = time.perf_counter() - start
                    place.note(self)
                    self.keeper.after_step(self)
            self.settle(epoch, done)
        seconds = time.perf_counter() - start
        seen = len(self.train[0]) - place.skipped
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": self.done,
            "lr": self.step.rate,
            "loss": float(place.total) / seen if seen else None,
        }
        record |= {"rows_skipped": place.skipped} if place.skipped else {}
        record |= self.measure()
        if not math.isfinite(record["elbo"]):
            stopped = self.diverged(f"the ELBO after epoch {epoch} is {record['elbo']}")
            raise capsule(self, stopped, *self.skipped) if self.skipped else stopped
        record |= latent_use(
            self.step, self.train_sample if self.valid is None else self.valid, stream(self.seed, LATENTS)
        )
        if self.lagging is not None:
            record |= self.lagging.after(record["mutual_information"])
        return record | {"seconds": round(seconds, 4)}

    def settle(self, epoch: int, before: int) -> None:
        """Where steps are not asked one by one: whether all of this epoch's were finite; names the first that was not.

        That is so without a keeper only, so the epoch began with its first batch.
        """
        if trouble := self.step.watch.ask():
            fine, what = trouble
            self.done = before + fine
            order = self.order(stream(self.seed, SHUFFLE, epoch))
            rows, batch = next(islice(self.shuffled(order), fine, None))  # the same again, and the weights were kept
            raise self.diverged(f"{what} on rows {self.suspects(rows, batch)}")

    def order(self, seed: int) -> Order:
        """Of the training rows, batch after batch."""
        return Order(len(self.train[0]), self.size, seed, self.device, self.feed.rows_on)

    def batches(self) -> Iterator[tuple[Tensor, Batch]]:
        """Shuffled batches with their row numbers; order and binarization depend on (seed, epoch) alone."""
        assert self.place.order is not None
        return self.shuffled(self.place.order)

    def further(self) -> Iterator[tuple[Tensor, Batch]]:
        """Other batches, without end."""
        assert self.place.further is not None
        while True:
            yield from self.shuffled(self.place.further)

    def shuffled(self, order: Order) -> Iterator[tuple[Tensor, Batch]]:
        for rows in order.one_pass():
            x, *context = self.feed.take(rows, order.ahead)
            yield rows, (self.transform(x, order.generator) if self.transform else x, *context)

    def update(self, rows: Tensor, batch: Batch, further: Iterator[tuple[Tensor, Batch]]) -> Tensor:
        """One step, and what comes before it: schedules of the objective, an aggressive encoder."""
        self.move_schedules(self.done / self.planned)
        loss = self.lagging.update(self.move, (rows, batch), further) if self.lagging else self.move(rows, batch)
        self.done += 1
        return loss

    def move_schedules(self, done: float) -> None:
        """Tells scheduled objects, and then a function of the user's own, how far training is."""
        for moved in self.scheduled:
            moved.at(done)
        if self.on_step is not None:
            self.on_step(done)

    def move(self, rows: Tensor, batch: Batch, frozen: Callable[[Batch], list[Tensor]] | None = None) -> Tensor:
        """One update; one that diverges leaves the weights as they were, and is skipped or reported with its rows."""
        first = self.step.optimizer is None
        before = Miss.before(self) if self.keeper is not None or self.bad_steps > 1 else None
        try:
            with self.memory(
                f"a batch of {len(rows)} rows", f"Take a smaller one: batch_size={max(1, len(rows) // 2)}."
            ):
                loss = self.step.loss_and_grads(*batch)
            if first:  # the first loss found the parameters
                self.kept += [p.detach().clone() for p in self.step.parameters]
            for parameter in frozen(batch) if frozen else ():
                parameter.grad = None
            self.step.update(self.schedule((self.done + 1) / self.planned))
        except DivergedError as error:
            return self.missed(error, rows, batch, before)
        self.moves, self.bad, self.skipped = self.moves + 1, 0, None
        return loss

    def leap(self, place: Place) -> Tensor | float:
        """The steps after it, as far as they can be made several at a time; their loss."""
        total: Tensor | float = 0.0
        while self.whole is not None and place.order is not None:
            loss = self.whole(place.order, self.done, self.planned)
            if loss is None:
                break
            total, self.done, self.moves = total + loss, self.done + STEPS, self.moves + STEPS
        return total

    def memory(self, what: str, way_on: str) -> AbstractContextManager[None]:
        """What a step asks for is there, or a DeviceMemoryError says what is not."""
        return fitting(f"step {self.done + 1}: {what} on {self.device}", way_on)

    def missed(self, error: DivergedError, rows: Tensor, batch: Batch, before: Miss | None) -> Tensor:
        """A step that diverged: skipped, as long as there are not `bad_steps` of them in a row."""
        self.bad += 1
        if before is not None:
            before.undo(self)
        if before is None or self.bad >= self.bad_steps or self.step.optimizer is None:
            stopped = self.diverged(f"{error} on rows {self.suspects(rows, batch)}")
            raise stopped if before is None else capsule(self, stopped, before, rows, batch) from None
        self.place.skipped, self.skipped = self.place.skipped + len(rows), (before, rows, batch)
        return torch.zeros((), device=self.device)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What its saved states go with."""
        return about(self)

    @property
    def planned(self) -> int:
        """Steps in all."""
        return self.epochs * -(-len(self.train[0]) // self.size)

    @property
    def held(self) -> str:
        """Which weights are kept."""
        return f"the weights of epoch {self.fit.best_epoch}" if self.fit.best_epoch else "its starting weights"

    def diverged(self, what: str) -> DivergedError:
        self.fit.stopped = "diverged"
        return DivergedError(
            f"step {self.done + 1}: {what}. Training stopped; the model holds {self.held}. Try a smaller learning rate or a "
            "warm-up (schedule=warmup(cosine)), and look at those rows.",
            self.fit,
        )

    def suspects(self, rows: Tensor, batch: Batch) -> str:
        """The batch's rows whose own ELBO is not finite, or all of them if none stands out."""
        with seeded(self.seed, FIXED, device=self.device):
            elbo = row_elbo(self.step, batch)
        culprits = rows if elbo is None or elbo.isfinite().all() else rows[~elbo.isfinite().to(rows.device)]
        listed = sorted(culprits.tolist())
        return ", ".join(map(str, listed[:20])) + (f", … ({len(listed)} in all)" if len(listed) > 20 else "")

    def measure(self) -> dict[str, Any]:
        """The true ELBO and its terms, under the same noise after every epoch."""
        train = self.true_elbo(self.train_sample)
        terms = train if self.valid is None else self.true_elbo(self.valid)
        return terms | {"train_elbo": train["elbo"]}

    def true_elbo(self, batch: Batch) -> dict[str, Any]:
        with (
            seeded(self.seed, ELBO_NOISE, device=self.device),
            self.memory(f"the ELBO of {len(batch[0])} rows", "Validate on fewer rows."),
        ):
            return true_elbo(self.step, batch)

    @cached_property
    def train_sample(self) -> Batch:
        """The training rows that the ELBO is logged on: 2,000 at most, the same throughout, binarized once."""
        every = max(1, len(self.train[0]) // 2000)
        return self.fixed_draw(tuple(a[::every][:2000] for a in self.train))

    def fixed_draw(self, batch: Batch) -> Batch:
        """A batch as training would see it, from a seed of its own."""
        batch = tuple(a.to(self.device) for a in batch)
        if self.transform is None:
            return batch
        generator = torch.Generator(self.device).manual_seed(stream(self.seed, FIXED))
        return (self.transform(batch[0], generator), *batch[1:])

    def warn(self, record: dict[str, Any], report: Reporter) -> None:
        """Says once that the latents carry nothing."""
        if not self.fit.warnings and (message := collapsed(record)):
            self.fit.warnings.append(message)
            report.note(f"warning: {message}")

    def keep(self, record: dict[str, Any]) -> None:
        """Remembers the weights if they are the best so far (without validation rows: the newest)."""
        if self.valid is None or record["elbo"] > self.best_elbo:
            self.best_elbo, self.fit.best_epoch = record["elbo"], record["epoch"]
            self.kept = self.state()

    @property
    def tensors(self) -> list[Tensor]:
        return [*(b for m in self.modules for b in m.buffers()), *self.step.parameters]

    def state(self) -> list[Tensor]:
        return [t.detach().clone() for t in self.tensors]

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, kept in zip(self.tensors, self.kept, strict=False):  # before the first step: buffers only
                tensor.copy_(kept)

    @property
    def device(self) -> torch.device:
        return self.feed.device
