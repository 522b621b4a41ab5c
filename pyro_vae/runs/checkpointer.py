"""Save a training's state before the first step, every few minutes or epochs, at a signal, on error, and at the end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.common.atomic_write import publish, storage
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.safe_read import LIMIT, dump, seal
from pyro_vae.common.spread import sharing
from pyro_vae.errors import DeviceLostError, StorageError
from pyro_vae.training.checkpoint_state import capture
from pyro_vae.training.divergence import FailedStep
from pyro_vae.training.trainer import Trainer, TrainingCallback

from .checkpoint import Checkpoints, Generation, Groups
from .folder import DIVERGENCE, remove
from .one_writer import OneWriter

HANGUP = getattr(signal, "SIGHUP", None)  # of a terminal that closes; Windows has none
ENDINGS = tuple(number for number in (signal.SIGTERM, HANGUP) if number is not None)
FAILURES = 3  # saves in a row that may fail, if training has been saved before
CAPSULE = {
    "step": "number",
    "said": "message",
    "size": "batch_size",
}  # by disk names; the others are the attributes' own


class Signalled(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP, raised between two steps once the state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.terminated = number == signal.SIGTERM
        self.hung_up = number == HANGUP


LOOK = 0.1  # seconds that somebody who interrupts may wait


class Checkpointer(TrainingCallback):
    """Save the whole state of a training, to resume it to the same bits:
    ``fit(..., callbacks=[checkpointer], resume=checkpointer.newest())``.

    One training at a time writes into a folder: a second one, in another process or thread, is a BusyError. Of processes
    that train together (``fit(..., shards=8)``, or networks sharded by ``fully_shard``) each has one, and that of rank 0
    writes. A checkpoint of sharded networks is that of whole ones: either goes on from it, on any number of processes.

    Args:
        path: a folder; the state goes into ``checkpoints`` in it (:mod:`pyro_vae.runs.checkpoint`).
        minutes: between saves.
        epochs: between saves, too; None goes by the minutes alone.
        about: further entries of every manifest.
        how: how to resume, for messages.
        spent: seconds of training before this process.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit, Checkpointer
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpointer = Checkpointer(folder)
        ...     resume = checkpointer.newest()
        ...     run = fit(vae, torch.randn(64, 3), epochs=2, callbacks=[checkpointer], resume=resume, verbose=False)
        ...     checkpointer.newest().manifest["step"]
        2
    """

    def __init__(
        self,
        path: Path | str,
        *,
        minutes: float = 5.0,
        epochs: int | None = None,
        about: Mapping[str, Any] | None = None,
        how: str = "fit(..., callbacks=[checkpointer], resume=checkpointer.newest())",
        spent: float = 0.0,
    ) -> None:
        self.path, self.minutes, self.epochs, self.how = Path(path), minutes, epochs, how
        self.checkpoints, self.writer = Checkpoints(self.path, dict(about or {})), OneWriter(self.path)
        self.saved_at = time.monotonic()
        self.start = self.saved_at - spent
        self.signal: int | None = None  # that this process has heard
        self.failures = 0
        self.leads = True

    def newest(self, limit: int = LIMIT) -> Generation | None:
        """Read the newest state that can be trusted, with a note on newer ones; None where there is none yet.

        Raises:
            CheckpointError: there are some, and none can be trusted.
        """
        generation = self.checkpoints.newest(limit=limit)
        for note in generation.notes if generation and sharing().leads else ():
            print(f"note: {note}", file=sys.stderr)
        return generation

    @property
    def interval(self) -> float:
        """Seconds between looks at a signal or the clock, for which steps need not wait."""
        return min(LOOK, 60 * self.minutes)

    @property
    def seconds(self) -> float:
        """Seconds of training, in this process and before."""
        return time.monotonic() - self.start

    def before_training(self, trainer: Trainer) -> None:
        """Make the folder, take it for writing, and save the state before the first step."""
        self.leads = sharing().leads  # the others write nothing
        if self.leads:
            with storage(f"cannot make {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
            self.writer.take()
        if trainer.by_rank_0(self.leads and not self.checkpoints.numbers()):
            self.save(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Save where it is time; save and stop where a signal came."""
        signal_to_stop = trainer.heard(self.signal)
        if signal_to_stop is not None:
            self.save(trainer, interrupted=True)
            raise Signalled(signal_to_stop)
        if trainer.by_rank_0(time.monotonic() - self.saved_at >= 60 * self.minutes):
            self.try_to_save(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        """Save where it is time, by epochs or minutes."""
        if trainer.by_rank_0(self.epochs is not None and (trainer.state.position.epoch - 1) % self.epochs == 0):
            self.try_to_save(trainer)
        self.after_step(trainer)

    def after_training(self, trainer: Trainer) -> None:
        """Save the state of a training that has ended, and let go of the folder."""
        self.save(trainer, finished=True)
        self.writer.release()

    def on_error(self, trainer: Trainer, error: BaseException) -> str:
        """Save the state after the last step, if the weights are still its own; return how to go on."""
        if not self.leads:  # rank 0 saves what can be saved
            return self.from_last() if not isinstance(error, Signalled) else f". Saved; go on with: {self.how}"
        if not self.writer.holds:  # another process does, and this is its error
            return ""
        try:
            return self.save_rest(trainer, error)
        finally:
            self.writer.release()

    def save_rest(self, trainer: Trainer, error: BaseException) -> str:
        """Save what an error leaves; return how to go on."""
        if not isinstance(error, Signalled):  # else it is saved
            # of sharded networks the other processes have a part of the state, and may not come
            parted = trainer.step.in_step is not None and trainer.step.here.world > 1
            lost = isinstance(error, DeviceLostError)  # and the state with it
            if lost or parted or not trainer.between_steps or not trainer.state.step or trainer.state.bad_steps:
                return self.from_last()
            try:
                self.save(trainer, interrupted=True)
            except StorageError as failure:
                return f". Its state could not be saved: {failure}"
        return f". Saved; go on with: {self.how}"

    def from_last(self) -> str:
        """Say how to go on from the newest checkpoint that is there."""
        for number in self.checkpoints.numbers():
            if manifest := self.checkpoints.manifest(number):
                return f". The last checkpoint so far is of step {manifest.get('step')}; go on from it with: {self.how}"
        return ""

    def on_failed_step(self, failed: FailedStep) -> str:
        """Write the folder ``divergence``: the batch, the weights, the random state, as data."""
        if not self.leads:
            return ""
        keys = ("step", "epoch", "done", "seed", "rows", "said", "site", "size", "shards")
        facts = {"schema": 1, "torch": str(torch.__version__)}
        facts |= {key: getattr(failed, CAPSULE.get(key, key)) for key in keys} | {"rows": failed.rows.tolist()}
        batch = {f"{i}": a for i, a in enumerate(failed.batch)}
        groups = {"model": failed.weights, "rng": failed.noise, "batch": batch}
        tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
        files = {"capsule.safetensors": dump(tensors), "capsule.json": json.dumps(seal(facts), indent=2).encode()}
        try:
            with storage(f"cannot replace {self.path / DIVERGENCE}"):
                remove(self.path / DIVERGENCE)
            publish(self.path / DIVERGENCE, files)
        except StorageError as failure:
            return f" The step could not be saved: {failure}"
        finally:
            self.writer.release()
        return f" The step is kept in {self.path / DIVERGENCE}; replay it with: pyro-vae replay {shlex.quote(str(self.path))}"

    def try_to_save(self, trainer: Trainer) -> None:
        """Save, unless the last steps diverged: no state to return to. A save that fails is tried again."""
        if trainer.state.bad_steps:
            return
        try:
            self.save(trainer)
        except StorageError as error:
            self.failures, self.saved_at = self.failures + 1, time.monotonic()
            if self.failures >= FAILURES:
                raise
            print(f"note: no checkpoint at step {trainer.state.step}: {error} Training goes on.", file=sys.stderr)

    def save(self, trainer: Trainer, **marks: Any) -> None:
        """Save the state as the newest generation; of several processes, rank 0 does.

        Of networks that are sharded over them, the others take part in gathering it, and go on when it is written.
        """
        if not self.leads and trainer.step.in_step is None:
            return
        head, groups = capture(trainer)
        try:
            if self.leads:
                self.write(trainer, head, groups, marks)
        finally:
            trainer.by_rank_0(True)

    def write(self, trainer: Trainer, head: Mapping[str, Any], groups: Groups, marks: Mapping[str, Any]) -> None:
        """Publish a state that was captured."""
        position = trainer.state.position
        taken = position.batches_taken.get("order", 0)
        where: dict[str, Any] = {"seconds": self.seconds, "device": trainer.device.type, **marks}
        where["weights"] = tensor_digest(saved_with(trainer.modules, groups["best"]))  # as of a model.safetensors
        self.checkpoints.save(head, groups, step=trainer.state.step, epoch=position.epoch, position=taken, **where)
        self.failures, self.saved_at = 0, time.monotonic()

    def listening(self) -> AbstractContextManager[None]:
        """Have SIGINT, SIGTERM and SIGHUP finish the step and save. In the main thread only.

        A second SIGINT or SIGTERM ends the process at once; a terminal that closes may send SIGHUP twice, so that does not.
        """
        return handlers(dict.fromkeys((signal.SIGINT, *ENDINGS), self.on_signal))

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, for the end of the step that is under way; end the process at a second one."""
        if self.signal is not None and number != HANGUP:
            os._exit(128 + number)
        self.signal = number if self.signal is None else self.signal


def saved_with(modules: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the tensors that the module's own state has: no buffers that are not saved, such as N(0, I)'s."""
    names = {name for module in modules for name in module.state_dict()}
    return {name: tensor for name, tensor in tensors.items() if name in names}


@contextmanager
def handlers(by_signal: Mapping[int, Any]) -> Iterator[None]:
    """Install signal handlers inside, and restore those before; none outside the main thread, where Python takes none.

    A hang-up that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {HANGUP} if HANGUP is not None and signal.getsignal(HANGUP) is signal.SIG_IGN else set()
    heard = {number: handler for number, handler in by_signal.items() if number not in ignored}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def terminable() -> AbstractContextManager[None]:
    """Raise SIGTERM and SIGHUP as exceptions inside, as Ctrl-C is one, so that results so far can be saved."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Signalled(number)

    return handlers(dict.fromkeys(ENDINGS, stop))
