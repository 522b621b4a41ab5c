r"""log p̂(x) of the first K particles, as K grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError
from pyro_vae.programs.sites import Program

from .estimator import importance
from .proposals import GUIDE, Proposal
from .result import Evidence

SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@suggest_keywords
def convergence(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    samples: Sequence[int] = SAMPLES,
    proposal: Proposal = GUIDE,
    rows: range | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    vectorize_particles: bool = True,
    missing: bool = False,
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> list[Evidence]:
    r"""log p̂_K(x_n) = log 1/K Σ_{k ≤ K} w_kn for each K of `samples`, of one run of particles: does the bound still rise?

    E[log p̂_K] rises with K to log p(x). Each K adds particles to those of the K before: blocks of 4,096 (row, particle) pairs
    are run once, and the last is :func:`~pyro_vae.log_likelihood` with as many `num_samples`, to the bit. The
    estimates share particles: they are not independent, and log p̂ need not rise from each K to the next.

    Args:
        samples: K, rising.
        model, guide, x, *context, proposal, rows, seed, chunk_size, vectorize_particles, missing, device, verbose: as for
            :func:`~pyro_vae.log_likelihood`.

    Returns:
        An :class:`~pyro_vae.Evidence` for each K; :func:`~pyro_vae.plots.evidence.convergence_curve` draws their ``summary()``.

    Raises:
        UsageError: `samples` that do not rise from 1 or more.
        ProgramError, SupportError, ShapeError, DataError: as :func:`~pyro_vae.log_likelihood`.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016; the bound rises with K),
        https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, log_likelihood
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 3), bernoulli), Conditional(MLP(3, 2), normal))
        >>> curve = convergence(vae.model, vae.guide, torch.eye(3), samples=(1, 10, 100))
        >>> [evidence.num_samples for evidence in curve]
        [1, 10, 100]
        >>> bool((curve[-1].log_px == log_likelihood(vae.model, vae.guide, torch.eye(3), num_samples=100).log_px).all())
        True
    """
    for k in samples:
        check_whole(samples=k)
    check_whole(seed=seed, chunk_size=chunk_size)
    if not samples or samples[0] < 1 or list(samples) != sorted(set(samples)):
        raise UsageError(f"samples must rise from 1 or more, got {tuple(samples)}")
    curve: list[Evidence] = []
    for k in samples:
        evidence = importance(
            model, guide, x, *context, num_samples=samples[-1], particles=range(k), resume=curve[-1] if curve else None,
            proposal=proposal, rows=rows, seed=seed, chunk_size=chunk_size, vectorize_particles=vectorize_particles,
            missing=missing, device=device, verbose=verbose,
        )  # fmt: skip
        curve.append(evidence)
    return curve
