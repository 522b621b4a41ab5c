"""`fit` as a peer that takes turns: a coroutine that makes whole epochs while it is asked to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from greenlet import getcurrent, greenlet
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

    It stops at the end of an epoch while others have their turns, on the thread that everybody runs on: in threads of their
    own each would have a team of OpenMP workers, and teams that outnumber the processors wait asleep, which made small steps
    two times slower.

    Args:
        logged: with what `fit` logs after each epoch, or without.
        options: of `fit`, such as the engine.
    """

    def __init__(self, vae: VAE, x: Tensor, batch: int, objective: Any, logged: bool = False, **options: Any) -> None:
        self.logged, self.steps = logged, -(-len(x) // batch)  # an epoch's
        self.epochs, self.engine = 0, ""  # epochs to be made before somebody else's turn
        arguments = {"objective": objective, "batch_size": batch, "epochs": 10**7, "verbose": False} | options
        self.training = greenlet(lambda: self.train(vae, x, arguments))

    def train(self, vae: VAE, x: Tensor, arguments: dict[str, Any]) -> None:
        try:
            fit(vae, x, on_epoch=self.wait, **arguments)
        except Interrupted as error:
            self.engine = error.result.engine

    def wait(self, record: Any) -> None:
        """After an epoch: go on at once while some are left, else when somebody asks."""
        self.epochs -= 1
        if self.epochs <= 0:
            getcurrent().parent.switch()
            if self.epochs == 0:
                raise KeyboardInterrupt  # as by hand: the training ends well, and says how its steps were computed

    def __call__(self, steps: int) -> int:
        """Make about so many steps; return how many were made."""
        self.epochs = max(1, round(steps / self.steps))
        made = self.epochs * self.steps
        with contextlib.nullcontext() if self.logged else without_log():
            self.training.switch()  # raises what `fit` raises
        return made

    def close(self) -> str | None:
        """End the training, so that its memory is free; say why its steps ran eager, if they did unasked."""
        if self.training and not self.training.dead:
            self.epochs = 0
            self.training.switch()
        return next((line for line in self.engine.splitlines() if line.startswith("eager from here on")), None)
