r"""Bounds on log p(x): functions of log weights, (K, N) → (N,), in nats.

log_w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n), with z_kn ~ q(z | x_n).
"""

from __future__ import annotations

import math

from torch import Tensor


def elbo(log_w: Tensor) -> Tensor:
    r"""1/K Σ_k log w_k: the evidence lower bound, ELBO = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) ≤ log p(x).

    Args:
        log_w: log weights ``(K, N)``, nats.

    Returns:
        ``(N,)``, nats; its expectation is the same for every K.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro_vae import elbo
        >>> elbo(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))
        tensor([ 0., -3.])
    """
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    r"""log 1/K Σ_k w_k: the importance-weighted bound; its expectation rises with K, from the ELBO (K = 1) to log p(x).

    Args:
        log_w: log weights ``(K, N)``, nats.

    Returns:
        ``(N,)``, nats.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_vae import iwae
        >>> iwae(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))
        tensor([ 0.0000, -2.5662])
    """
    return log_w.logsumexp(0) - math.log(len(log_w))
