"""Marginal baseline: independent elements fitted to the training rows, where an output bias starts and a floor for log p(x)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, constraints

from pyro_vae.common.flagged import is_loose, why_loose
from pyro_vae.distributions.features import MIN_SCALE
from pyro_vae.distributions.missing import Observed
from pyro_vae.evidence.estimate import data_se, finite, format_nats
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.likelihoods.discrete import bernoulli
from pyro_vae.likelihoods.registry import columns
from pyro_vae.programs.support import support_of_site
from pyro_vae.programs.wrapped import bare

CLOSED_FORM = ("bernoulli", "binomial", "normal")
RATE, DOUBLINGS = 0.1, 14  # of Adam: the longest steps reach features of some 10⁵
RISING = 1e-2  # nats a row in fifty steps


def marginal_features(name: str, family: Any, features: int, x: Tensor) -> Tensor:
    """Return the features, one vector for every row, under which independent elements fit the rows: ``(features,)``.

    In closed form for bernoulli, binomial and normal; by gradient, from zero, for every other family, and where values
    are missing.
    """
    if name == "columns":
        return fit_columns(family, x)[0]
    if name not in CLOSED_FORM or x.isnan().any():
        return fit_marginal(family, features, x)[0]
    x = x.double()
    if name == "normal":
        return normal_features(x.mean(0), x.std(0, correction=0)).float()
    trials = 1 if name == "bernoulli" else float(family(torch.zeros(1)).total_count)
    return (
        ((x.sum(0) + 0.5) / (len(x) * trials + 1)).logit().float()
    )  # half a success and half a failure (Jeffreys' prior)


def fit_marginal(family: Any, features: int, x: Tensor, steps: int = 300, rows: int = 500) -> tuple[Tensor, Any]:
    """Fit features, and a copy of the family (it may have parameters), to the mean log-density of some rows.

    Rows outside the support are left out: whoever asks refuses them with a better message than a density would.
    """
    family = copy.deepcopy(family) if isinstance(family, nn.Module) else family
    h = torch.zeros(features, requires_grad=True)
    x = x[support_of_site("x", of_rows(family(h), x)).check(x)]
    x = x[:: max(1, len(x) // rows)]
    parameters = [h, *(family.parameters() if isinstance(family, nn.Module) else ())]
    if len(x):
        climb(lambda: of_rows(family(h), x).log_prob(x).mean(), parameters, steps)
    return h.detach(), family


def fit_columns(family: Any, x: Tensor) -> tuple[Tensor, Any]:
    """Fit the blocks of :func:`~pyro_vae.likelihoods.columns` one by one: in closed form, or else by gradient.

    Normal, Bernoulli and categorical columns are fitted to what is observed of them.
    """
    fitted, blocks = [], []
    for block, features, rows in zip(family.families, family.features, x.split(family.widths, -1), strict=True):
        h = closed_form(block, features, rows)
        h, own = fit_marginal(block, features, rows) if h is None else (h, block)
        fitted.append(h.float())
        blocks.append((own, features, rows.shape[-1]))
    return torch.cat(fitted), columns(blocks)


def closed_form(family: Any, features: int, x: Tensor) -> Tensor | None:
    """Return the features of a block that fit what is observed of each column; None where no closed form is known."""
    x = x.double()
    if family is normal:
        return normal_features(x.nanmean(0), (x - x.nanmean(0)).square().nanmean(0).sqrt())
    there = (~x.isnan()).sum(0)
    if family is bernoulli:
        return ((x.nansum(0) + 0.5) / (there + 1)).logit()
    if isinstance(family(torch.zeros(features)), Categorical):
        codes = torch.arange(features // x.shape[1]).unsqueeze(-1)
        return ((x.unsqueeze(1) == codes).sum(0) + 0.5).log().flatten()  # half a row of each (Jeffreys' prior)
    return None


def normal_features(loc: Tensor, spread: Tensor) -> Tensor:
    """Return the features of a normal of this mean and standard deviation, which the family keeps from 0."""
    spread = (spread - MIN_SCALE).clamp_min(1e-3)
    return torch.cat([loc, spread + (-torch.expm1(-spread)).log()])  # log(e^s − 1), which overflows at 710


def climb(objective: Callable[[], Tensor], parameters: list[Tensor], steps: int) -> None:
    """Maximize by Adam; where the first steps do not reach the top, by longer ones, and by shorter ones again at the end."""
    rate, end = RATE, False
    while not end:
        end = ascend(objective, parameters, rate, steps) <= RISING or rate > RATE * 2**DOUBLINGS
        rate = rate if end else 2 * rate
    while rate > RATE:
        rate /= 2
        ascend(objective, parameters, rate, steps // 3)


def ascend(objective: Callable[[], Tensor], parameters: list[Tensor], rate: float, steps: int) -> float:
    """Take some steps of Adam; return what the last sixth of them gained. Steps that end in no number are taken back."""
    before = [p.detach().clone() for p in parameters]
    optimizer, values = torch.optim.Adam(parameters, lr=rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = objective()
        (-value).backward()
        optimizer.step()
        values.append(value.item())
    if not all(math.isfinite(value) for value in values):
        for p, was in zip(parameters, before, strict=True):
            p.data.copy_(was)
        return 0.0
    return values[-1] - values[-1 - steps // 6]


def of_rows(d: Any, x: Tensor) -> Any:
    """Turn a distribution over elements into one over rows, of what is observed in x."""
    d = d.to_event(1 - d.event_dim)
    return Observed(d) if x.isnan().any() else d


def summarize_floor(model: str, log_px: Tensor, floor_px: Tensor) -> dict[str, Any]:
    """Average a floor over rows, with its data error, and log p(x) of a model above it, paired row by row; None if unknown."""
    above = log_px - floor_px
    return {
        "model": model,
        "log_px": floor_px.mean().item(),
        "log_px_data_se": data_se(floor_px),
        "cleared_by": finite(above.mean()),
        "cleared_by_se": data_se(above) if above.isfinite().all() else None,
    }


def within_chance(told: Mapping[str, Any]) -> bool:
    """Return whether log p(x) and its floor are known to differ by no more than two standard errors of their difference.

    Example:
        >>> [within_chance({"cleared_by": by, "cleared_by_se": 0.1}) for by in (-0.02, 0.5)]
        [True, False]
    """
    cleared, se = told.get("cleared_by"), told.get("cleared_by_se")
    return cleared is not None and se is not None and abs(cleared) <= 2 * se


def below_floor(told: Mapping[str, Any], evidence: Mapping[str, Any]) -> str | None:
    """Say that a model lies below its floor, with the standard error of the paired difference; else None.

    Where too many rows of the evidence are flagged, log p(x) is a loose bound, and so is the difference.

    Example:
        >>> told = summarize_floor("independent elements", torch.tensor([-9.0, -9.5]), torch.tensor([-2.0, -2.5]))
        >>> below_floor(told, {"rows": 2, "rows_flagged": 0})
        'log p(x) lies 7.000 ± 0.000 nats a row below the floor (independent elements): ...'
    """
    cleared, se = told.get("cleared_by"), told.get("cleared_by_se")
    if cleared is None or cleared >= 0:
        return None
    below = f"{format_nats(-cleared)} ± {format_nats(se)} nats a row"
    decided = se is not None and not within_chance(told)
    better = "is better" if decided else "is at least as good, for all that these rows tell"
    if is_loose(evidence):
        below = f"{'about' if 'how' in evidence else 'at most'} {-cleared:.2f} nats a row ({why_loose(evidence)})"
        better = "may be better"
    return (
        f"log p(x) lies {below} below the floor ({told['model']}): a model that knows "
        f"each element apart {better}. Look at the scale of x (--standardize), the likelihood and its support, fewer epochs "
        "(--patience) or a smaller --learning-rate."
    )


def floor(name: str, family: Any, features: int, train: Tensor, x: Tensor) -> Tensor:
    """Return log p(x) of each row under independent elements fitted to the training rows: a VAE must clear it.

    Densities of real or positive numbers are fitted in standard units (:func:`standard_units`), so that the floor of c x is
    that of x less log c an element: bounds that networks keep to, as the least scale, would bind at small units.

    Example:
        >>> from pyro_vae import bernoulli
        >>> floor("bernoulli", bernoulli, 1, torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0]]))   # log 1/2
        tensor([-0.6931], dtype=torch.float64)
    """
    loc, scale = standard_units(family, features, train)
    jacobian = torch.where(x.isnan(), 0.0, scale.log()).flatten(1).sum(1)
    train, x = ((rows.double() - loc) / scale for rows in (train, x))
    return fitted_floor(name, family, features, train, x) - jacobian


def fitted_floor(name: str, family: Any, features: int, train: Tensor, x: Tensor) -> Tensor:
    """:func:`floor` in the units that rows come in."""
    if name in CLOSED_FORM and not train.isnan().any():
        d = family(marginal_features(name, family, features, train).double())
        return of_rows(d, x).log_prob(x)
    h, fitted = fit_columns(family, train) if name == "columns" else fit_marginal(family, features, train)
    with torch.no_grad():
        return of_rows(fitted(h), x).log_prob(x).double()


def standard_units(family: Any, features: int, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return where elements lie and how wide they are, ``(D,)`` each; 0 and 1 where a family has a unit.

    A family of real or positive numbers has none, unless its scale is given. By medians, and by mean squares where more than
    half of the values are alike.

    Example:
        >>> from pyro_vae.likelihoods import gamma
        >>> standard_units(gamma, 2, torch.tensor([[200.0], [300.0], [900.0]]))
        (tensor([0.], dtype=torch.float64), tensor([300.], dtype=torch.float64))
    """
    with torch.no_grad():
        support = bare(support_of_site("x", family(torch.zeros(features))))
    given = features <= train[0].numel() and not isinstance(family, nn.Module)  # a feature for the location alone
    x, zero = train.double(), torch.zeros(train.shape[1:], dtype=torch.float64)
    middle = x.nanmedian(0).values.nan_to_num()
    if given:
        return zero, zero + 1
    if isinstance(support, type(constraints.real)):
        loc, scale = middle, (x - middle).abs().nanmedian(0).values
    elif support in (constraints.positive, constraints.nonnegative):
        loc, scale = zero, middle
    else:
        return zero, zero + 1
    spread = (x - loc).square().nanmean(0).sqrt()
    scale = torch.where(scale > 1e-3 * spread, scale, spread)
    scale = torch.where(scale > 0, scale, loc.abs())
    return loc, torch.where(scale > 0, scale, 1.0).nan_to_num(nan=1.0)
