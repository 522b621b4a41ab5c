"""`fit` as a peer that takes turns: it runs in a thread of its own, and makes whole epochs while it is asked to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pyro_vae import VAE, fit
from pyro_vae.errors import Interrupted
from pyro_vae.training import metrics


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Leave out what `fit` logs after an epoch: ELBO, and what the latents carry."""
    log = metrics.EpochMetrics
    names: dict[str, Any] = {name: getattr(log, name) for name in ("elbo", "latents")}
    nothing = dict.fromkeys(("reconstruction", "kl", "train_elbo"), 0.0) | {"elbo": 0.0}
    log.elbo = lambda self, when: dict(nothing)  # type: ignore[method-assign]
    log.latents = lambda self: dict.fromkeys(metrics.LATENT_KEYS)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, value in names.items():
            setattr(log, name, value)


class FitInTurns:
    """``run(steps)`` of the public `fit` on resident rows: as many epochs as come next to so many steps, one at least.

    Args:
        logged: with what `fit` logs after each epoch, or without.
        options: of `fit`, such as the engine.
    """

    def __init__(self, vae: VAE, x: Tensor, batch: int, objective: Any, logged: bool = False, **options: Any) -> None:
        self.logged, self.steps = logged, -(-len(x) // batch)  # an epoch's
        self.epochs, self.engine = 0, ""
        self.failed: BaseException | None = None
        self.asked, self.answered = threading.Semaphore(0), threading.Semaphore(0)
        arguments = {"objective": objective, "batch_size": batch, "epochs": 10**7, "verbose": False} | options
        self.thread = threading.Thread(target=self.train, args=(vae, x, arguments), daemon=True)
        self.thread.start()
        self.answered.acquire()

    def train(self, vae: VAE, x: Tensor, arguments: dict[str, Any]) -> None:
        self.wait(None)
        try:
            fit(vae, x, on_epoch=self.wait, **arguments)
        except Interrupted as error:
            self.engine = error.result.engine
        except BaseException as error:  # shown to whoever asked
            self.failed = error
        self.answered.release()

    def wait(self, record: Any) -> None:
        """After an epoch: go on at once while some are left, else when somebody asks."""
        self.epochs -= 1
        if self.epochs <= 0:
            self.answered.release()
            self.asked.acquire()
            if self.epochs == 0:
                raise KeyboardInterrupt  # as by hand: the training ends well, and says how its steps were computed

    def __call__(self, steps: int) -> int:
        """Make about so many steps; return how many were made."""
        self.epochs = max(1, round(steps / self.steps))
        made = self.epochs * self.steps
        with contextlib.nullcontext() if self.logged else without_log():
            self.asked.release()
            self.answered.acquire()
        if self.failed is not None:
            raise self.failed
        return made

    def close(self) -> str | None:
        """End the training, so that its thread and memory are free; say why its steps ran eager, if they did unasked."""
        if self.thread.is_alive() and self.failed is None:
            self.epochs = 0
            self.asked.release()
            self.answered.acquire()
        self.thread.join()
        return next((line for line in self.engine.splitlines() if line.startswith("eager from here on")), None)
