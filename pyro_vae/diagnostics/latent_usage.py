r"""Latent usage and posterior collapse of any (model, guide) pair: KL a unit, active units, mutual information, in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.sites import Program, Site, latent_sites
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.units import by_row, closed_kl, masked, univariate

ACTIVE = 0.01  # Burda's threshold on Var_x(E[z | x])
PAIRS = 65_536  # (i, j) at which q(z_i | x_j) is evaluated at a time


@dataclass(frozen=True)
class Units:
    """One latent site, unit by unit; means over rows, in float64 on the CPU.

    Attributes:
        kl: E_x KL(q(z_u | x) ‖ p(z_u)) for each unit u, ``(U,)``, nats; one number where the site does not factorise.
        kl_mc_se: its Monte Carlo error for these rows, ``(U,)``; 0 where nothing is drawn.
        activity: Var_x(E_q[z_u | x]) for each coordinate, ``(A,)``; NaN where it means nothing (the codes of a Categorical).
        factorised: whether `kl` has one number a unit.
        analytic: whether its KL was in closed form (given the draws of the sites before it), not of draws.
        closed_mean: whether E[z | x] was in closed form (likewise), not a mean of draws.
    """

    kl: Tensor
    kl_mc_se: Tensor
    activity: Tensor
    factorised: bool
    analytic: bool
    closed_mean: bool


@dataclass(frozen=True)
class Latents:
    """Usage of the latents: made by :func:`latents`.

    Attributes:
        sites: the :class:`Units` of each latent site.
        mutual_information: lower bound on I(x; z) in nats, never above log B.
        mutual_information_se: standard deviation of its B terms / √B (draws and rows together).
        batch, rows: B, rows among which it was measured; N, rows that the other figures are means over.
        num_samples: draws of z a row behind them.
    """

    sites: dict[str, Units]
    mutual_information: float
    mutual_information_se: float
    batch: int
    rows: int
    num_samples: int

    @property
    def kl(self) -> float:
        """E_x KL(q(z | x) ‖ p(z)), all sites, nats a row. Without contexts, I(x; z) ≤ kl."""
        return sum(units.kl.sum().item() for units in self.sites.values())

    @property
    def activity(self) -> Tensor:
        """Var_x(E[z_u | x]) of all sites' coordinates that have one, ``(units,)``."""
        every = torch.cat([units.activity for units in self.sites.values()])
        return every[~every.isnan()]

    @property
    def units(self) -> int:
        """The number of coordinates that can be active."""
        return len(self.activity)

    @property
    def kl_per_unit(self) -> Tensor | None:
        """KL of every unit, the sites one after the other; None where a site does not factorise."""
        if not all(units.factorised for units in self.sites.values()):
            return None
        return torch.cat([units.kl for units in self.sites.values()])

    def active(self, threshold: float = ACTIVE) -> int:
        """Count the units with Var_x(E[z_u | x]) > threshold."""
        return int((self.activity > threshold).sum())

    def share(self, threshold: float = ACTIVE) -> float:
        """Return the share of units that are active; NaN where no unit can be."""
        return self.active(threshold) / self.units if self.units else math.nan

    def __str__(self) -> str:
        return (
            f"{self.active()} of {self.units} units active (Var_x E[z|x] > {ACTIVE}), KL {self.kl:.3f} nats a row, "
            f"I(x; z) >= {self.mutual_information:.3f} ± {self.mutual_information_se:.3f} nats "
            f"(at most log {self.batch} = {math.log(self.batch):.2f})"
        )


