r"""β handler: β KL in any objective. Effect handlers change what is trained, and not what a model is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import programs
from pyro_vae.programs.sites import is_latent

BETA = "_beta"  # where a site says how much of its scale is β: the rest weighs rows, not sites


class Beta(Messenger):
    r"""β KL(q(z | x) ‖ p(z)) in place of the KL: weighs log p(z) and log q(z | x) by β, in any objective.

    β < 1 at first (a warm-up) keeps the posterior from collapsing; β > 1 buys disentangled latents with reconstruction.
    The trained loss is then no bound on log p(x) (for β ≥ 1 a looser one); what is logged and evaluated is the true ELBO,
    which handlers of scale do not touch.

    Args:
        beta: β ≥ 0.
        schedule: fraction of training done to a multiple of β, such as ``warmup(constant, 0.1)`` or ``cyclical(4)``;
            ``fit(..., scheduled=[beta])`` tells it how far training is.

    References:
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
        Generating Sentences from a Continuous Space (Bowman et al., 2016; warm-up), https://arxiv.org/abs/1511.06349
        Cyclical Annealing Schedule (Fu et al., 2019), https://arxiv.org/abs/1903.10145

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit, warmup, constant
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> beta = Beta(4.0, warmup(constant, 0.5))
        >>> run = fit(beta.pair(vae), torch.randn(64, 3), epochs=2, scheduled=[beta], verbose=False)
        >>> beta.value
        4.0
    """

    scheduled_names = ("value",)  # what `at` sets

    def __init__(self, beta: float = 1.0, schedule: Callable[[float], float] | None = None) -> None:
        super().__init__()
        if not beta >= 0:
            raise UsageError(f"beta must be 0 or more, got {beta}")
        self.beta, self.schedule = beta, schedule
        self.at(0.0)

    def at(self, done: float) -> None:
        """Set β for the next step, at a fraction `done` of training."""
        self.value = self.beta if self.schedule is None else self.beta * self.schedule(done)

    def pair(self, vae: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return (model, guide) under this handler."""
        model, guide = programs(vae)
        return self(model), self(guide)

    def _pyro_sample(self, msg: Message) -> None:
        if is_latent(msg):
            infer: dict[str, Any] = dict(msg["infer"] or {})
            infer[BETA] = infer.get(BETA, 1.0) * self.value
            msg["scale"], msg["infer"] = msg["scale"] * self.value, cast(Any, infer)
