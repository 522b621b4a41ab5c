r"""Latent usage and posterior collapse of any (model, guide) pair: KL a unit, active units, mutual information, in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_vae.common.flagged import format_nats
from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.parts_of_rows import IN_TURN, PartsOfRows
from pyro_vae.errors import UsageError
from pyro_vae.programs.masked_latents import check_masked
from pyro_vae.programs.masks import same_mask
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.row_coupling import refuse_guide_reading_rows
from pyro_vae.programs.sites import Program, Site, latent_sites
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.units import by_row, closed_kl, masked, univariate
from pyro_vae.programs.wide_scoring import wide_log_prob

from .drawn_sites import Drawn, drawn_of, tensors_of
from .mutual_information import information, information_of_sites

ACTIVE = 0.01  # Burda's threshold on Var_x(E[z | x])


@dataclass(frozen=True)
class Units:
    """One latent site, unit by unit; means over rows, in float64 on the CPU.

    Attributes:
        kl: E_x KL(q(z_u | x) ‖ p(z_u)) for each unit u, ``(U,)``, nats; one number where the site does not factorise. A
            row in which the unit is masked counts as 0, as it does in the ELBO.
        kl_mc_se: its Monte Carlo error for these rows, ``(U,)``; 0 where nothing is drawn.
        activity: Var_x(E_q[z_u | x]) for each coordinate, ``(A,)``, among the rows that have it; NaN where it means nothing
            (the codes of a Categorical, a mask that depends on draws, a coordinate that fewer than 2 rows have).
        factorised: whether `kl` has one number a unit.
        analytic: whether its KL was in closed form (given the draws of the sites before it), not of draws.
        closed_mean: whether E[z | x] was in closed form (likewise), not a mean of draws.
        rows: how many rows have each coordinate, ``(A,)``: N, less those in which a mask takes it out.
    """

    kl: Tensor
    kl_mc_se: Tensor
    activity: Tensor
    factorised: bool
    analytic: bool
    closed_mean: bool
    rows: Tensor


@dataclass(frozen=True)
class Latents:
    """Usage of the latents: made by :func:`latents`.

    Attributes:
        sites: the :class:`Units` of each latent site.
        mutual_information: lower bound on I(x; z) in nats, never above `information_limit`.
        mutual_information_se: standard deviation of its B terms / √B (draws and rows together).
        information_limit: log B, all that B rows can show; with masked latents the mean, over rows, of log of the number of
            rows that have the same ones.
        batch, rows: B, rows among which it was measured; N, rows that the other figures are means over.
        num_samples: draws of z a row behind them.
        information: where there are several sites, lower bound on I(x; z_l) of each alone, and its standard error, as above;
            what two of them know of x may be the same, so they do not add up. Made by :func:`latents` alone.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):   # the second unit is closed: q = p
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x / 2, torch.zeros_like(x)], -1)
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))
        >>> usage = latents(model, guide, torch.linspace(-2, 2, 50))
        >>> usage.units, (usage.activity > 0.01).tolist(), usage.kl_per_unit[1].item()
        (2, [True, False], 0.0)
        >>> usage.mutual_information < usage.information_limit
        True
    """

    sites: dict[str, Units]
    mutual_information: float
    mutual_information_se: float
    information_limit: float
    batch: int
    rows: int
    num_samples: int
    information: dict[str, tuple[float, float]] = field(default_factory=dict)

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

    def plot(self) -> Any:
        """Plot the KL of each unit, active ones apart (a matplotlib figure).

        Raises:
            UsageError: a site that does not factorise has no KL of its units.
        """
        from pyro_vae.plots.latents import unit_bars

        if (kl := self.kl_per_unit) is None:
            raise UsageError("a latent site does not factorise: its units have no KL of their own to plot")
        return unit_bars(kl.tolist(), self.activity.tolist() if self.units == len(kl) else None)

    def __str__(self) -> str:
        whole = f"log {self.batch} = {math.log(self.batch):.2f}"
        masked = self.information_limit < math.log(self.batch) - 1e-9
        limit = f"{self.information_limit:.2f}, as masks leave rows with the same latents only" if masked else whole
        levels = [f"\n  {self.describe_site(name)}" for name in self.information]
        return (
            f"{self.active()} of {self.units} units active (Var_x E[z|x] > {ACTIVE}), KL {self.kl:.3f} nats a row, "
            f"I(x; z) >= {self.mutual_information:.3f} ± {format_nats(self.mutual_information_se)} nats "
            f"(at most {limit}){''.join(levels)}"
        )

    def describe_site(self, name: str) -> str:
        """Say of one site of several what the first line says of all."""
        units, (bound, se) = self.sites[name], self.information[name]
        activity = units.activity[~units.activity.isnan()]
        return (
            f"{name}: {int((activity > ACTIVE).sum())} of {len(activity)} units active, KL {units.kl.sum():.3f} nats a row, "
            f"I(x; {name}) >= {bound:.3f} ± {format_nats(se)} nats"
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
    I(x; z) ≤ KL: both are what a collapsed posterior lacks. Of several sites each has such a figure of its own, for which
    q(z_i | x_j) is a mean over 8 draws of the sites that the guide draws before it: a lower bound, too, and a looser one.

    Of masked latents (ragged sequences, missing sites) z_i are those that row i has, and the j are the rows that have the
    same ones: the figure bounds I(x; z | mask), a row without latents adds 0 to it, and which latents a row has counts as
    no information. The KL is a mean over all rows, as in the ELBO, where a masked unit has none.

    Changes no parameter, no module's mode and no global random state.

    Args:
        model, guide: as for :func:`~pyro_vae.log_weights`.
        *args: x of shape ``(N, *event)``, and contexts with N rows.
        num_samples: S, draws of z a row, for what has no closed form; 2 at least, so that their noise is known.
        batch: B, rows of these among which I(x; z) is measured, spread evenly; it costs B² evaluations of q.
        seed: of the draws.
        chunk_size: (row, draw) pairs at a time.

    Raises:
        ProgramError: a pair that cannot be treated row by row; a latent that is masked in one program and not in the other,
            or whose value is read where it is masked.

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
    num_samples = whole("num_samples", num_samples, 2)  # for its own noise
    batch, chunk_size = whole("batch", batch, 1), whole("chunk_size", chunk_size, 1)
    model, guide, args = on_tensors(model, guide, *args)
    with quiet(model, guide, seed=seed, device=args[0].device):
        problem = Problem.on_first_row(model, guide, *args)
        refuse_guide_reading_rows(problem, "I(x; z) compares")
        some = problem.over(*(spread(a, batch) for a in args))
        found = usage(problem, some, num_samples, seed, chunk_size)
        if len(found.sites) == 1:
            return found
        return replace(found, information={n: mean_and_se(t) for n, t in information_of_sites(some, seed).items()})


def usage(
    problem: Problem,
    some: Problem,
    num_samples: int,
    seed: int,
    chunk_size: int = 4096,
    sites: dict[str, Units] | None = None,
    over: PartsOfRows = IN_TURN,
) -> Latents:
    """Measure as :func:`latents` does: units on the rows of a problem, I(x; z) on `some` of them; `sites` if known already.

    The rows go `over` parts, which processes may share.
    """
    if sites is None:
        parts = problem.split(over.size(len(problem), chunk_size // num_samples))
        made = over(len(parts), lambda i: tensors_of(measured(parts[i], num_samples)), problem.device)
        sites = joined([drawn_of(part) for part in made])
    terms, limit = information(some, seed, over)
    return Latents(sites, *mean_and_se(terms), limit, len(terms), len(problem), num_samples)


def mean_and_se(terms: Tensor) -> tuple[float, float]:
    """Average over rows, with the standard error; NaN of one row."""
    return terms.mean().item(), terms.std().item() / len(terms) ** 0.5 if len(terms) > 1 else math.nan


def spread(rows: Tensor, count: int) -> Tensor:
    """Return at most `count` of the rows, evenly spaced."""
    return rows[:: max(1, len(rows) // count)][:count]


def measured(problem: Problem, num_samples: int) -> dict[str, Drawn]:
    """Draw the latents of some rows, and measure each site."""
    q, p = problem.draw(num_samples)
    return of_sites(q, p, problem.plates, check_masked(problem, q))


def of_sites(q: Sites, p: Sites, plates: Plates, there: Mapping[str, Tensor]) -> dict[str, Drawn]:
    """Measure each latent site, as the guide drew it and as the model scores it; `there` tells of masked ones."""
    same_order = list(q) == list(latent_sites(p))
    return {name: drawn(site, p[name], plates, same_order, there.get(name)) for name, site in q.items()}


def drawn(q: Site, p: Site, plates: Plates, same_order: bool, there: Tensor | None) -> Drawn:
    """Measure the KL of each unit of a site, and its posterior means."""
    bases = univariate(q["fn"]), univariate(p["fn"])
    factorised = None not in bases
    fq, fp = bases if factorised else (q["fn"], p["fn"])
    event_dim = q["fn"].event_dim
    dims = event_dim if factorised else 0
    kl = closed_kl(fq, fp) if same_order and same_mask(q["mask"], p["mask"]) else None
    analytic = kl is not None
    if kl is None:
        kl = masked(wide_log_prob(fq, q["value"]), q["mask"], dims)
        kl = kl - masked(wide_log_prob(fp, p["value"]), p["mask"], dims)
    else:
        kl = masked(kl, q["mask"], dims)
    mean, closed = posterior_mean(q)
    of_kl, means = moments(by_row(kl, dims, plates)), by_row(mean, event_dim, plates)
    has = torch.ones_like(means, dtype=torch.bool) if there is None else plates.by_unit(there, event_dim).cpu()
    if not (has == has[:1]).all():
        means = torch.full_like(means, math.nan)  # whether a row has it depends on draws: there is no one E[z | x]
    return Drawn(*of_kl, *moments(means), has.any(0), (factorised, analytic, closed))


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


def joined(parts: list[dict[str, Drawn]]) -> dict[str, Units]:
    """Join what parts of the rows showed of each site."""
    return {name: join([part[name] for part in parts]) for name in parts[0]}


def join(parts: list[Drawn]) -> Units:
    """Average over rows; activity over those that have the unit."""
    kl, mean = (torch.cat([getattr(part, field) for part in parts]) for field in ("kl", "mean"))
    noises = [(part.kl_noise, part.mean_noise, part.has) for part in parts if part.has is not None]
    if not noises:  # nothing is drawn, and all rows have all units
        activity = mean.var(0) if len(mean) > 1 else mean[0] * math.nan
        every = torch.full(mean.shape[1:], len(mean))
        return Units(kl.mean(0), torch.zeros_like(kl[0]), activity, *parts[0].flags, rows=every)
    kl_noise, mean_noise, has = (torch.cat(of_parts) for of_parts in zip(*noises, strict=True))
    kl_mc_se, count = (kl_noise.mean(0) / len(kl)).sqrt(), has.sum(0)
    if has.all():
        variance, noise = mean.var(0) if len(mean) > 1 else mean[0] * math.nan, mean_noise.mean(0)
    else:
        noise = torch.where(has, mean_noise, 0.0).sum(0) / count
        off = torch.where(has, mean - torch.where(has, mean, 0.0).sum(0) / count, 0.0)
        variance = torch.where(count > 1, off.square().sum(0) / (count - 1), math.nan)
    return Units(kl.mean(0), kl_mc_se, variance - noise, *parts[0].flags, rows=count)
