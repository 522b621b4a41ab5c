"""The aggressive encoder: each update of the model waits until the guide has caught up with the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import evaluation_mode, without_validation
from pyro_vae.programs.reached_parameters import reached
from pyro_vae.programs.sites import Program, Site, sample_sites

from .batch_source import Batch
from .step import Step

Numbered = tuple[Tensor, Batch]  # row numbers and the batch
Update = Callable[[Tensor, Batch, Callable[[Batch], list[Tensor]] | None], Tensor]  # of all but some parameters


@dataclass(frozen=True)
class Aggressive:
    """Guide-only updates before each update of the model, while I(x; z) still climbs: against posterior collapse.

    Early in training the guide lags behind a model that changes under it, and a strong decoder then learns to do without
    z. So each update of the model alone (what only the guide uses stands still) comes after guide-only updates on further
    random batches, until their mean loss over `check_every` of them stops falling, and at most `max_inner`. Once an epoch
    has passed without a larger I(x; z) on validation rows, training goes on as usual. An aggressive epoch costs
    `check_every` to `max_inner` times as much.

    Args:
        patience: epochs without a larger I(x; z) after which it ends.
        check_every: guide-only updates between looks at their loss.
        max_inner: guide-only updates before each update of the model, at most.

    References:
        Lagging Inference Networks and Posterior Collapse in Variational Autoencoders (He, Spokoyny, Neubig &
        Berg-Kirkpatrick, 2019), https://arxiv.org/abs/1901.05534

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit
        >>> from pyro_vae.training.aggressive_inference import Aggressive
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> run = fit(vae, torch.randn(64, 3), epochs=1, aggressive=Aggressive(check_every=2, max_inner=4), verbose=False)
        >>> run.history[0]["aggressive"], run.history[0]["inner_steps"]
        (True, 4)
    """

    patience: int = 1
    check_every: int = 10
    max_inner: int = 100

    def __post_init__(self) -> None:
        for name in ("patience", "check_every", "max_inner"):
            if getattr(self, name) < 1:
                raise UsageError(f"Aggressive: {name} must be at least 1, got {getattr(self, name)}")


class AggressiveInference:
    """Has the guide catch up before each update of the model, for as long as that helps."""

    def __init__(self, options: Aggressive, step: Step) -> None:
        self.options, self.step = options, step
        self.on, self.best, self.stale, self.inner = True, -math.inf, 0, 0
        self.parts: tuple[list[Tensor], list[Tensor]] | None = None

    def update(self, update: Update, now: Numbered, further: Iterator[Numbered]) -> Tensor:
        """Update the guide until it has caught up, then the model; return the loss of that last update."""
        if not self.on:
            return update(*now, None)
        self.catch_up(update, now, further)
        return update(*now, lambda batch: self.split(batch)[0])  # what only the guide uses stands still

    def catch_up(self, update: Update, now: Numbered, further: Iterator[Numbered]) -> None:
        """Make guide-only updates until their mean loss stops falling."""
        before, done = math.inf, 0
        while done < self.options.max_inner:
            losses, rows = [], 0
            for _ in range(min(self.options.check_every, self.options.max_inner - done)):
                losses.append(update(*now, lambda batch: self.split(batch)[1]))
                rows += len(now[0])
                done += 1
                now = next(further)
            mean = math.fsum(map(float, losses)) / rows
            if not mean < before:
                break
            before = mean
        self.inner += done

    def split(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Find, once, the parameters that only the guide depends on, and those that it does not depend on."""
        if self.parts is None:
            model, guide = dependence(self.step.model, self.step.guide, batch, self.step.parameters)
            if not guide:
                raise UsageError(
                    "aggressive=... has nothing to update: no parameter has a gradient from the guide. Train without it, "
                    "or give the guide parameters of its own."
                )
            every = self.step.parameters
            self.parts = [p for p in every if p in guide - model], [p for p in every if p not in guide]
        return self.parts

    def state(self) -> dict[str, Any]:
        """Return what decides whether the next epoch is aggressive, in plain values."""
        return {name: getattr(self, name) for name in ("on", "best", "stale", "inner")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state` returned."""
        vars(self).update({name: state[name] for name in self.state()})

    def end_epoch(self, mutual_information: float | None) -> dict[str, Any]:
        """Describe the epoch for its record; end the schedule once I(x; z) has stopped climbing."""
        facts = {"aggressive": self.on, "inner_steps": self.inner}
        self.stale, self.inner = self.stale + 1, 0
        if mutual_information is not None and mutual_information > self.best:
            self.best, self.stale = mutual_information, 0
        self.on = self.on and self.stale < self.options.patience
        return facts


def dependence(
    model: Program, guide: Program, batch: Batch, parameters: list[Tensor]
) -> tuple[set[Tensor], set[Tensor]]:
    """Find the parameters that the model depends on, and those that the guide does; a shared posterior is in both.

    By autograd: of the guide's draws and their log-probabilities, and of the model's log-probabilities at these draws.
    Which program declares a parameter says nothing of it: a VAE declares all in both.
    """
    with (
        evaluation_mode(model, guide),
        without_validation(),
        seeded(0, device=batch[0].device),
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=False),  # cuDNN's RNNs have no gradient in eval mode
    ):
        q = sample_sites(poutine.trace(guide).get_trace(*batch))
        draws = {name: site["value"].detach() for name, site in q.items()}
        p = sample_sites(poutine.trace(poutine.condition(model, draws)).get_trace(*batch))
        guides = set(reached([*log_probs(q), *(site["value"] for site in q.values())], parameters))
        return set(reached(log_probs(p), parameters)), guides


def log_probs(sites: dict[str, Site]) -> list[Tensor]:
    return [site["fn"].log_prob(site["value"]) for site in sites.values()]
