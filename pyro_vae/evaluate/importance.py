r"""log p(x) by importance sampling, streamed over rows and particles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.rows import batch_of
from pyro_vae.errors import DeviceError, ProgramError, UsageError
from pyro_vae.infer.programs import evaluation_mode, like_parameters, resolve_device, without_validation
from pyro_vae.infer.support import check_support, takes_missing
from pyro_vae.infer.weights import Program, find_plates, log_probs
from pyro_vae.progress import tracked
from pyro_vae.seeding import seeded

from .evidence import ROW_FIELDS, Evidence


class Moments:
    """Running sums of K log weights for each of N rows, in float64: log Σ w, log Σ w², Σ log w, Σ (log w)².

    Memory is O(N), whatever K. The order and size of the blocks added does not matter beyond rounding.
    """

    def __init__(self, num_rows: int) -> None:
        self.count = 0
        self.log_w = torch.full((num_rows,), -math.inf, dtype=torch.float64)
        self.log_w2 = torch.full((num_rows,), -math.inf, dtype=torch.float64)
        self.total = torch.zeros(num_rows, dtype=torch.float64)
        self.total2 = torch.zeros(num_rows, dtype=torch.float64)

    def add(self, log_w: Tensor) -> None:
        """Takes in log weights ``(particles, N)``."""
        log_w = log_w.detach().to("cpu", torch.float64)
        self.count += len(log_w)
        self.log_w = torch.logaddexp(self.log_w, log_w.logsumexp(0))
        self.log_w2 = torch.logaddexp(self.log_w2, (2 * log_w).logsumexp(0))
        self.total += log_w.sum(0)
        self.total2 += log_w.square().sum(0)

    @property
    def log_px(self) -> Tensor:
        """log p̂ = log 1/K Σ w."""
        return self.log_w - math.log(self.count)

    @property
    def ess(self) -> Tensor:
        """(Σ w)² / Σ w², between 1 and K."""
        return (2 * self.log_w - self.log_w2).exp().clamp(1, self.count)

    @property
    def mc_se(self) -> Tensor:
        """Delta method: sd(w) / (mean(w) √K) = √((K/ESS − 1) / (K − 1)); NaN for K = 1, where nothing is known of it."""
        return ((self.count / self.ess - 1).clamp_min(0) / (self.count - 1 or math.nan)).sqrt()

    @property
    def elbo(self) -> Tensor:
        """1/K Σ log w."""
        return self.total / self.count

    @property
    def elbo_se(self) -> Tensor:
        """sd(log w) / √K; NaN for K = 1."""
        variance = (self.total2 / self.count - self.elbo.square()).clamp_min(0)
        return (variance / (self.count - 1 or math.nan)).sqrt()


def log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    num_samples: int = 1000,
    seed: int = 0,
    chunk_size: int = 4096,
    vectorize_particles: bool = True,
    missing: bool = False,
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> Evidence:
    r"""log p̂(x_n) = log 1/K Σ_k p(x_n, z_kn) / q(z_kn | x_n) for each row, with its Monte Carlo error; and the ELBO.

    E[p̂] = p(x): exp(log p̂) is unbiased, so log p̂ is a lower bound in expectation that tightens with K. Streamed: memory
    grows with `chunk_size`, not with K · N. Changes no parameter, no module's mode, no optimizer and no global random
    state; the same seed gives the same numbers, whatever was run before.

    Args:
        model: a Pyro program, as for :func:`~pyro_vae.log_weights`.
        guide: its guide, the proposal.
        x: data ``(N, *event)``: a tensor, an array, anything :func:`~pyro_vae.data.as_rows` takes.
        *context: what the programs take beside x, each with N rows.
        num_samples: K, particles a row.
        seed: of the particles; each block of rows and particles has a stream of its own.
        chunk_size: (row, particle) pairs run at a time.
        vectorize_particles: as for :func:`~pyro_vae.log_weights`.
        missing: x may hold NaN, for what was not observed: the result is log p(x_obs). Modules that say so
            (:class:`~pyro_vae.parts.missing.SkipMissing`) need no word here; plain functions that close over them do.
        device: where to compute; None is where the programs' parameters are, or x for programs that no module owns.
            Modules whose methods the programs are get scored in eval mode; call ``.eval()`` yourself on modules that a plain
            function closes over.
        verbose: a progress bar, on a terminal only.

    Returns:
        An :class:`Evidence`: per-row ``log_px``, ``mc_se``, ``ess``, ``elbo``, and their means, in nats.

    Raises:
        SupportError, ShapeError, DataError: x outside the support of the likelihood, of another shape, not finite.
        ProgramError: a pair that has no importance weight for each row.
        DeviceError: a device that is not there.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import log_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def prior_as_guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> evidence = log_likelihood(model, prior_as_guide, torch.tensor([0.0, 1.0]), num_samples=5000)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor([0.0, 1.0]))
        >>> bool(((evidence.log_px - exact).abs() < 4 * evidence.mc_se).all())
        True
    """
    if num_samples < 1 or chunk_size < 1:
        raise UsageError(f"num_samples and chunk_size must be at least 1, got {num_samples} and {chunk_size}")
    like = like_parameters(model, guide)
    place = None if device is None else resolve_device(device)
    args = batch_of(x, *context, like=like, device=place, missing=missing or takes_missing(model, guide))
    device = args[0].device
    if like is not None and like.device != device:
        raise DeviceError(
            f"the data goes to {device}, but the model is on {like.device}: move it there, vae.to({str(device)!r})"
        )
    with evaluation_mode(model, guide), without_validation(), seeded(seed, device=device):
        check_support(model, guide, *args)
        plates = find_plates(model, guide, *(a[:1] for a in args))
    parts: list[Moments] = []
    with evaluation_mode(model, guide), without_validation():
        for i, rows in enumerate(tracked(row_chunks(args, num_samples, chunk_size), "log p(x)", verbose)):
            moments = Moments(len(rows[0]))
            for j, particles in enumerate(particle_chunks(num_samples, chunk_size // len(rows[0]))):
                with seeded(seed, i, j, device=device):
                    log_w = log_probs(
                        model,
                        guide,
                        *rows,
                        num_particles=particles,
                        plates=plates,
                        vectorize_particles=vectorize_particles,
                    ).log_w
                moments.add(checked(log_w, particles, len(rows[0]), sum(len(m.total) for m in parts)))
            parts.append(moments)
    by_row = {field: torch.cat([getattr(m, field) for m in parts]) for field in ROW_FIELDS}
    return Evidence(**by_row, num_samples=num_samples, seed=seed)


def row_chunks(args: tuple[Tensor, ...], num_samples: int, chunk_size: int) -> list[tuple[Tensor, ...]]:
    """Rows in chunks small enough that at least min(K, 64) of their particles fit in one pass."""
    step = max(1, chunk_size // min(num_samples, 64))
    return [tuple(a[i : i + step] for a in args) for i in range(0, len(args[0]), step)]


def particle_chunks(num_samples: int, chunk: int) -> Iterator[int]:
    """K as chunks: their sizes add up to K exactly."""
    chunk = max(1, chunk)
    for start in range(0, num_samples, chunk):
        yield min(chunk, num_samples - start)


def checked(log_w: Tensor, particles: int, rows: int, start: int) -> Tensor:
    """log_w, if it holds one finite-or-minus-infinite weight for each particle and row, which are counted from `start`."""
    if log_w.shape != (particles, rows):
        raise ProgramError(
            f"the programs gave log weights for {log_w.shape[-1]} rows where x has {rows}: a subsampling plate cannot be "
            "scored. Let the data plate run over the rows that are passed in."
        )
    if (log_w.isnan() | (log_w == math.inf)).any():
        bad = (start + (log_w.isnan() | (log_w == math.inf)).any(0).nonzero().flatten()).tolist()
        raise ProgramError(
            f"log weights are NaN or +inf for rows {bad[:5]}: the model or guide put out non-finite parameters "
            "for data that is finite and in the support. Look at the weights and at those rows."
        )
    return log_w
