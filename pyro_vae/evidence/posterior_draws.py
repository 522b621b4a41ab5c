r"""Draws of the posterior p(z | x) by importance resampling, with the diagnosis that says whether they are any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError, UnreliableError
from pyro_vae.evidence.importance.pareto import khat_threshold, pareto_khat, steady_rows
from pyro_vae.evidence.importance.sampler import checked
from pyro_vae.programs.at_means import where_kept
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.row_coupling import warn_of_guide
from pyro_vae.programs.sites import Program, Site, latent_sites

DRAWN = 0x64726177  # of the seed: which particles are taken, apart from the particles


@dataclass(frozen=True)
class Latent:
    """Draws of one site in the shape that the programs give it, ``(draws, ..., n, ..., *event)``."""

    value: Tensor
    event_dim: int


Chunk = tuple[Problem, dict[str, Latent], Tensor]  # rows, their latents resampled, log weights (K, n)


@dataclass(frozen=True, eq=False)
class PosteriorDraws:
    """Draws of p(z | x) for each row.

    Attributes:
        values: by latent site, ``(draws, N, *event)``; NaN in entries that a mask leaves out.
        log_px, ess, khat: log p̂(x) of the particles, their effective number, and Pareto k̂, ``(N,)`` each.
        reliable: rows whose k̂ is below the threshold for so many particles (or whose weights are all but equal), ``(N,)``.
        num_samples, seed: K, particles a row, of which the draws are; of these.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> found = posterior_draws(model, guide, torch.tensor([0.0, 9.0]), draws=100, num_samples=400)
        >>> found.values["z"].shape, found.reliable.tolist()
        (torch.Size([100, 2]), [True, True])
        >>> bool(((found.values["z"].mean(0) - torch.tensor([0.0, 4.5])).abs() < 4 * 0.005**0.5).all())   # N(x / 2, 1/2)
        True
    """

    values: dict[str, Tensor]
    log_px: Tensor
    ess: Tensor
    khat: Tensor
    reliable: Tensor
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.values.items())
        return (
            f"{counted(len(self), 'draw')} of p(z | x) of {counted(len(self.khat), 'row')}: {shapes} | of "
            f"{counted(self.num_samples, 'particle')}, ESS median "
            f"{self.ess.median():.0f}, least {self.ess.min():.1f} | {counted(int((~self.reliable).sum()), 'row')} "
            "not to be believed"
        )


@suggest_keywords
def posterior_draws(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    draws: int = 100,
    num_samples: int = 2000,
    missing: bool = False,
    strict: bool = True,
    seed: int = 0,
    chunk_size: int = 16384,
) -> PosteriorDraws:
    r"""z ~ p(z | x_n) for each row: of K particles z_k ~ q(z | x_n), each draw takes one with probability w_k / Σ w.

    The guide's own draws are of q; these are of the posterior, as K grows. For finite K their error is that of the weights: at
    most `ess` of them are different. Where k̂ says that K particles do not make a posterior, they are refused.

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`.
        draws: of each row, with replacement.
        num_samples: K.
        missing: x may hold NaN, for what was not observed.
        strict: raise where a row's k̂ is too high; False hands such draws out, their rows not `reliable`.
        seed: the same seed draws the same, whatever was drawn before; the global random state is left as it was.
        chunk_size: (row, particle) pairs run at a time, of one row at least.

    Raises:
        UnreliableError: `strict`, and a row that is not reliable; its ``result`` has the draws.
        ProgramError, SupportError, ShapeError, DataError: as :func:`~pyro_vae.log_likelihood`.

    References:
        The Calculation of Posterior Distributions by Data Augmentation: Comment (Rubin, 1987; importance resampling),
        https://doi.org/10.1080/01621459.1987.10478461
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024), https://www.jmlr.org/papers/v25/19-556.html

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):   # the posterior is N(x / 2, 1/2)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2 + 0.2, 0.9))
        >>> found = posterior_draws(model, guide, torch.tensor([0.0, 2.0]), draws=1000)
        >>> found.values["z"].shape, (found.values["z"].mean(0) - torch.tensor([0.0, 1.0])).abs().max().item() < 0.1
        (torch.Size([1000, 2]), True)
    """
    num_samples, chunk_size = whole("num_samples", num_samples, 1), whole("chunk_size", chunk_size, 1)
    draws, seed = whole("draws", draws, 1), whole("seed", seed, 0)
    problem = checked_problem(model, guide, x, *context, seed=seed, missing=missing)
    parts: list[dict[str, Tensor]] = []
    log_w: list[Tensor] = []
    for some, latents, weights in resampled(problem, draws, num_samples, seed, chunk_size):
        parts.append({name: by_row(some, latent) for name, latent in latents.items()})
        log_w.append(weights)
    return diagnosed(joined(parts), torch.cat(log_w, 1), seed, strict)


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the values of chunks of rows, ``(draws, N, ...)`` by site."""
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def diagnosed(values: dict[str, Tensor], log_w: Tensor, seed: int, strict: bool) -> PosteriorDraws:
    """Put draws beside what their particles' weights ``(K, N)`` say of them; refuse them where that is no."""
    khat, num = pareto_khat(log_w), len(log_w)
    share = log_w.softmax(0)
    counts = torch.full_like(khat, num)
    reliable = steady_rows(khat, share.max(0).values, counts)
    ess, log_px = 1 / share.square().sum(0), log_w.logsumexp(0) - math.log(num)
    found = PosteriorDraws(values, log_px, ess, khat, reliable, num, seed)
    bad = (~reliable).nonzero().flatten().tolist()
    if strict and bad:
        raise UnreliableError(
            f"the particles make no posterior in {len(bad)} of {counted(len(khat), 'row')}, the first {bad[:5]}: k̂ is above "
            f"{khat_threshold(num):.2f}, or not known (K = {num}). Give more particles (num_samples=), a guide that fits "
            "better, or strict=False to have the draws all the same (this error's result).",
            found,
        )
    return found


def checked_problem(model: Program, guide: Program, x: Any, *context: Any, seed: int, missing: bool) -> Problem:
    """Check rows and programs, and that the guide draws whatever p(x, z) allows."""
    problem = Problem.of(model, guide, x, *context, seed=seed, missing=missing)
    warn_of_guide(problem, "ESS, k̂, and which draws of the posterior come out,")
    with problem.quiet(seed):
        check_reach(problem)
    return problem


def resampled(problem: Problem, draws: int, num: int, seed: int, chunk_size: int) -> Iterator[Chunk]:
    """Yield, chunk of rows after chunk, the latents that were drawn by weight, ``(draws, n, *event)``, and log weights."""
    for i, some in enumerate(problem.split(chunk_size // num)):
        with some.quiet(seed, i):
            q, p = some.draw(num)
            log_w = checked(some.log_prob(p, "model") - some.log_prob(q, "guide"), num, some).double()
        if (hopeless := (log_w == -math.inf).all(0)).any():
            raise ProgramError(f"all weights are 0 for rows {some.numbers(hopeless)}: no particle explains them.")
        with some.quiet(seed, i, DRAWN):
            chosen = torch.multinomial(log_w.softmax(0).T, draws, replacement=True).T
        yield (
            some,
            {name: taken(some, site, chosen) for name, site in latent_sites(q).items() if name in p},
            log_w.cpu(),
        )


def taken(problem: Problem, site: Site, chosen: Tensor) -> Latent:
    """Take the chosen particles of a site."""
    event_dim = site["fn"].event_dim
    return Latent(torch.take_along_dim(where_kept(site), problem.plates.beside(chosen, event_dim), 0), event_dim)


def by_row(problem: Problem, latent: Latent) -> Tensor:
    """Bring the rows next to the draws, ``(draws, n, ...)``, on the CPU."""
    return problem.plates.leading(latent.value, latent.event_dim).cpu()
