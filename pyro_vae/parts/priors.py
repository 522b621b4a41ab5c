"""Priors p(z): modules that return a distribution when called. They take a context and may leave it unused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.common.spec import Spec
from pyro_vae.errors import ShapeError, UsageError

from .families import MIN_SCALE
from .flows import FlowPrior
from .mixtures import mixture
from .sphere import SphereUniform

__all__ = [
    "PRIORS",
    "DiagonalNormal",
    "Dirichlet",
    "FlowPrior",
    "Laplace",
    "Mixture",
    "OneHot",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "VampPrior",
]  # fmt: skip


class StandardNormal(nn.Module):
    r"""p(z) = N(0, I) in `dim` dimensions.

    Example:
        >>> from pyro_vae import StandardNormal
        >>> StandardNormal(16)().event_shape
        torch.Size([16])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        at_least(1, dim=dim)
        # constants: they move with `.to(device)`, and are not saved
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        return f"dim={self.loc.numel()}"


def at_least(minimum: float, **sizes: float) -> None:
    """Refuse sizes below `minimum`, by name."""
    for name, size in sizes.items():
        if size < minimum:
            raise UsageError(f"{name} must be at least {minimum}, got {size}")


def unsoftplus(y: float) -> float:
    """log(e^y − 1): the number whose softplus is y."""
    return math.log(math.expm1(y))


UNIT = unsoftplus(1 - MIN_SCALE)  # softplus(UNIT) + MIN_SCALE = 1


class LocationScale(nn.Module):
    """A product of one-dimensional distributions, at 0 with scale 1 unless loc and scale are learned."""

    loc: Tensor
    raw_scale: Tensor

    def __init__(self, dim: int, learned: bool) -> None:
        super().__init__()
        at_least(1, dim=dim)
        for name, tensor in (("loc", torch.zeros(dim)), ("raw_scale", torch.full((dim,), UNIT))):
            if learned:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor, persistent=False)

    @property
    def scale(self) -> Tensor:
        return softplus(self.raw_scale) + MIN_SCALE

    def base(self) -> TorchDistributionMixin:
        raise NotImplementedError

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return self.base().to_event(1)

    def extra_repr(self) -> str:
        return f"dim={self.loc.numel()}, learned={isinstance(self.loc, nn.Parameter)}"


class DiagonalNormal(LocationScale):
    r"""p(z) = N(loc, diag(scale²)), both learned; starts as N(0, I). Event shape ``(dim,)``, support R^dim.

    With a free decoder behind it, an affine layer could absorb loc and scale; it matters where the decoder is restricted.

    Example:
        >>> from pyro_vae.parts.priors import DiagonalNormal
        >>> DiagonalNormal(4)().log_prob(torch.zeros(4)).item()   # as N(0, I)
        -3.67...
    """

    def __init__(self, dim: int, learned: bool = True) -> None:
        super().__init__(dim, learned)

    def base(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale)


class Laplace(LocationScale):
    r"""p(z) = Π_i exp(−|z_i − loc_i| / scale_i) / (2 scale_i), at 0 with scale 1 unless learned. Support R^dim.

    Example:
        >>> from pyro_vae.parts.priors import Laplace
        >>> Laplace(4)(), Laplace(4)().log_prob(torch.zeros(4)).item()   # -4 log 2
        (Independent(Laplace(loc: torch.Size([4]), scale: torch.Size([4])), 1), -2.77...)
    """

    def __init__(self, dim: int, learned: bool = False) -> None:
        super().__init__(dim, learned)

    def base(self) -> TorchDistributionMixin:
        return dist.Laplace(self.loc, self.scale)


class StudentT(LocationScale):
    r"""p(z) = Π_i t_df((z_i − loc_i) / scale_i) / scale_i, at 0 with scale 1 unless learned. Support R^dim.

    Args:
        dim: number of latents.
        df: degrees of freedom, > 0; 1 is a Cauchy. The variance is finite above 2.
        learned: whether loc and scale are.

    Example:
        >>> from pyro_vae.parts.priors import StudentT
        >>> StudentT(4, df=3.0)().event_shape
        torch.Size([4])
    """

    def __init__(self, dim: int, df: float = 5.0, learned: bool = False) -> None:
        super().__init__(dim, learned)
        if not df > 0:
            raise UsageError(f"df must be positive, got {df}")
        self.df = df

    def base(self) -> TorchDistributionMixin:
        return dist.StudentT(self.df, self.loc, self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, df={self.df}"


class Mixture(nn.Module):
    r"""p(z) = Σ_k π_k N(z; loc_k, diag(scale_k²)), all learned. Event shape ``(dim,)``, support R^dim.

    Starts with equal weights, scales of 1 and locations drawn from N(0, I) (by torch's global generator).

    Args:
        dim: number of latents.
        components: K.

    Example:
        >>> from pyro_vae.parts.priors import Mixture
        >>> Mixture(4, components=3)().expand((7, 5)).sample().shape
        torch.Size([7, 5, 4])
    """

    def __init__(self, dim: int, components: int = 10) -> None:
        super().__init__()
        at_least(1, dim=dim, components=components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, dim))
        self.raw_scale = nn.Parameter(torch.full((components, dim), UNIT))

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        components = dist.Normal(self.loc, softplus(self.raw_scale) + MIN_SCALE).to_event(1)
        return mixture(dist.Categorical(logits=self.logits), components)

    def extra_repr(self) -> str:
        return f"dim={self.loc.shape[1]}, components={self.loc.shape[0]}"


