"""State-space models: a Markov chain of latents, an observation at each step, and a guide that walks along the chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.data.sequences import refuse_lengths, refuse_packed
from pyro_vae.programs.parameters import register

Role = Callable[..., TorchDistributionMixin]


class StateSpaceModel(FunctionParts):
    r"""p(z_1) Π p(z_t | z_{t−1}) Π p(x_t | z_t), with the guide Π q(z_t | z_{t−1}, h_t), h = encoder(x, lengths).

    A linear dynamical system, a hidden Markov model, a deep Markov model or a stochastic volatility model, by its roles.
    Contexts c, with a row for each sequence, come last in each.

    Args:
        initial: ``initial(*c)`` is p(z_1).
        transition: ``transition(z, *c)`` is p(z_t | z_{t−1}).
        likelihood: ``likelihood(z, *c)`` is p(x_t | z_t), one step's.
        encoder: ``encoder(x, lengths, *c)`` is h, ``(N, T, H)``, what the guide knows of x at each step: a
            :class:`~pyro_vae.models.recurrent.BackwardGRU` (of x_t, …, x_T), or any function.
        posterior: ``posterior(z, h_t, *c)`` is q(z_t | z_{t−1}, h_t). At t = 1 its z is 0, of the shape of z_1.

    x has shape ``(N, T, *event)``; `lengths`, ``(N,)`` whole numbers from 1 to T, says how many steps a sequence has: what is
    beyond is masked, in model and guide alike. Without them all have T. :func:`~pyro_vae.pad_sequences` makes both of
    sequences in a list, packed, or padded with a mask. A gap within a sequence is NaN: see :class:`~pyro_vae.SkipMissing`.
    Sites are ``"z_1"`` … ``"z_T"`` and ``"x_1"`` … ``"x_T"``, the plate is ``"data"``.

    Raises:
        DataError: lengths below 1 or above T, with their rows.
        UsageError: a packed sequence.

    References:
        Structured Inference Networks for Nonlinear State Space Models (Krishnan, Shalit & Sontag, 2017),
        https://arxiv.org/abs/1609.09869

    Example:
        >>> from pyro_vae import BackwardGRU, Conditional, MLP, StandardNormal, log_likelihood, normal, pad_sequences
        >>> model = StateSpaceModel(
        ...     initial=StandardNormal(2),                                 # p(z_1)
        ...     transition=Conditional(MLP(2, 2 * 2), normal),             # p(z_t | z_{t-1})
        ...     likelihood=Conditional(MLP(2, 2 * 3), normal),             # p(x_t | z_t)
        ...     encoder=BackwardGRU(3, 16),                                # h_t of x_t, ..., x_T
        ...     posterior=Conditional(MLP(2 + 16, 2 * 2), normal),         # q(z_t | z_{t-1}, h_t)
        ... )
        >>> x, lengths = pad_sequences([torch.zeros(4, 3), torch.zeros(2, 3)])
        >>> log_likelihood(model.model, model.guide, x, lengths, num_samples=50, verbose=False).log_px.shape
        torch.Size([2])
    """

    def __init__(
        self, initial: Role, transition: Role, likelihood: Role, encoder: Callable[..., Tensor], posterior: Role
    ) -> None:
        super().__init__()
        self.initial, self.transition, self.likelihood = initial, transition, likelihood
        self.encoder, self.posterior = encoder, posterior

    def model(self, x: Tensor, lengths: Tensor | None = None, *c: Tensor) -> None:
        """z_1 ~ p(z_1), then z_t ~ p(z_t | z_{t−1}) and x_t ~ p(x_t | z_t) at each step, for each row."""
        register(self)
        there = steps_there(x, lengths)
        with pyro.plate("data", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=there[t]):
                    z = pyro.sample(f"z_{t + 1}", self.initial(*c) if z is None else self.transition(z, *c))
                    pyro.sample(f"x_{t + 1}", self.likelihood(z, *c), obs=x[:, t])

    def guide(self, x: Tensor, lengths: Tensor | None = None, *c: Tensor) -> None:
        """z_t ~ q(z_t | z_{t−1}, h_t) at each step, for each row."""
        register(self)
        there, h = steps_there(x, lengths), self.encoder(x, lengths, *c)
        with pyro.plate("data", len(x)):
            z = h.new_zeros(len(x), *self.initial(*c).event_shape)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=there[t]):
                    z = pyro.sample(f"z_{t + 1}", self.posterior(z, h[:, t], *c))


def steps_there(x: Tensor, lengths: Tensor | None) -> list[Any]:
    """Return the mask of each step, ``(N,)``: t ≤ length. Refuses lengths that x does not have."""
    refuse_packed(x)
    steps = x.shape[1]
    if lengths is None:
        return [True] * steps
    # not in the steps of training, after the checks before them: reading a number would stop a trace
    if (is_validation_enabled() or not torch.is_grad_enabled()) and is_doubtful(
        ((lengths < 1) | (lengths > steps)).any()
    ):
        refuse_lengths(lengths, steps)
    return [lengths > t for t in range(steps)]
