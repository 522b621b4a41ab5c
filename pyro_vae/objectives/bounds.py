r"""Bounds on log p(x), ELBO, IWAE and others: functions of log weights, (K, N) or (M, K, N) → (N,), in nats.

log_w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n), with z_kn ~ q(z | x_n). A bound with a parameter is made first, as in
``renyi(alpha=0.5)``: the result is the function, compares equal to another of the same parameter, and prints as it was
made. Values stay finite for log weights of ±1e4 in float32, and a weight of 0 (log w = −∞) counts as the limit. Log weights
of another number of dimensions, or none of them, are a ShapeError. The gradient of each is that of the value: pathwise,
through whatever `log_w` carries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pyro_vae.common.log_sums import log_sum_exp
from pyro_vae.errors import ShapeError, UsageError

FLOOR = -1e30  # a log weight that is 0 to every sum, and yet no infinity, whose differences are NaN


def elbo(log_w: Tensor) -> Tensor:
    r"""1/K Σ_k log w_k: the evidence lower bound, ELBO = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) ≤ log p(x), for any K.

    `log_w` are ``(K, N)``, in nats.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> elbo(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))
        tensor([ 0., -3.])
    """
    check_weights(log_w, 2, "elbo")
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    r"""log 1/K Σ_k w_k: the importance-weighted bound; its expectation rises with K, from the ELBO (K = 1) to log p(x).

    `log_w` are ``(K, N)``, in nats.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> iwae(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))
        tensor([ 0.0000, -2.5662])
    """
    check_weights(log_w, 2, "iwae")
    return log_mean_exp(log_w, 0)


def miwae(log_w: Tensor) -> Tensor:
    r"""1/M Σ_m log 1/K Σ_k w_mk: the mean of M importance-weighted bounds of K; a lower bound, as each is.

    The ELBO for K = 1, IWAE for M = 1. `log_w` are ``(M, K, N)``, in nats.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> miwae(torch.tensor([[[0.0], [0.0]], [[-2.0], [-4.0]]]))
        tensor([-1.2831])
    """
    check_weights(log_w, 3, "miwae")
    return log_mean_exp(log_w, 1).mean(0)


def piwae(log_w: Tensor) -> Tensor:
    r"""log 1/(MK) Σ_mk w_mk: IWAE over all MK weights; its guide is to climb :func:`miwae` of the same weights instead.

    Many weights make the model's gradient better and the guide's noisier. ``piwae.guide_bound`` is the bound an objective
    takes the guide's gradient from; without that attribute a bound serves both. `log_w` are ``(M, K, N)``, in nats.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> piwae(torch.tensor([[[0.0], [0.0]], [[-2.0], [-4.0]]]))
        tensor([-0.6191])
        >>> piwae.guide_bound is miwae
        True
    """
    check_weights(log_w, 3, "piwae")
    return log_mean_exp(log_w.flatten(0, 1), 0)


piwae.guide_bound = miwae  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ciwae:
    r"""β 1/K Σ_k log w_k + (1 − β) log 1/K Σ_k w_k: between IWAE (β = 0) and the ELBO (β = 1), and a bound as both are.

    Raises:
        UsageError: β outside [0, 1].

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), https://arxiv.org/abs/1802.04537

    Example:
        >>> ciwae(beta=0.5)(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))
        tensor([ 0.0000, -2.7831])
    """

    beta: float

    def __post_init__(self) -> None:
        if not is_number(self.beta) or not 0 <= self.beta <= 1:
            raise UsageError(f"ciwae takes beta from 0 (IWAE) to 1 (the ELBO), got {self.beta!r}")

    def __call__(self, log_w: Tensor) -> Tensor:
        if self.beta in (0, 1):  # 0 · −∞ would be NaN
            return elbo(log_w) if self.beta else iwae(log_w)
        return self.beta * elbo(log_w) + (1 - self.beta) * iwae(log_w)


@dataclass(frozen=True)
class renyi:
    r"""1/(1 − α) log 1/K Σ_k w_k^(1−α): Rényi's bound; IWAE at α = 0, the ELBO at α = 1 (the limit), lower for larger α.

    A power mean of the weights, so it falls as α rises, draw by draw: no α ≥ 0 puts it above IWAE, whose expectation is at
    most log p(x).

    Raises:
        UsageError: α negative (there it aims at an upper bound, and at finite K it is none, nor a lower one), NaN or infinite.

    References:
        Rényi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311

    Example:
        >>> renyi(alpha=0.5)(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))
        tensor([ 0.0000, -2.7598])
    """

    alpha: float

    def __post_init__(self) -> None:
        if not is_number(self.alpha) or not 0 <= self.alpha < math.inf:
            raise UsageError(
                f"renyi takes a finite alpha, got {self.alpha!r}: below 0 the value is no bound at finite K, neither "
                "upper nor lower (Li & Turner, 2016). Take 0 (IWAE) to 1 (the ELBO), or above 1: a lower bound still."
            )

    def __call__(self, log_w: Tensor) -> Tensor:
        if self.alpha == 1:
            return elbo(log_w)
        check_weights(log_w, 2, "renyi")
        return log_power_mean(log_w, 1 - self.alpha)


@dataclass(frozen=True)
class tvo:
    r"""Σ_j (β_{j+1} − β_j) E_{π_βj}[log w]: the thermodynamic variational objective, a left sum over 0 = β_0 < … < β_J = 1.

    π_β weighs the K draws by w^β, normalised. Every sampled value is at most IWAE's, for any K: the derivative of
    log 1/K Σ_k w_k^β in β is the average E_{π_β}[log w], which rises with β (its derivative is the variance of log w), so
    the left sum lies below the integral over [0, 1], which is IWAE. One partition is the ELBO; finer ones approach IWAE.
    The gradient has the weights π_β part of it; the paper's covariance (score-function) gradient is another estimator.

    `partitions` is J, with β_1 = `smallest` and β_2 … β_J = 1 log-spaced from there, or the sequence (0, …, 1) itself.

    Raises:
        UsageError: fewer than 1 partition, `smallest` not between 0 and 1, or a sequence that does not rise from 0 to 1.

    References:
        The Thermodynamic Variational Objective (Masrani, Le & Wood, 2019), https://arxiv.org/abs/1907.00031

    Example:
        >>> log_w = torch.tensor([[0.0, -2.0], [0.0, -4.0]])
        >>> tvo(partitions=2, smallest=0.1)(log_w)
        tensor([ 0.0000, -2.9103])
        >>> tvo(partitions=(0, 0.5, 1))(log_w)
        tensor([ 0.0000, -2.7689])
    """

    partitions: int | Sequence[float] = 5
    smallest: float = 0.025

    def __post_init__(self) -> None:
        if not 0 < self.smallest < 1:
            raise UsageError(f"tvo takes smallest between 0 and 1, got {self.smallest!r}")
        if isinstance(self.partitions, int):
            if self.partitions < 1:
                raise UsageError(f"tvo takes at least 1 partition, got {self.partitions}")
            return
        if isinstance(self.partitions, str) or not isinstance(self.partitions, Sequence):
            raise UsageError(
                f"tvo takes a whole number of partitions or a sequence from 0 to 1; got {self.partitions!r}"
            )
        object.__setattr__(self, "partitions", tuple(float(b) for b in self.partitions))
        rises = all(low < high for low, high in pairwise(self.betas))
        if not rises or self.betas[:1] != (0,) or self.betas[-1:] != (1,):
            raise UsageError(f"tvo takes a sequence that rises from 0 to 1, as (0, 0.1, 1); got {self.betas}")

    @property
    def betas(self) -> tuple[float, ...]:
        """The partition β_0 … β_J."""
        if not isinstance(self.partitions, int):
            return tuple(self.partitions)
        steps = self.partitions - 1
        return (0.0, *(self.smallest ** (1 - j / steps) for j in range(steps)), 1.0)

    def __call__(self, log_w: Tensor) -> Tensor:
        check_weights(log_w, 2, "tvo")
        betas = self.betas
        largest = (
            log_w.detach().amax(0).clamp_min(FLOOR)
        )  # averages of what is near 0 keep their digits, in the gradient too
        floored = (log_w - largest).clamp_min(FLOOR)  # 0 · −∞ would be NaN; the term of β = 0 alone says −∞
        total = betas[1] * log_w.mean(0) + (1 - betas[1]) * largest
        for low, high in pairwise(betas[1:]):
            total = total + (high - low) * ((low * floored).softmax(0) * floored).sum(0)
        return total


def log_mean_exp(log_w: Tensor, dim: int) -> Tensor:
    """log 1/K Σ w along `dim`."""
    return log_sum_exp(log_w, dim) - math.log(log_w.shape[dim])


def log_power_mean(log_w: Tensor, power: float) -> Tensor:
    r"""1/a log 1/K Σ_k w_k^a for a ≠ 0: r + 1/a log(1 + 1/K Σ_k (e^(a (log w_k − r)) − 1)), for any r.

    Taken at once, log 1/K Σ w^a is rounded by ε log K, and 1/a makes that large. Here that value is only r, and what it
    lacks comes from a sum of small numbers, rounded by ε |a (log w − r)|.
    """
    with torch.no_grad():
        rough = (log_mean_exp(power * log_w, 0) / power).clamp(log_w.amin(0), log_w.amax(0)).nan_to_num(neginf=0.0)
    return rough + (power * (log_w - rough)).expm1().mean(0).log1p() / power


def is_number(value: object) -> bool:
    """Return whether an option is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_weights(log_w: Tensor, dims: int, name: str) -> None:
    """Refuse log weights that are not ``(K, N)`` (`dims` 2) or ``(M, K, N)`` (`dims` 3), or of which there are none."""
    shape, expected = tuple(log_w.shape), "(K, N)" if dims == 2 else "(M, K, N)"
    if len(shape) != dims:
        groups = "pass num_groups=M to Bound" if dims == 3 else "it takes no groups; miwae and piwae do"
        raise ShapeError(f"{name} wants log weights {expected}, got shape {shape}: {groups}.")
    if 0 in shape[:-1]:
        raise ShapeError(f"{name} wants at least one log weight a row, {expected}, got shape {shape}.")
