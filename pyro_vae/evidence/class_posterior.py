r"""p(y | x) by Bayes' rule, from log p(x, y) under each class: for any program with a discrete latent of few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.common.flagged import format_bound, is_loose
from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import stream
from pyro_vae.errors import ProgramError
from pyro_vae.programs.codes import MOST, enumerable, listed
from pyro_vae.programs.problem import rows_of
from pyro_vae.programs.sites import Program, latent_sites
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.summed_out import sites_of

from .estimate import data_se, format_nats, mean_se
from .importance.estimator import importance
from .importance.result import Evidence


class AtClass(Messenger):
    """Observe one class at a discrete site, in every row."""

    def __init__(self, site: str, value: Tensor) -> None:
        super().__init__()
        self.site, self.value = site, value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and not msg["is_observed"]:
            msg["value"], msg["is_observed"] = self.value.expand(msg["fn"].shape()), True
            msg["infer"] = {key: value for key, value in (msg["infer"] or {}).items() if key != "enumerate"}


@dataclass(frozen=True, eq=False)
class ClassPosterior:
    r"""log p(x_n, y = c) of each row and class, ``(N, C)``, in nats: made by :func:`class_posterior`.

    Attributes:
        log_joint, log_joint_se: log p(x_n, c), and its Monte Carlo standard error.
        values: the values of the site, ``(C, *event)``.
        site: its name.
        flagged: rows in which some class has weights that are not to be believed, however small its p(y = c | x) looks: where
            the guide misses a class, log p(x, c) comes out too low by any number of nats, and the class looks impossible.
        by_class: the evidence of each class, which says by ``flagged`` of which class a row is flagged.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Bernoulli(0.25))
        ...         z = pyro.sample("z", dist.Normal(4 * y, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):                                            # q(z | x, y) is the posterior
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Bernoulli(0.5))
        ...         pyro.sample("z", dist.Normal(x / 2 + 2 * y, 0.5**0.5))
        >>> found = class_posterior(model, guide, torch.tensor([0.5, 5.0, 2.0]), num_samples=30)
        >>> found.values[found.probs.argmax(-1)], found.flagged      # the most probable class of each row
        (tensor([0., 1., 0.]), tensor([], dtype=torch.int64))
        >>> found.log_px.shape, found.by_class[1].log_px.shape       # log p(x), and log p(x, y = 1)
        (torch.Size([3]), torch.Size([3]))
    """

    log_joint: Tensor
    log_joint_se: Tensor
    values: Tensor
    site: str
    flagged: Tensor
    by_class: tuple[Evidence, ...]

    def __len__(self) -> int:
        return len(self.log_joint)

    @property
    def log_px(self) -> Tensor:
        """log p(x) = log Σ_c p(x, c), ``(N,)``."""
        return self.log_joint.logsumexp(-1)

    @property
    def mc_se(self) -> Tensor:
        """Monte Carlo standard error of :attr:`log_px`, by the delta method, classes being independent; ``(N,)``."""
        return (self.probs * self.log_joint_se).square().sum(-1).sqrt()

    @property
    def probs(self) -> Tensor:
        """p(y = c | x) = p(x, c) / p(x), ``(N, C)``."""
        return self.log_joint.softmax(-1)

    @property
    def probs_se(self) -> Tensor:
        """Monte Carlo standard error of :attr:`probs`, by the delta method, ``(N, C)``."""
        p, se = self.probs, self.log_joint_se
        all_others = (p * se).square().sum(-1, keepdim=True) - (p * se).square()
        return p * ((1 - p).square() * se.square() + all_others).sqrt()

    def __str__(self) -> str:
        summary = {"log_px": self.log_px.mean().item(), "rows": len(self), "rows_flagged": len(self.flagged)}
        errors = f"± {format_nats(mean_se(self.mc_se))} (Monte Carlo) ± {format_nats(data_se(self.log_px))} (data)"
        number = format_bound(summary) if is_loose(summary) else f"{summary['log_px']:.3f} {errors}"
        return (
            f"log p(x) {number} nats, over {self.log_joint.shape[1]} classes of {self.site!r} | {len(self)} rows, "
            f"{len(self.flagged)} flagged"
        )

    __repr__ = __str__


@suggest_keywords
def class_posterior(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    site: str = "y",
    num_samples: int = 1000,
    seed: int = 0,
    verbose: bool = True,
) -> ClassPosterior:
    r"""p(y = c | x_n) = p(x_n, c) / Σ_k p(x_n, k), each log p(x_n, c) by importance sampling from q(z | x, c).

    The class is observed in turn, in both programs: what the guide says of it, q(y | x), is not used, and may be held against
    this. Where the guide does not draw the site, its q(z | x) proposes for all classes alike. Each class takes a run of
    :func:`~pyro_vae.log_likelihood` of its own.

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`; y is a latent here, of a program that is called
            without labels.
        site: the discrete site.
        num_samples: K, for each class.
        seed: of all draws; classes have streams of their own.
        verbose: a progress bar on a terminal; elsewhere a line of how long is to go, where that is long.

    Raises:
        ProgramError: no such latent, one without a list of values, or more than 10,000 of them; a class that is the model's
            only latent; and as :func:`~pyro_vae.log_likelihood`.
        SupportError, ShapeError, DataError: likewise.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import class_posterior
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Bernoulli(0.25))
        ...         z = pyro.sample("z", dist.Normal(4 * y, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):                                            # q(z | x, y) is the posterior, q(y | x) is not
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Bernoulli(0.5))
        ...         pyro.sample("z", dist.Normal(x / 2 + 2 * y, 0.5**0.5))
        >>> class_posterior(model, guide, torch.tensor([2.0]), num_samples=10).probs    # x = 2 is half way: p(y)
        tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    check_whole(num_samples=num_samples, seed=seed)
    model, guide, args = on_tensors(model, guide, x, *context)
    args = rows_of(model, guide, *args)
    values = values_of(site, model, args)
    runs = []
    for c, value in enumerate(values):
        at = AtClass(site, value)
        own = stream(seed, c)  # not seed + c, under which the next seed would draw this one's particles
        run = importance(at(model), at(guide), *args, num_samples=num_samples, seed=own, verbose=verbose)
        runs.append(run)
    log_joint, se = (torch.stack([getattr(run, name) for run in runs], -1) for name in ("log_px", "mc_se"))
    flagged = torch.cat([run.flagged for run in runs]).unique()
    return ClassPosterior(log_joint, se, values, site, flagged, tuple(runs))


def values_of(site: str, model: Program, args: tuple[Tensor, ...]) -> Tensor:
    """List the values of a discrete latent of a model, ``(C, *event)``."""
    latent = latent_sites(sites_of(model, args))
    if site not in latent:
        raise ProgramError(
            f"the model has no latent site {site!r} (it has {', '.join(map(repr, latent)) or 'none'}): name the discrete one "
            "by site=, and call the program without labels."
        )
    fn = latent[site]["fn"]
    if len(latent) == 1:
        raise ProgramError(
            f"site {site!r} is the model's only latent, so that p({site} | x) has nothing to sum over: by Bayes' rule it is "
            f"the softmax over classes of log p({site}) + log p(x | {site}), which the likelihood gives. Classes here are "
            "those of a model with other latents."
        )
    values = listed(site, fn)
    if not enumerable(site, fn) or fn.event_shape != values.shape[1:] or len(values) > MOST:
        raise ProgramError(
            f"site {site!r} has values of shape {tuple(fn.event_shape)}, and classes are up to {MOST} values of one site: "
            "write it as one Categorical."
        )
    return values
