r"""The classifier's term: α log q(y | x) on the rows whose label is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.plates import sum_rows

from .particles import Draw

SEEN, HIDDEN = "_observed", "_unobserved"  # what Pyro calls the two parts of a site that has an obs_mask


@dataclass(frozen=True)
class supervised:
    r"""+ α log q(y_n | x_n) for each row n whose label y_n is observed, 0 for the others; ``(N,)``.

    In the ELBO of a labelled row q(y | x) has no part, so that labels would not train it. The term does, and as a term of the
    objective it is in no evidence: the guide stays q(y, z | x). The model observes labels by ``obs_mask``, which makes sites
    ``y_observed`` and ``y_unobserved``; the guide draws the latter.

    Args:
        weight: α, in nats a nat; 0.1 N / (number of labelled rows) in Kingma et al.
        site: the name of the label's site, without what `obs_mask` adds.

    Raises:
        UsageError: a negative weight.
        ProgramError: a model that observes no such site in part, or a guide that does not draw the rest.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014; equation 9),
        https://arxiv.org/abs/1406.5298

    Example:
        >>> from pyro_vae import Bound, elbo, supervised
        >>> Bound(elbo, terms=[supervised(10.0)]).terms
        (supervised(weight=10.0, site='y'),)
    """

    weight: float
    site: str = "y"
    takes_codes: ClassVar[bool] = True  # q(y | x) is the same under each code

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UsageError(f"the weight of a classifier's term must be 0 or more, got {self.weight}")

    def __call__(self, draw: Draw) -> Tensor:
        run = draw.first
        seen, hidden = self.site + SEEN, self.site + HIDDEN
        guided: dict[str, Any] = {**getattr(run, "summed", {}), **run.q}
        if seen not in run.p or hidden not in guided:
            raise ProgramError(
                f"supervised(site={self.site!r}) wants labels that are observed in part: "
                f"pyro.sample({self.site!r}, ..., obs=labels, obs_mask=known) in the model, which makes sites {seen!r} and "
                f"{hidden!r}, and {hidden!r} in the guide; got {sorted(run.p)} in the model and {sorted(guided)} in the guide."
            )
        labels = run.p[seen]
        log_q = guided[hidden]["fn"].log_prob(labels["value"])
        kept = scale_and_mask(log_q, mask=labels["mask"])
        return self.weight * torch.mean(sum_rows(hidden, kept, run.problem.plates), 0)
