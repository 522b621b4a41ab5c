"""Independent elements fitted to the training rows: where a decoder's output bias starts, and the floor it must clear."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.infer.support import support_of_site
from pyro_vae.parts.families import MIN_SCALE
from pyro_vae.parts.missing import Observed


def success_logits(x: Tensor, total_count: float) -> Tensor:
    """logit of each column's success rate, with half a success and half a failure added (Jeffreys' prior)."""
    rate = (x.double().sum(0) + 0.5) / (len(x) * total_count + 1)
    return rate.logit().float()


def normal_moments(x: Tensor) -> Tensor:
    """Each column's mean, and its standard deviation (1e-3 at least) as the family's feature."""
    x = x.double()
    spread = (x.std(0, correction=0) - MIN_SCALE).clamp_min(1e-3)
    return torch.cat([x.mean(0), spread.expm1().log()]).float()


def marginal_features(name: str, family: Any, features: int, x: Tensor) -> Tensor:
    """The features, the same for every row, under which independent elements fit the rows: ``(features,)``.

    In closed form for bernoulli, binomial and normal; by gradient, from zero, for every other family, and where values
    are missing.
    """
    if x.isnan().any():
        return fit_marginal(family, features, x)[0]
    if name == "bernoulli":
        return success_logits(x, 1)
    if name == "binomial":
        return success_logits(x, float(family(torch.zeros(1)).total_count))
    if name == "normal":
        return normal_moments(x)
    return fit_marginal(family, features, x)[0]


def fit_marginal(family: Any, features: int, x: Tensor, steps: int = 300, rows: int = 500) -> tuple[Tensor, Any]:
    """Features, and a copy of the family (it may have parameters), that maximise the mean log-density of some rows.

    Rows outside the support are left out: whoever asks refuses them with a better message than a density would.
    """
    family = copy.deepcopy(family) if isinstance(family, nn.Module) else family
    h = torch.zeros(features, requires_grad=True)
    x = x[support_of_site("x", of_rows(family(h), x)).check(x)]
    x = x[:: max(1, len(x) // rows)]
    parameters = [h, *(family.parameters() if isinstance(family, nn.Module) else ())]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(steps if len(x) else 0):
        optimizer.zero_grad()
        (-row_log_prob(family(h), x).mean()).backward()
        optimizer.step()
    return h.detach(), family


def of_rows(d: Any, x: Tensor) -> Any:
    """A distribution over elements as one over rows of them, of what is observed in x."""
    d = d.to_event(1 - d.event_dim)
    return Observed(d) if x.isnan().any() else d


def row_log_prob(d: Any, x: Tensor) -> Tensor:
    """log-density of each row, ``(N,)``."""
    return of_rows(d, x).log_prob(x)


def floor(name: str, family: Any, features: int, train: Tensor, x: Tensor) -> Tensor:
    """Exact log p(x) of each row under independent elements fitted to the training rows: the floor a VAE must clear.

    Example:
        >>> from pyro_vae import bernoulli
        >>> from pyro_vae.runs.marginal import floor
        >>> floor("bernoulli", bernoulli, 1, torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0]]))   # log 1/2
        tensor([-0.6931], dtype=torch.float64)
    """
    if name in ("bernoulli", "binomial", "normal") and not train.isnan().any():
        return row_log_prob(family(marginal_features(name, family, features, train).double()), x.double())
    h, fitted = fit_marginal(family, features, train)
    with torch.no_grad():
        return row_log_prob(fitted(h), x).double()
