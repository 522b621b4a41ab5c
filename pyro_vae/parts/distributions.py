"""Densities that Pyro lacks, or has in a form that does not stay finite or normalised in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import logsigmoid

Shape = Sequence[int]


class Beta(dist.Beta):
    """Beta on the open interval (0, 1): at 0 and 1 the density is 0 or infinite, so neither has a log-likelihood."""

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return OpenUnitInterval()

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        y = super().rsample(torch.Size(sample_shape))
        limits = torch.finfo(y.dtype)
        return y.clamp(limits.tiny, 1 - limits.eps)  # where float rounds a draw to 0 or 1


class Gamma(dist.Gamma):
    """Gamma on y > 0: torch admits y = 0 too, where the density is 0 or infinite unless the concentration is 1."""

    support = constraints.positive  # type: ignore[assignment]


class OpenUnitInterval(constraints.Constraint):
    """0 < y < 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "0 < y < 1"


class ContinuousBernoulli(dist.TorchDistribution):
    r"""p(y) = η e^{ηy} / (e^η − 1) for y in [0, 1]: an exponential cut off at 1, rising where η > 0.

    torch's own clamps η to ±16 (float32) in the normaliser alone, so that beyond it the density no longer integrates to 1.
    Here η is any float, and near 0 its Taylor series is used (absolute error below 2e-12).

    Args:
        logits: η.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham, 2019),
        https://arxiv.org/abs/1907.06845

    Example:
        >>> from pyro_vae.parts.distributions import ContinuousBernoulli
        >>> ContinuousBernoulli(torch.tensor(0.0)).log_prob(torch.tensor(0.3)).exp()   # uniform
        tensor(1.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> ContinuousBernoulli:
        new = ContinuousBernoulli(self.logits.expand(torch.Size(batch_shape)), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _near_0(self, width: float = 0.25) -> tuple[Tensor, Tensor]:
        """Return where |η| is small, and |η| with 1 there: where() after a division by 0 would leave NaN in the gradient."""
        near = self.logits.abs() < width
        return near, torch.where(near, torch.ones_like(self.logits), self.logits).abs()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        near, size = self._near_0()
        t = torch.where(near, self.logits, torch.zeros_like(self.logits)).square()
        taylor = t / 24 - t.square() / 2880 + t**3 / 181440  # of log sinh(η/2) / (η/2)
        from_peak = torch.where(self.logits > 0, value - 1, value)  # e^η cancels by hand
        far = self.logits * from_peak - (-torch.expm1(-size) / size).log()
        return torch.where(near, self.logits * (value - 0.5) - taylor, far)

    @property
    def mean(self) -> Tensor:
        near, size = self._near_0()
        eta = torch.where(near, self.logits, torch.zeros_like(self.logits))
        taylor = eta / 12 - eta**3 / 720 + eta**5 / 30240
        return 0.5 + torch.where(near, taylor, self.logits.sign() * (0.5 / torch.tanh(size / 2) - 1 / size))

    @property
    def variance(self) -> Tensor:
        near, size = self._near_0()
        t = torch.where(near, self.logits, torch.zeros_like(self.logits)).square()
        far = size**-2 - torch.exp(-size) / torch.expm1(-size).square()
        return torch.where(near, 1 / 12 - t / 240 + t.square() / 6048, far)

    def icdf(self, value: Tensor) -> Tensor:
        near, size = self._near_0(1e-3)
        falling = -torch.log1p(value * torch.expm1(-size)) / size
        far = torch.where(self.logits > 0, 1 + torch.log1p((1 - value) * torch.expm1(-size)) / size, falling)
        return torch.where(near, value + self.logits * value * (1 - value) / 2, far).clamp(0, 1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))


class DiscretizedLogistic(dist.TorchDistribution):
    r"""p(y) = s((y + ½ − loc) / scale) − s((y − ½ − loc) / scale), counts y in 0..levels − 1, s the logistic function.

    The bins of 0 and of levels − 1 reach to −∞ and +∞. With a the upper and b the lower edge of a bin,
    log(s(a) − s(b)) = log s(a) + log s(−b) + log(1 − e^{b − a}): no difference of numbers near each other.

    Args:
        loc: in counts.
        scale: in counts.
        levels: at least 2, the same for every element.

    References:
        PixelCNN++ (Salimans, Karpathy, Chen & Kingma, 2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> from pyro_vae.parts.distributions import DiscretizedLogistic
        >>> d = DiscretizedLogistic(torch.tensor(3.0), torch.tensor(1.0), levels=8)
        >>> round(d.log_prob(torch.arange(8.0)).exp().sum().item(), 5)
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> DiscretizedLogistic:
        loc, scale = (t.expand(torch.Size(batch_shape)) for t in (self.loc, self.scale))
        new = DiscretizedLogistic(loc, scale, self.levels, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        below_upper = logsigmoid((value + 0.5 - self.loc) / self.scale)
        above_lower = logsigmoid(-(value - 0.5 - self.loc) / self.scale)
        inner = below_upper + above_lower + torch.log(-torch.expm1(-1 / self.scale))
        return torch.where(value <= 0, below_upper, torch.where(value >= self.levels - 1, above_lower, inner))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            limits = torch.finfo(self.loc.dtype)
            # the logit of 0 and of 1 is infinite
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(limits.tiny, 1 - limits.eps)
            return (self.loc + self.scale * u.logit()).round().clamp(0, self.levels - 1)

    def _at_least(self) -> tuple[Tensor, Tensor]:
        """Return k = 1..levels − 1 and P(y ≥ k), with k as the last dimension."""
        k = torch.arange(1, self.levels, dtype=self.loc.dtype, device=self.loc.device)
        return k, torch.sigmoid((self.loc.unsqueeze(-1) - k + 0.5) / self.scale.unsqueeze(-1))

    @property
    def mean(self) -> Tensor:
        """Σ_k P(y ≥ k): exact, in time and memory that grow with `levels`."""
        return self._at_least()[1].sum(-1)

    @property
    def variance(self) -> Tensor:
        k, tail = self._at_least()
        return (((2 * k - 1) * tail).sum(-1) - self.mean.square()).clamp_min(0)  # E[y²] − E[y]², rounded


class ZeroInflated(dist.TorchDistribution):
    r"""p(y) = g [y = 0] + (1 − g) base(y), for counts y ≥ 0 and g = s(gate_logits).

    Pyro's own scores through the probability g once anything has been sampled, which is −∞ for g that rounds to 1.

    Args:
        base: over counts, with no event dimension.
        gate_logits: log-odds of an extra zero.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.parts.distributions import ZeroInflated
        >>> ZeroInflated(dist.Poisson(torch.tensor(4.0)), torch.tensor(0.0)).mean
        tensor(2.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate_logits": constraints.real}

    def __init__(self, base: TorchDistributionMixin, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(base.batch_shape, gate_logits.shape)
        self.base, self.gate_logits = base.expand(batch_shape), gate_logits.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self.base.support

    def expand(self, batch_shape: Shape, _instance: Any = None) -> ZeroInflated:
        new = ZeroInflated(self.base, self.gate_logits.expand(torch.Size(batch_shape)), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        counted = logsigmoid(-self.gate_logits) + self.base.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), counted), counted)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            y = self.base.sample(torch.Size(sample_shape))
            return y * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(y.shape))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        counted, extra = torch.sigmoid(-self.gate_logits), torch.sigmoid(self.gate_logits)
        return counted * (self.base.variance + extra * self.base.mean.square())


class Multinomial(dist.Multinomial):
    """Multinomial whose support is exactly the whole numbers ≥ 0 that sum to total_count; torch's admits smaller sums."""

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return Counts(self.total_count)


class Counts(constraints.Constraint):
    """Rows of whole numbers ≥ 0 that sum to `total`."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total: int) -> None:
        self.total = total

    def check(self, value: Tensor) -> Tensor:
        return ((value >= 0) & (value == value.round())).all(-1) & (value.sum(-1) == self.total)

    def __repr__(self) -> str:
        return f"whole numbers that sum to {self.total}"


class Columns(dist.TorchDistribution):
    r"""p(y) = Π_b p_b(y_b): a row whose blocks of columns have different families, independent of each other.

    Args:
        blocks: distributions over ``(width,)`` each (event dim 1), whose batch shapes broadcast.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae.parts.distributions import Columns
        >>> age, visits = dist.Normal(torch.zeros(5, 1), 1.0), dist.Poisson(torch.full((5, 2), 3.0))
        >>> d = Columns([age.to_event(1), visits.to_event(1)])
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> d.mean[0]
        tensor([0., 3., 3.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, blocks: Sequence[TorchDistributionMixin], validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(*(b.batch_shape for b in blocks))
        self.blocks = [b.expand(batch_shape) for b in blocks]
        super().__init__(batch_shape, torch.Size([sum(self.widths)]), validate_args=validate_args)

    @property
    def widths(self) -> list[int]:
        return [b.event_shape[0] for b in self.blocks]

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return ColumnsConstraint([b.support for b in self.blocks], self.widths)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(b.has_rsample for b in self.blocks)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Columns:
        new = Columns([b.expand(torch.Size(batch_shape)) for b in self.blocks], validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        values = value.split(self.widths, -1)
        return torch.stack([b.log_prob(v) for b, v in zip(self.blocks, values, strict=True)]).sum(0)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return torch.cat([b.sample(torch.Size(sample_shape)) for b in self.blocks], -1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return torch.cat([b.rsample(torch.Size(sample_shape)) for b in self.blocks], -1)

    @property
    def mean(self) -> Tensor:
        """Means of the columns; NaN in those that have none, such as classes."""
        return self._moments("mean")

    @property
    def variance(self) -> Tensor:
        return self._moments("variance")

    def _moments(self, name: str) -> Tensor:
        moments = [_moment(b, name) for b in self.blocks]
        like = next((m for m in moments if m is not None), torch.empty(()))
        pairs = zip(moments, self.blocks, strict=True)
        return torch.cat([like.new_full(b.shape(), math.nan) if m is None else m for m, b in pairs], -1)


def _moment(block: TorchDistributionMixin, name: str) -> Tensor | None:
    try:
        return getattr(block, name)
    except NotImplementedError:
        return None


class ColumnsConstraint(constraints.Constraint):
    """Rows whose blocks of columns lie each in a support of its own."""

    event_dim = 1

    def __init__(self, supports: Sequence[Any], widths: Sequence[int]) -> None:
        self.supports, self.widths = list(supports), list(widths)
        self.is_discrete = all(s.is_discrete for s in supports)

    def check(self, value: Tensor) -> Tensor:
        return self.check_blocks(value).all(-1)

    def check_blocks(self, value: Tensor) -> Tensor:
        """Return which blocks are within their support, ``(*batch, blocks)``."""
        values = value.split(self.widths, -1)
        return torch.stack([s.check(v) for s, v in zip(self.supports, values, strict=True)], -1)

    def __repr__(self) -> str:
        blocks, start = [], 0
        for support, width in zip(self.supports, self.widths, strict=True):
            base = getattr(support, "base_constraint", support)
            blocks.append(f"{start}..{start + width - 1}: {base}" if width > 1 else f"{start}: {base}")
            start += width
        return f"columns {'; '.join(blocks)}"