@suggest_keywords
def latents(
    model: Program,
    guide: Program,
    *args: Tensor,
    num_samples: int = 16,
    batch: int = 500,
    seed: int = 0,
    chunk_size: int = 4096,
) -> Latents:
    r"""KL(q(z_u | x) ‖ p(z_u)) and Var_x(E[z_u | x]) for each unit u, and a lower bound on I(x; z).

    The KL is in closed form where Pyro has one for the unit's two distributions, and otherwise the mean of
    log q(z_u | x) − log p(z_u) over draws. A site has units where prior and posterior both are independent over the last
    event dimensions; any other has one KL. (Given the sites before it: of a hierarchy, closed forms are averaged over draws
    of the parents, and are not used where guide and model draw in different orders.) A unit is active if
    Var_x(E[z_u | x]) > 0.01; where E[z_u | x] is a mean of S draws, the share of their noise, E_x Var(z_u | x) / S, is
    taken off. The last figure,

        1/B Σ_i log q(z_i | x_i) − log 1/B Σ_j q(z_i | x_j),   z_i ~ q(z | x_i),

    has expectation ≤ I(x; z) over rows drawn from the data (row i itself is among the j), and is never above log B; with B
    the whole data set it estimates the index-code information of Hoffman & Johnson. From above, without contexts,
    I(x; z) ≤ KL: both are what a collapsed posterior lacks. Changes no parameter, no module's mode and no global random state.

    Args:
        model, guide: as for :func:`~pyro_vae.log_weights`.
        *args: x of shape ``(N, *event)``, and contexts with N rows.
        num_samples: S, draws of z a row, for what has no closed form; 2 at least, so that their noise is known.
        batch: B, rows of these among which I(x; z) is measured, spread evenly; it costs B² evaluations of q.
        seed: of the draws.
        chunk_size: (row, draw) pairs at a time.

    Raises:
        ProgramError: a pair that cannot be treated row by row.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016; active units), https://arxiv.org/abs/1509.00519
        ELBO surgery (Hoffman & Johnson, 2016), http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        On Variational Bounds of Mutual Information (Poole et al., 2019), https://arxiv.org/abs/1905.06922

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.diagnostics.latent_usage import latents
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):   # the second unit is collapsed
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x / 2, 0 * x], -1)
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))
        >>> usage = latents(model, guide, torch.tensor([-1.0, 0.0, 1.0]))
        >>> usage.kl_per_unit, usage.active()
        (tensor([0.1799, 0.0000], dtype=torch.float64), 1)
    """
    if num_samples < 2 or batch < 1 or chunk_size < 1:
        raise UsageError(
            "num_samples must be at least 2 (for its own noise), batch and chunk_size at least 1; "
            f"got {num_samples}, {batch}, {chunk_size}"
        )
    model, guide, args = on_tensors(model, guide, *args)
    with quiet(model, guide, seed=seed, device=args[0].device):
        problem = Problem.on(model, guide, *(a[:1] for a in args)).over(*args)
        parts = [measured(*some.draw(num_samples), some.plates) for some in problem.split(chunk_size // num_samples)]
        terms = information(problem.over(*(spread(a, batch) for a in args)), seed)
    sites = {name: join([part[name] for part in parts]) for name in parts[0]}
    se = terms.std().item() / len(terms) ** 0.5 if len(terms) > 1 else math.nan
    return Latents(sites, terms.mean().item(), se, len(terms), len(problem), num_samples)


def spread(rows: Tensor, count: int) -> Tensor:
    """Return at most `count` of the rows, evenly spaced."""
    return rows[:: max(1, len(rows) // count)][:count]


@dataclass(frozen=True)
class Drawn:
    """One site on n rows: unit KLs and posterior means, ``(n, units)``, their variances, and the flags of :class:`Units`."""

    kl: Tensor
    kl_noise: Tensor
    mean: Tensor
    mean_noise: Tensor
    flags: tuple[bool, bool, bool]


def measured(q: Sites, p: Sites, plates: Plates) -> dict[str, Drawn]:
    """Measure each latent site on some rows, as the guide drew it and as the model scores it."""
    same_order = list(q) == list(latent_sites(p))
    return {name: drawn(site, p[name], plates, same_order) for name, site in q.items()}


def drawn(q: Site, p: Site, plates: Plates, same_order: bool) -> Drawn:
    """Measure the KL of each unit of a site, and its posterior means."""
    bases = univariate(q["fn"]), univariate(p["fn"])
    factorised = None not in bases
    fq, fp = bases if factorised else (q["fn"], p["fn"])
    dims = q["fn"].event_dim if factorised else 0
    kl = closed_kl(fq, fp) if same_order and q["mask"] is None and p["mask"] is None else None
    analytic = kl is not None
    if kl is None:
        kl = masked(fq.log_prob(q["value"]), q["mask"], dims) - masked(fp.log_prob(p["value"]), p["mask"], dims)
    mean, closed = posterior_mean(q)
    of_kl, of_mean = moments(by_row(kl, dims, plates)), moments(by_row(mean, q["fn"].event_dim, plates))
    return Drawn(*of_kl, *of_mean, (factorised, analytic, closed))


def posterior_mean(site: Site) -> tuple[Tensor, bool]:
    """Return E[z | x] and True, or the draw itself and False. NaN where a mean has no meaning: categories have no order."""
    value = site["value"]
    if isinstance(univariate(site["fn"]), Categorical):
        return torch.full_like(value, math.nan, dtype=torch.float64), True
    try:
        return site["fn"].mean.expand(value.shape), True
    except NotImplementedError:
        return value, False


def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over S draws, and its variance by chance; exactly 0 for draws that are all the same."""
    return draws.mean(0), (draws - draws[0]).var(0) / len(draws)  # shifted: equal draws leave no rounding


def join(parts: list[Drawn]) -> Units:
    """Average over rows."""
    kl, kl_noise, mean, mean_noise = (
        torch.cat([getattr(part, field) for part in parts]) for field in ("kl", "kl_noise", "mean", "mean_noise")
    )
    variance = mean.var(0) if len(mean) > 1 else mean[0] * math.nan
    kl_mc_se = (kl_noise.mean(0) / len(kl)).sqrt()
    return Units(kl.mean(0), kl_mc_se, variance - mean_noise.mean(0), *parts[0].flags)


def information(problem: Problem, seed: int) -> Tensor:
    """log q(z_i | x_i) − log 1/B Σ_j q(z_i | x_j) for each of the B rows, ``(B,)``, float64 on the CPU."""
    count, terms = len(problem), []
    values = {}
    for name, site in seeded_sites(problem, problem.guide, 1, seed).items():
        dim = problem.plates.dim - site["fn"].event_dim
        values[name] = to_rows(as_particles([site["value"].movedim(dim, 1)], dim), dim, count)
    step = max(1, PAIRS // count)
    for start in range(0, count, step):
        some = {name: value[start : start + step] for name, value in values.items()}
        # on one random stream: what the guide draws on the way to its parameters is the same each time
        sites = seeded_sites(problem, problem.guide, min(step, count - start), seed, some)
        log_q = problem.log_prob(sites).to("cpu", torch.float64)
        terms.append(log_q.diagonal(start) - log_q.logsumexp(1) + math.log(count))
    return torch.cat(terms)


def seeded_sites(
    problem: Problem, program: Program, particles: int, seed: int, at: Mapping[str, Tensor] | None = None
) -> dict[str, Site]:
    """Run a program on one random stream, its latents drawn from it or at given values; return its sites."""
    with problem.quiet(seed, 1):
        return problem.sites(program, particles, at)


def as_particles(draws: list[Tensor], dim: int) -> Tensor:
    """Line up the draws ``(S, n, …)`` of all rows as particles, of size 1 along the dimension of rows."""
    return torch.cat(draws, 1).flatten(0, 1).unsqueeze(dim)


def to_rows(value: Tensor, dim: int, rows: int) -> Tensor:
    """Give a draw for one row, of size 1 along `dim`, to all rows."""
    shape = list(value.shape)
    shape[dim] = rows
    return value.expand(shape)
