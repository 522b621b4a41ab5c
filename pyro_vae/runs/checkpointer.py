"""When a training's state is saved: before the first step, every few minutes or epochs, at a signal, on error, at the end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.atomic_write import publish, storage
from pyro_vae.common.safe_read import LIMIT, dump, seal
from pyro_vae.errors import StorageError
from pyro_vae.training.trainer import Loop
from pyro_vae.training.training_state import capture

from .checkpoint import Checkpoints, Generation
from .folder import DIVERGENCE, remove

FAILURES = 3  # saves in a row that may fail, if training has been saved before


class Signalled(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised between two steps once the state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.terminated = number == signal.SIGTERM


class Keeper:
    """Saves the whole state of a training: ``fit(..., keeper=keeper, resume=keeper.newest())`` goes on to the same bits.

    Args:
        path: a folder; the state goes into ``checkpoints`` in it (:mod:`pyro_vae.runs.checkpoint`).
        minutes: between saves.
        epochs: between saves, too; None goes by the minutes alone.
        about: what every manifest says beside where training was.
        how: how to go on, for messages.
        spent: seconds of training before this process.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit
        >>> from pyro_vae.runs.checkpointer import Keeper
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keeper = Keeper(folder)
        ...     run = fit(vae, torch.randn(64, 3), epochs=2, keeper=keeper, resume=keeper.newest(), verbose=False)
        ...     keeper.newest().manifest["step"]
        2
    """

    def __init__(
        self,
        path: Path | str,
        *,
        minutes: float = 5.0,
        epochs: int | None = None,
        about: Mapping[str, Any] | None = None,
        how: str = "fit(..., keeper=keeper, resume=keeper.newest())",
        spent: float = 0.0,
    ) -> None:
        self.path, self.minutes, self.epochs, self.how = Path(path), minutes, epochs, how
        self.checkpoints = Checkpoints(self.path, dict(about or {}))
        self.start = time.monotonic() - spent
        self.saved_at = time.monotonic()
        self.signal: int | None = None
        self.failures = 0

    def newest(self, limit: int = LIMIT) -> Generation | None:
        """The newest state that can be trusted; None where there is none yet. Says so if it went back.

        Raises:
            CheckpointError: there are some, and none can be trusted.
        """
        found = self.checkpoints.newest(limit=limit)
        for note in found.notes if found else ():
            print(f"note: {note}", file=sys.stderr)
        return found

    @property
    def seconds(self) -> float:
        """Of training, this process's and what was spent before."""
        return time.monotonic() - self.start

    def before(self, loop: Loop) -> None:
        if not self.checkpoints.numbers():
            with storage(f"cannot make {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
            self.save(loop)

    def after_step(self, loop: Loop) -> None:
        if self.signal is not None:
            self.stop(loop)
        elif time.monotonic() - self.saved_at >= 60 * self.minutes:
            self.try_to_save(loop)

    def after_epoch(self, loop: Loop) -> None:
        if self.epochs is not None and (loop.place.epoch - 1) % self.epochs == 0:
            self.try_to_save(loop)
        self.after_step(loop)

    def done(self, loop: Loop) -> None:
        self.save(loop, finished=True)

    def failed(self, loop: Loop, error: BaseException) -> str:
        """Saves the state after the last step, if the weights are still its own."""
        if isinstance(error, Signalled):
            return f". Saved; go on with: {self.how}"
        if not loop.place.is_whole(loop) or not loop.done or loop.bad:
            return f". Go on from the last checkpoint with: {self.how}" if self.checkpoints.numbers() else ""
        try:
            self.save(loop, interrupted=True)
        except StorageError as failure:
            return f". Its state could not be saved: {failure}"
        return f". Saved; go on with: {self.how}"

    def capsule(self, head: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> str:
        """Writes the folder ``divergence``: the batch, the weights, the random state, as data."""
        tensors = {f"{group}/{name}": t for group, held in groups.items() for name, t in held.items()}
        said = json.dumps(seal({"schema": 1, "torch": str(torch.__version__), **head}), indent=2)
        try:
            with storage(f"cannot replace {self.path / DIVERGENCE}"):
                remove(self.path / DIVERGENCE)
            publish(self.path / DIVERGENCE, {"capsule.safetensors": dump(tensors), "capsule.json": said.encode()})
        except StorageError as failure:
            return f" The step could not be saved: {failure}"
        return f" The step is kept in {self.path / DIVERGENCE}; replay it with: pyro-vae replay {self.path}"

    def stop(self, loop: Loop) -> None:
        assert self.signal is not None
        self.save(loop, interrupted=True)
        raise Signalled(self.signal)

    def try_to_save(self, loop: Loop) -> None:
        """A state with steps in it that diverged is not worth going back to; a save that fails is tried again."""
        if loop.bad:
            return
        try:
            self.save(loop)
        except StorageError as error:
            self.failures, self.saved_at = self.failures + 1, time.monotonic()
            if self.failures >= FAILURES:
                raise
            print(f"note: no checkpoint at step {loop.done}: {error} Training goes on.", file=sys.stderr)

    def save(self, loop: Loop, **marks: bool) -> None:
        """The state as the newest generation."""
        head, groups = capture(loop)
        where = {"step": loop.done, "epoch": loop.place.epoch, "position": loop.place.places.get("order", 0)}
        self.checkpoints.save(head, groups, **where, seconds=self.seconds, device=loop.device.type, **marks)
        self.failures, self.saved_at = 0, time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step and save; a second one ends the process at once. In the main thread only."""
        with handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.hear)):
            yield

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number


@contextmanager
def handlers(wanted: Mapping[int, Any]) -> Iterator[None]:
    """Signal handlers, put back after; none outside the main thread, where Python takes none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as an exception, as Ctrl-C is one, so that whoever can saves what there is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Signalled(number)

    with handlers({signal.SIGTERM: stop}):
        yield
