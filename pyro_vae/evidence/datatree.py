r"""A fitted pair on its rows as an ``xarray.DataTree``, in ArviZ's groups: what its plots and summaries take.

There is no ``log_likelihood`` group. ArviZ would take it for log p(x_n | θ) of parameters θ that all rows share, and leave rows
out by weights 1 / p(x_n | z): for a latent of the row's own that is the harmonic mean of p(x_n | z) under p(z | x_n), which is
some 8 nats above log p(x_n) where the posterior is known in closed form. log p(x_n) itself is in ``sample_stats``; for
``compare`` there is :meth:`~pyro_vae.Evidence.to_elpd`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.optional import imported
from pyro_vae.programs.at_means import where_kept
from pyro_vae.programs.data_map import data_map_of_few
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import Program, Site
from pyro_vae.programs.unconditioned import refuse_factors, refuse_interventions, undone, was_observed

from .posterior_draws import Latent, by_row, checked_problem, diagnosed, joined, resampled

PRIOR, REDRAWN = 0x7072, 0x7265  # of the seed
Groups = dict[str, dict[str, Tensor]]


class Ranks(Protocol):
    """What is read of a :class:`~pyro_vae.diagnostics.sbc.Calibration`."""

    names: tuple[str, ...]
    ranks: Tensor
    num_draws: int


@suggest_keywords
def to_datatree(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    draws: int = 200,
    num_samples: int = 2000,
    calibration: Ranks | None = None,
    missing: bool = False,
    strict: bool = True,
    seed: int = 0,
    chunk_size: int = 16384,
) -> Any:
    r"""Draws of a pair as an ``xarray.DataTree``: write it by its ``to_netcdf(path)``, plot it with ArviZ.

    | group | holds | dimensions |
    |---|---|---|
    | ``posterior`` | z ~ p(z given x_n), as :func:`~pyro_vae.posterior_draws`; not of the guide | chain, draw, data, z_dim |
    | ``posterior_predictive`` | x ~ p(x given z) at these | chain, draw, data, x_dim |
    | ``prior``, ``prior_predictive`` | z and x of the model alone, a row for each of x and its contexts | likewise |
    | ``sample_stats`` | log p(x, z) of each draw; log p(x), ESS and k̂ of each row | chain, draw, data |
    | ``observed_data`` | what the model's sites observe | data, x_dim |
    | ``prior_sbc`` | ranks of a calibration over their number, uniform where q(z given x) is the posterior | chain, draw |

    There is one chain, of independent draws with replacement (``r_hat`` wants two and says nothing here). An element of a site
    of several dimensions has one number, along one dimension; counts are whole numbers. No ``log_likelihood``: leave-one-out
    over latents of a row's own is a harmonic mean, far too high (:mod:`pyro_vae.evidence.datatree`).

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`.
        draws: of each row.
        num_samples: K, particles a row, of which posterior draws are taken.
        calibration: of :func:`~pyro_vae.simulation_based_calibration`, for ``prior_sbc``.
        missing, strict, seed, chunk_size: as for :func:`~pyro_vae.posterior_draws`.

    Raises:
        MissingExtraError: xarray is not installed.
        UnreliableError: `strict`, and k̂ says of a row that there are no posterior draws.
        ProgramError, SupportError, ShapeError, DataError: as :func:`~pyro_vae.log_likelihood`.

    Example:
        >>> from pyro_vae.common.optional import installed
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 3), bernoulli), Conditional(MLP(3, 4), normal))
        >>> if installed("xarray"):
        ...     tree = to_datatree(vae.model, vae.guide, torch.eye(3), draws=50)
        ...     assert dict(tree.posterior.sizes) == {"chain": 1, "draw": 50, "data": 3, "z_dim": 2}
    """
    xarray = imported("xarray", "arviz", "to_datatree")
    draws, num_samples = whole("draws", draws, 1), whole("num_samples", num_samples, 1)
    chunk_size, seed = whole("chunk_size", chunk_size, 1), whole("seed", seed, 0)
    problem = checked_problem(model, guide, x, *context, seed=seed, missing=missing)
    with problem.quiet():
        data_map_of_few(problem.model, problem.args, seed)  # refuses a model that reads x, which has no draws of x
    parts: list[Groups] = []
    log_w: list[Tensor] = []
    for i, (some, latents, weights) in enumerate(resampled(problem, draws, num_samples, seed, chunk_size)):
        parts.append(posterior_groups(some, latents, draws, (seed, i)) | prior_groups(some, draws, (seed, i)))
        log_w.append(weights)
    groups = {name: joined([part[name] for part in parts]) for name in parts[0]}
    found = diagnosed(groups["posterior"], torch.cat(log_w, 1), seed, strict)
    of_rows = {"log_px": found.log_px, "ess": found.ess, "khat": found.khat}
    tree = {name: drawn(xarray, values) for name, values in groups.items() if name != "observed_data"}
    tree["sample_stats"] = tree["sample_stats"].assign({k: ("data", v.numpy()) for k, v in of_rows.items()})
    tree["observed_data"] = of_data(xarray, groups["observed_data"])
    if calibration is not None:
        tree["prior_sbc"] = ranked(xarray, calibration)
    about = {"inference_library": "pyro_vae", "num_samples": num_samples, "seed": seed, "measure": problem.measure}
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=about), **tree})


def posterior_groups(problem: Problem, latents: Mapping[str, Latent], draws: int, block: Sequence[int]) -> Groups:
    """Draw x again at draws of z; log p(x, z) of these; and what was observed."""
    at = {
        name: latent.value.nan_to_num() for name, latent in latents.items()
    }  # what a mask leaves out is read by nothing
    seed, *rest = block
    with problem.quiet(seed, *rest, REDRAWN):
        sites = problem.sites(problem.model, draws, at)
        lp = problem.log_prob(sites, "model").double()
        seen = {name: site for name, site in sites.items() if name not in latents}
        again = {name: values_of(problem, site, site["fn"].sample()) for name, site in seen.items()}
        data = {name: values_of(problem, site, site["value"]) for name, site in seen.items()}
    return {
        "posterior": {name: by_row(problem, latent) for name, latent in latents.items()},
        "posterior_predictive": again,
        "sample_stats": {"lp": lp.cpu()},
        "observed_data": {name: value[:1] for name, value in data.items()},  # the same in each draw
    }


def prior_groups(problem: Problem, draws: int, block: Sequence[int]) -> Groups:
    """Draw z and x of the model alone, for each row."""
    seed, *rest = block
    with problem.quiet(seed, *rest, PRIOR):
        sites = problem.sites(undone(problem.model), draws)
    refuse_factors(sites)
    refuse_interventions(sites)
    values = {name: values_of(problem, site, site["value"]) for name, site in sites.items()}
    ours = {name for name, site in sites.items() if not was_observed(site)}
    return {
        "prior": {name: value for name, value in values.items() if name in ours},
        "prior_predictive": {name: value for name, value in values.items() if name not in ours},
    }


def values_of(problem: Problem, site: Site, value: Tensor) -> Tensor:
    """Return values of a site as ``(draws, n, ...)``: whole numbers where they are such, NaN where a mask leaves them out."""
    fn = site["fn"]
    kept = where_kept({**site, "value": value.expand(fn.shape())})
    whole_numbers = bool(getattr(fn.support, "is_discrete", False)) and not kept.isnan().any()
    return by_row(problem, Latent(kept.long() if whole_numbers else kept, fn.event_dim))


def drawn(xarray: Any, values: Mapping[str, Tensor]) -> Any:
    """Make a group of draws, ``(draws, N, ...)`` each: one chain, and one dimension for all elements of a row."""
    variables = {}
    for name, value in values.items():
        flat = value.reshape(*value.shape[:2], -1) if value.dim() > 2 else value
        variables[name] = (("chain", "draw", "data", f"{name}_dim")[: flat.dim() + 1], flat.unsqueeze(0).numpy())
    return xarray.Dataset(variables)


def of_data(xarray: Any, values: Mapping[str, Tensor]) -> Any:
    """Make the group of what was observed, ``(N, ...)``."""
    return drawn(xarray, values).isel(chain=0, draw=0)


def ranked(xarray: Any, calibration: Ranks) -> Any:
    """Make the group of simulation-based calibration: a variable a quantity, rank / L of each simulated row."""
    shares = calibration.ranks.double() / calibration.num_draws
    by_name = torch.where(calibration.ranks < 0, torch.nan, shares).T.unsqueeze(1).numpy()
    return xarray.Dataset({name: (("chain", "draw"), s) for name, s in zip(calibration.names, by_name, strict=True)})