class VampPrior(nn.Module):
    r"""p(z) = 1/K Σ_k q(z | u_k): the posterior at K learned pseudo-inputs. Support and event shape are the posterior's.

    With contexts, p(z | c) = 1/K Σ_k q(z | u_k, c). The posterior is a submodule: give the same one to the VAE, and its
    parameters are trained (and registered) once.

    Args:
        posterior: ``posterior(x, *c)`` is q(z | x, c).
        components: K.
        shape: the event shape of x, or its width.
        initial: K rows of data to start from, ``(K, *shape)``; by default draws from N(0, 1), or from the uniform
            distribution between the bounds.
        bounds: (low, high) of the data, where the pseudo-inputs shall keep within: u = low + (high − low) sigmoid(raw).
            By default they are unconstrained.

    Raises:
        ShapeError: initial rows of another shape.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Example:
        >>> from pyro_vae import VAE, Conditional, MLP, bernoulli, normal
        >>> from pyro_vae.parts.priors import VampPrior
        >>> posterior = Conditional(MLP(9, 2 * 2), normal)
        >>> vae = VAE(VampPrior(posterior, 5, 9, bounds=(0, 1)), Conditional(MLP(2, 9), bernoulli), posterior)
        >>> vae.prior().event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        posterior: Callable[..., TorchDistributionMixin],
        components: int,
        shape: int | Sequence[int],
        initial: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        at_least(1, components=components)
        if bounds is not None and not bounds[0] < bounds[1]:
            raise UsageError(f"bounds are (low, high) with low < high, got {bounds}")
        size = (components, shape) if isinstance(shape, int) else (components, *shape)
        self.posterior, self.bounds = posterior, bounds
        if initial is None:
            u = torch.randn(size) if bounds is None else torch.rand(size) * (bounds[1] - bounds[0]) + bounds[0]
        else:
            u = initial.detach().clone()
        if tuple(u.shape) != size:
            raise ShapeError(f"initial pseudo-inputs must have shape {size}, got {tuple(u.shape)}")
        # 1e-2: a pixel of exactly 0 or 1 would start at an infinite logit
        self.raw = nn.Parameter(u if bounds is None else torch.logit((u - bounds[0]) / (bounds[1] - bounds[0]), 1e-2))

    @property
    def pseudo_inputs(self) -> Tensor:
        """Pseudo-inputs u, ``(K, *shape)``, within the bounds."""
        if self.bounds is None:
            return self.raw
        low, high = self.bounds
        return low + (high - low) * self.raw.sigmoid()

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        components = self.posterior(self.pseudo_inputs, *(c.unsqueeze(-2) for c in context))
        weights = dist.Categorical(logits=self.raw.new_zeros(len(self.raw))).expand(components.batch_shape[:-1])
        return mixture(weights, components)

    def extra_repr(self) -> str:
        return f"components={len(self.raw)}, shape={tuple(self.raw.shape[1:])}, bounds={self.bounds}"


class UniformSphere(nn.Module):
    r"""p(z) = Γ(d/2) / (2 π^{d/2}) on the unit sphere in R^d; d = `dim` ≥ 2 is what the decoder sees.

    Densities on the sphere are with respect to its area: pair it with a posterior on the sphere (``power_spherical``).

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), https://arxiv.org/abs/1804.00891

    Example:
        >>> from pyro_vae.parts.priors import UniformSphere
        >>> UniformSphere(3)().log_prob(torch.tensor([0.0, 0.0, 1.0])).item()   # -log(4 π)
        -2.531...
    """

    zero: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        at_least(2, dim=dim)
        self.register_buffer("zero", torch.zeros(dim), persistent=False)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return SphereUniform(self.zero)

    def extra_repr(self) -> str:
        return f"dim={self.zero.numel()}"


class LinearOneHot(dist.OneHotCategorical):
    r"""log p(z) = Σ_k z_k log π_k for one-hot z: a one-hot categorical whose log density has a gradient in z.

    Pyro's own looks the entry up, and a straight-through posterior would learn nothing from log p(z) − log q(z).

    Example:
        >>> LinearOneHot(logits=torch.zeros(2)).log_prob(torch.tensor([0.0, 1.0]))   # -log 2
        tensor(-0.6931)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)  # torch normalises logits


