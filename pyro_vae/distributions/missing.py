r"""Missing data: NaN in x means unobserved; the likelihood leaves it out (:mod:`pyro_vae.models.missing` has the networks).

For a likelihood that factorises over elements, p(x_obs | z) = Π over observed j of p(x_j | z): leaving factors out integrates
x_mis out exactly, so log p(x_obs) is bounded and estimated as log p(x) is (for values missing at random).
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import Independent, constraints

from pyro_vae.errors import ProgramError

HOLDS_ZERO = (type(constraints.boolean), type(constraints.real))


class OrMissing(constraints.Constraint):
    """The values that the constraint `observed` allows, and NaN."""

    def __init__(self, observed: Any) -> None:
        self.observed = observed
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return self.observed.is_discrete

    def check(self, value: Tensor) -> Tensor:
        return self.observed.check(value) | value.isnan()

    def __repr__(self) -> str:
        return f"{self.observed} or NaN"


class Observed(TorchDistribution):
    r"""log p(x_obs) = Σ over j with x_j not NaN of log p(x_j), for a distribution p that factorises over elements.

    Draws, mean and variance are those of p, of all elements. A row with nothing observed scores exactly 0.

    Args:
        base: ``(*batch, *event)``, elementwise independent: events declared by ``to_event`` alone, or a table of ``blocks``
            of such columns (:func:`~pyro_vae.likelihoods.columns`).

    Raises:
        ProgramError: a base whose elements depend on each other.

    Example:
        >>> import pyro.distributions as dist
        >>> d = Observed(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> d.log_prob(torch.tensor([[0.0, 0.0], [0.0, torch.nan], [torch.nan, torch.nan]]))
        tensor([-1.8379, -0.9189,  0.0000])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's name and form)
    skips_missing = True
    has_rsample: Any = property(attrgetter("base_dist.has_rsample"))
    mean: Any = property(attrgetter("base_dist.mean"))
    mode: Any = property(attrgetter("base_dist.mode"))
    variance: Any = property(attrgetter("base_dist.variance"))

    def __init__(self, base: TorchDistributionMixin, validate_args: bool | None = None) -> None:
        self.base_dist: Any = base
        check_factorises(base)
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return support_of(self.base_dist)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return score(self.base_dist, value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Observed:
        return Observed(self.base_dist.expand(torch.Size(batch_shape)), validate_args=False)


def score(d: Any, value: Tensor) -> Tensor:
    """Sum the log-densities of the elements, those of missing ones set to 0, in the order in which d itself sums."""
    if isinstance(d, Independent):
        terms, dims = score(d.base_dist, value), d.reinterpreted_batch_ndims
        return terms.flatten(-dims).sum(-1) if dims else terms
    if blocks := blocks_of(d):
        return torch.stack([score(b, v) for b, v in zip(blocks, value.split(d.widths, -1), strict=True)]).sum(0)
    # NaN must be gone before log_prob: where() after it would leave 0 · NaN = NaN in the gradient
    missing = value.isnan()
    return d.log_prob(torch.where(missing, filler(d).to(value), value)).masked_fill(missing, 0.0)


def support_of(d: Any) -> Any:
    """Return the support of d with NaN allowed in each element."""
    if isinstance(d, Independent):
        return constraints.independent(support_of(d.base_dist), d.reinterpreted_batch_ndims)
    if blocks := blocks_of(d):
        return type(d.support)([support_of(b) for b in blocks], d.widths)
    return OrMissing(d.support)


def blocks_of(d: Any) -> list[Any]:
    """Return the distributions that a table of columns (:func:`~pyro_vae.likelihoods.columns`) is made of, or none."""
    return d.blocks if hasattr(d, "blocks") and hasattr(d, "widths") else []


def check_factorises(d: Any) -> None:
    """Refuse a distribution that is not made of single elements by ``to_event`` or in blocks."""
    while isinstance(d, Independent):
        d = d.base_dist
    blocks = blocks_of(d)
    for block in blocks:
        check_factorises(block)
    if d.event_shape and not blocks:
        raise ProgramError(
            f"a {type(d).__name__} (event shape {tuple(d.event_shape)}) does not factorise over elements, so its "
            "missing values cannot be left out by skipping terms. Use a likelihood of independent elements (.to_event), "
            "or write the marginal of the observed part as a distribution of your own."
        )


def filler(d: Any) -> Tensor:
    """Return a constant inside the support of each element, where log-density and gradient are finite; nothing is drawn.

    Continuous elements: their mean (a constant far from it may have no finite density in float32), if that is finite.
    """
    try:
        support = d.support
    except NotImplementedError as error:
        raise ProgramError(
            f"a {type(d).__name__} does not say what its support is, and so not what may stand for a missing value. Give "
            "its class one, as in support = pyro.distributions.constraints.real."
        ) from error
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    constant = feasible(support)
    if support.is_discrete:
        return constant
    try:
        mean = d.mean.detach()
    except NotImplementedError:
        return constant
    return torch.where(d.support.check(mean) & mean.isfinite(), mean, constant.to(mean))


def feasible(support: Any) -> Tensor:
    """Return a value that satisfies an elementwise constraint: the least of a discrete one, inside the bounds of others."""
    if isinstance(support, HOLDS_ZERO):  # nothing is read back: a training step may be traced here
        return torch.tensor(0.0)
    low, high = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    if low is None and high is None:
        candidates = (torch.tensor(c) for c in (0.0, 0.5, 1.0))
        return next((c for c in candidates if bool(support.check(c).all())), torch.tensor(0.0))
    if low is None:
        return torch.as_tensor(high).detach() - 1.0
    low = torch.as_tensor(low).detach()
    if support.is_discrete:
        return low
    return low + 1.0 if high is None else (low + torch.as_tensor(high).detach()) / 2
