"""log p(x) without Pyro: importance sampling and annealed importance sampling, as one writes them in PyTorch."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .by_hand import ByHand, normal_log_prob


def log_weights(model: ByHand, x: Tensor, samples: int) -> Tensor:
    """log p(x, z) − log q(z | x) at fresh draws, ``(K, N)``."""
    loc, scale = model.posterior(x)
    z = loc + scale * torch.randn(samples, *loc.shape, device=x.device)
    return log_joint(model, z, x) - normal_log_prob(z, loc, scale)


def log_joint(model: ByHand, z: Tensor, x: Tensor) -> Tensor:
    return log_likelihood(model, z, x) + normal_log_prob(z, torch.zeros_like(z), torch.ones_like(z))


def log_likelihood(model: ByHand, z: Tensor, x: Tensor) -> Tensor:
    logits = model.decoder(z)
    return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


class ImportanceSampling:
    """log p(x) of each row from K draws, so many (row, draw) pairs at a time: the log of running sums is all that is kept."""

    def __init__(self, model: ByHand, pairs: int, compiled: bool) -> None:
        self.pairs = pairs
        self.log_weights = torch.compile(log_weights) if compiled else log_weights
        self.model = model

    @torch.no_grad()
    def __call__(self, x: Tensor, samples: int) -> Tensor:
        rows = max(1, min(len(x), self.pairs // samples or 64))
        each = max(1, min(samples, self.pairs // rows))
        return torch.cat([self.of_rows(part, samples, each) for part in x.split(rows)])

    def of_rows(self, x: Tensor, samples: int, each: int) -> Tensor:
        total = x.new_full((len(x),), -math.inf, dtype=torch.float64)
        for start in range(0, samples, each):
            log_w = self.log_weights(self.model, x, min(each, samples - start))
            total = torch.logaddexp(total, log_w.double().logsumexp(0))
        return total - math.log(samples)


def annealed(
    model: ByHand,
    x: Tensor,
    temperatures: int = 100,
    chains: int = 16,
    leapfrog_steps: int = 10,
    step_size: float = 0.1,
) -> Tensor:
    """log p(x) by AIS from the prior with Hamiltonian transitions, temperatures on a sigmoid; nothing is tuned."""
    betas = torch.linspace(-4, 4, temperatures + 1, device=x.device).sigmoid()
    betas = (betas - betas[0]) / (betas[-1] - betas[0])
    z = torch.randn(chains, len(x), model.case.latent, device=x.device)
    log_w = x.new_zeros(chains, len(x), dtype=torch.float64)
    with torch.no_grad():
        score = log_likelihood(model, z, x)
    for before, beta in pairwise(betas):
        log_w += (beta - before) * score
        z, score = transition(model, x, z, beta, leapfrog_steps, step_size)
    return log_w.logsumexp(0) - math.log(chains)


def gradient(model: ByHand, x: Tensor, z: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log π_β up to a constant, its gradient, and log p(x | z)."""
    z = z.detach().requires_grad_()
    score = log_likelihood(model, z, x)
    value = beta * score - 0.5 * z.square().sum(-1)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope, score.detach()


def transition(
    model: ByHand, x: Tensor, z: Tensor, beta: Tensor, leapfrog_steps: int, step_size: float
) -> tuple[Tensor, Tensor]:
    """One Hamiltonian trajectory, accepted or not; the state, and log p(x | z) there."""
    momentum = torch.randn_like(z)
    value, slope, score = gradient(model, x, z, beta)
    energy, new, moved = 0.5 * momentum.square().sum(-1) - value, z, momentum + 0.5 * step_size * slope
    for step in range(leapfrog_steps):
        new = new + step_size * moved
        new_value, slope, new_score = gradient(model, x, new, beta)
        moved = moved + (step_size if step < leapfrog_steps - 1 else 0.5 * step_size) * slope
    accepted = torch.rand_like(value).log() < energy - (0.5 * moved.square().sum(-1) - new_value)
    return torch.where(accepted.unsqueeze(-1), new, z), torch.where(accepted, new_score, score)