class OneHot(nn.Module):
    r"""p(z = e_k) = π_k over one-hot vectors e_1..e_K: uniform, or with learned weights.

    Event shape ``(categories,)``. Discrete: enumerate it (``infer={"enumerate": "parallel"}`` and TraceEnum_ELBO), or pair
    it with ``one_hot_categorical`` (score-function gradient) or ``one_hot_categorical_st`` (straight-through).

    Example:
        >>> from pyro_vae.parts.priors import OneHot
        >>> OneHot(4)().log_prob(torch.eye(4))   # -log 4 each
        tensor([-1.3863, -1.3863, -1.3863, -1.3863])
    """

    logits: Tensor

    def __init__(self, categories: int, learned: bool = False) -> None:
        super().__init__()
        at_least(1, categories=categories)
        if learned:
            self.register_parameter("logits", nn.Parameter(torch.zeros(categories)))
        else:
            self.register_buffer("logits", torch.zeros(categories), persistent=False)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return LinearOneHot(logits=self.logits)

    def extra_repr(self) -> str:
        return f"categories={self.logits.numel()}, learned={isinstance(self.logits, nn.Parameter)}"


class Dirichlet(nn.Module):
    r"""p(z) = Γ(Σ a_i) Π_i z_i^{a_i − 1} / Γ(a_i) on the simplex of `dim` parts; event shape ``(dim,)``.

    The density is with respect to the first dim − 1 coordinates, as that of ``logistic_normal``.

    Args:
        dim: number of parts, at least 2.
        concentration: a, the same for every part.
        learned: whether to learn one a for each part, from there.

    Example:
        >>> from pyro_vae.parts.priors import Dirichlet
        >>> round(Dirichlet(3)().log_prob(torch.tensor([0.2, 0.3, 0.5])).exp().item(), 5)   # uniform on an area of 1/2
        2.0
    """

    raw: Tensor

    def __init__(self, dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        at_least(2, dim=dim)
        if not concentration > MIN_SCALE:
            raise UsageError(f"concentration must be above {MIN_SCALE}, got {concentration}")
        # softplus is the identity above 50, and its inverse would overflow above 700
        raw = torch.full((dim,), unsoftplus(concentration - MIN_SCALE) if concentration < 50 else concentration)
        if learned:
            self.register_parameter("raw", nn.Parameter(raw))
        else:
            self.register_buffer("raw", raw, persistent=False)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return dist.Dirichlet(softplus(self.raw) + MIN_SCALE)

    def extra_repr(self) -> str:
        return f"dim={self.raw.numel()}, learned={isinstance(self.raw, nn.Parameter)}"


def _vamp(
    dim: int,
    *,
    posterior: Any,
    shape: int | Sequence[int],
    components: int = 500,
    initial: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> VampPrior:
    return VampPrior(posterior, components, shape, initial, bounds)


PRIORS: dict[str, Spec] = {
    "standard_normal": Spec(
        make=StandardNormal, support="real", formula="N(0, I)",
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
    ),
    "normal": Spec(make=DiagonalNormal, support="real", formula="N(loc, diag(scale²))"),
    "laplace": Spec(make=Laplace, support="real", formula="Π Laplace(loc, scale)"),
    "student_t": Spec(make=StudentT, support="real", formula="Π t_df(loc, scale)"),
    "mixture": Spec(
        make=Mixture, support="real", formula="Σ π_k N(loc_k, diag(scale_k²))", reparameterised=False,
        reference="Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120",
    ),
    "vamp": Spec(
        make=_vamp, support="any", formula="1/K Σ q(z | u_k)", reparameterised=False, needs=("posterior", "shape"),
        reference="Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120",
    ),
    "flow": Spec(
        make=FlowPrior, support="real", formula="N(f(z); 0, I) |det ∂f/∂z|",
        reference="Durkan et al., 2019, https://arxiv.org/abs/1906.04032; "
        "Papamakarios et al., 2017, https://arxiv.org/abs/1705.07057",
    ),
    "uniform_sphere": Spec(
        make=UniformSphere, support="sphere", formula="1 / area",
        reference="Davidson, Falorsi, De Cao, Kipf & Tomczak, 2018, https://arxiv.org/abs/1804.00891",
    ),
    "one_hot": Spec(make=OneHot, support="one-hot", formula="π_k", reparameterised=False),
    "dirichlet": Spec(
        make=Dirichlet, support="simplex", formula="Dirichlet(a)",
        reference="Srivastava & Sutton, 2017, https://arxiv.org/abs/1703.01488",
    ),
}  # fmt: skip
