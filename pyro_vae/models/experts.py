"""A posterior of several modalities, any of which may be missing: what an expert for each says of z, combined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.distributions.mixtures import MixtureNormal
from pyro_vae.errors import DataError, ProgramError, ShapeError, UsageError

Role = Callable[..., TorchDistributionMixin]
TAKEN = ("z", "data", "particles")  # the latent site and the plates of the programs
LEFT_OUT = -1e4  # log-weight of an expert that a row has not: a share of 0 in any precision, finite for optimizers
MOST = 8  # modalities in a mixture of products, which has 2^M components
PREFIX = "of_"  # of attributes: a modality may have the name of a module's own method


class Modalities(FunctionParts):
    """A role for each modality, by its name, in the order of the programs' arguments."""

    def __init__(self, roles: Mapping[str, Role]) -> None:
        super().__init__()
        check_names(roles)
        self.names = tuple(roles)
        for name, role in roles.items():
            setattr(self, PREFIX + name, role)

    def __len__(self) -> int:
        return len(self.names)

    def beside(self, x: tuple[Tensor, ...]) -> Iterator[tuple[str, Role, Tensor]]:
        """Yield each modality's name, its role and its values."""
        check_number(self.names, x)
        return ((name, role, value) for (name, role), value in zip(self.roles(), x, strict=True))

    def roles(self) -> Iterator[tuple[str, Role]]:
        """Yield each modality's name and its role."""
        return ((name, getattr(self, PREFIX + name)) for name in self.names)


class Experts(Modalities):
    """What the prior and each modality say of z: diagonal Gaussians, of which a row has those whose modality it has."""

    takes_missing = True

    def __init__(self, prior: Role, experts: Mapping[str, Role]) -> None:
        super().__init__(experts)
        self.prior = prior

    def opinions(self, *x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return locs and scales ``(N, 1 + M, D)``, the prior's first, and which of them each row has, ``(N, 1 + M)``."""
        said, there = [diagonal("the prior", self.prior())], [gone(x[0]).new_ones(len(x[0]))]
        for name, expert, value in self.beside(x):
            missing = gone(value)
            # NaN must be gone before the network: where() after it would leave 0 · NaN = NaN in the gradient
            values = value.masked_fill(missing.reshape(-1, *[1] * (value.dim() - 1)), 0)
            said.append(diagonal(f"expert {name!r}", opinion(name, expert, values), said[0].batch_shape[-1]))
            there.append(~missing)
        normals = [q.expand((len(x[0]), q.batch_shape[-1])) for q in said]
        return (
            torch.stack([q.loc for q in normals], 1),
            torch.stack([q.scale for q in normals], 1),
            torch.stack(there, 1),
        )


class ProductOfExperts(Experts):
    r"""q(z | x) ∝ p(z) Π_m q̃_m(z | x_m) over the modalities that a row has: the prior and an expert for each, multiplied.

    A product of Gaussians is Gaussian: with T_m = 1 / scale_m², of the prior and the experts present,

        q(z | x) = N(Σ_m T_m loc_m / Σ_m T_m, 1 / Σ_m T_m),   coordinate by coordinate.

    Of a row with no modality it is the prior. Where the modalities are independent given z, so factorises the posterior,
    p(z | x) ∝ p(z) Π_m p(x_m | z): where p(x_m | z) is in z a diagonal Gaussian up to a constant, the product can be exact for
    every subset of modalities at once.

    Args:
        prior: ``prior()`` is p(z), a Normal of each coordinate: the model's own.
        experts: by modality, in the order of the model's: ``expert(x_m)`` is q̃_m, a Normal of each coordinate. A modality of
            which *all* entries are NaN is left out of that row's product (the network sees zeros there). For one with some
            entries missing give the expert a network that takes NaN: :class:`~pyro_vae.WithMask`.

    Raises:
        UsageError: a name that is none, or that of the latent site or a plate.
        ProgramError: a prior or an expert that is no Normal of each coordinate, whose product has no closed form.
        ShapeError: an expert of another size than the prior's.

    References:
        Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018),
        https://arxiv.org/abs/1802.05335

    Example:
        >>> from pyro_vae import ProductOfExperts, StandardNormal
        >>> twice = {"a": lambda a: dist.Normal(a, 1.0).to_event(1), "b": lambda b: dist.Normal(b, 1.0).to_event(1)}
        >>> q = ProductOfExperts(StandardNormal(1), twice)(torch.tensor([[3.0], [3.0]]), torch.tensor([[6.0], [torch.nan]]))
        >>> q.mean, q.variance                                # of rows with both modalities, and with one
        (tensor([[3.0000], [1.5000]]), tensor([[0.3333], [0.5000]]))
    """

    def forward(self, *x: Tensor) -> TorchDistributionMixin:
        """q(z | x), for each row."""
        return dist.Normal(*product_of(*self.opinions(*x))).to_event(1)


class MixtureOfExperts(Experts):
    r"""q(z | x) = 1/|S| Σ_{m in S} q_m(z | x_m) over the modalities S that a row has; the prior, if it has none.

    Each expert is a posterior by itself. The mixture is a density of its own: draws come from one expert, and log q(z | x) sums
    over all, so that log w counts every way in which z could have been drawn. Draws are reparameterised (implicitly, Figurnov
    et al., 2018), with no bias and without drawing from every expert.

    Args:
        prior, experts: as for :class:`ProductOfExperts`.

    Raises:
        UsageError, ProgramError, ShapeError: as :class:`ProductOfExperts`.

    References:
        Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models (Shi, Siddharth, Paige & Torr, 2019),
        https://arxiv.org/abs/1911.03393

    Example:
        >>> from pyro_vae import MixtureOfExperts, StandardNormal
        >>> alone = {"a": lambda a: dist.Normal(a, 0.5).to_event(1), "b": lambda b: dist.Normal(b, 0.5).to_event(1)}
        >>> q = MixtureOfExperts(StandardNormal(1), alone)(torch.tensor([[3.0], [3.0]]), torch.tensor([[6.0], [torch.nan]]))
        >>> q.mean
        tensor([[4.5000], [3.0000]])
    """

    def forward(self, *x: Tensor) -> TorchDistributionMixin:
        """q(z | x), for each row."""
        loc, scale, there = self.opinions(*x)
        alone = ~there[:, 1:].any(1, keepdim=True)
        counted = torch.cat([alone, there[:, 1:]], 1)  # the prior is one of them where there is nothing else
        return mixture_of(loc, scale, torch.zeros_like(loc[..., 0]).masked_fill(~counted, LEFT_OUT))


class MixtureOfProducts(Experts):
    r"""q(z | x) = 2^{−M} Σ_S q_S(z | x): the mixture, over all subsets S of the M modalities, of their products of experts.

    q_S ∝ p(z) Π_{m in S} q̃_m(z | x_m), as in :class:`ProductOfExperts`; of no modality it is the prior, which so has a share
    of 2^{−M} or more of every row: weights p(x, z) / q(z | x) are no larger than 2^M p(x | z), and importance sampling has a
    finite variance whatever the experts say. Of a modality that a row lacks, subsets with and without it are the same.

    Args:
        prior, experts: as for :class:`ProductOfExperts`; up to 8 of them.

    Raises:
        UsageError: more than 8 modalities; and, with ProgramError and ShapeError, as :class:`ProductOfExperts`.

    References:
        Generalized Multimodal ELBO (Sutter, Daunhawer & Vogt, 2021), https://arxiv.org/abs/2105.02470

    Example:
        >>> from pyro_vae import MixtureOfProducts, StandardNormal
        >>> alone = {"a": lambda a: dist.Normal(a, 1.0).to_event(1), "b": lambda b: dist.Normal(b, 1.0).to_event(1)}
        >>> q = MixtureOfProducts(StandardNormal(1), alone)(torch.tensor([[3.0]]), torch.tensor([[6.0]]))
        >>> q.component_distribution.mean.squeeze()                  # of neither, of b, of a, of both
        tensor([0.0000, 3.0000, 1.5000, 3.0000])
    """

    subsets: Tensor

    def __init__(self, prior: Role, experts: Mapping[str, Role]) -> None:
        super().__init__(prior, experts)
        if len(self) > MOST:
            raise UsageError(
                f"a mixture of products has 2^M components, and takes up to {MOST} modalities; got {len(self)}. "
                "ProductOfExperts and MixtureOfExperts take any number."
            )
        every = [(True, *subset) for subset in product((False, True), repeat=len(self))]  # the prior is in each
        self.register_buffer("subsets", torch.tensor(every), persistent=False)

    def forward(self, *x: Tensor) -> TorchDistributionMixin:
        """q(z | x), for each row."""
        loc, scale, there = (part.unsqueeze(1) for part in self.opinions(*x))
        locs, scales = product_of(loc, scale, there & self.subsets)
        return mixture_of(locs, scales, torch.zeros_like(locs[..., 0]))


def product_of(loc: Tensor, scale: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return loc and scale ``(…, D)`` of the product of those Gaussians ``(…, E, D)`` that are there, ``(…, E)``."""
    log_precision = (-2 * scale.log()).masked_fill(~there.unsqueeze(-1), -torch.inf)
    shares = log_precision.softmax(-2)
    alone = there.sum(-1, keepdim=True) == 1  # then the one is kept to the bit
    joint = torch.where(alone, (shares * scale).sum(-2), (-0.5 * log_precision.logsumexp(-2)).exp())
    return (shares * loc).sum(-2), joint


def mixture_of(loc: Tensor, scale: Tensor, logits: Tensor) -> MixtureNormal:
    """Σ_k π_k N(loc_k, diag(scale_k²)), of ``(N, E, D)``, with weights softmax(logits), ``(N, E)``."""
    weights = dist.Categorical(logits=logits.log_softmax(-1))
    return MixtureNormal(weights, dist.Normal(loc, scale).to_event(1))


def opinion(name: str, expert: Role, values: Tensor) -> TorchDistributionMixin:
    """Ask an expert; an error of a part of ours says whose it was."""
    try:
        return expert(values)
    except (DataError, UsageError) as error:
        better = type(error)(f"expert {name!r}, on {tuple(values.shape)}: {error}")
    raise better  # out of the handler: Pyro's trace, which puts another error in its place, would lead to the first one


def gone(value: Tensor) -> Tensor:
    """Return which rows of a modality have no entry that is not NaN, ``(N,)``."""
    missing: Tensor = value.isnan()
    return missing.flatten(1).all(1) if value.dim() > 1 else missing


def diagonal(who: str, q: Any, size: int | None = None) -> dist.Normal:
    """Return the Normal of each coordinate that a distribution is; refuse others, and another number of coordinates."""
    normal = q.base_dist if isinstance(q, Independent) else q
    if not isinstance(normal, torch.distributions.Normal) or len(q.event_shape) != 1:
        raise ProgramError(
            f"site 'z': {who} is a {type(normal).__name__} of event shape {tuple(q.event_shape)}, wanted a Normal of each "
            "coordinate, such as Conditional(net, normal): products of these have a closed form, and mixtures of them draws "
            "that are reparameterised. For others write the posterior as a function of all modalities."
        )
    if size is not None and q.event_shape[0] != size:
        raise ShapeError(f"site 'z': {who} has {q.event_shape[0]} coordinates, and the prior has {size}.")
    return normal  # type: ignore[return-value]


def check_names(roles: Any) -> None:
    """Refuse what is no mapping of names to roles, and names of other sites and plates."""
    if not isinstance(roles, Mapping) or not roles:
        raise UsageError('modalities are a mapping of names to roles, {"image": ..., "label": ...}, one at least')
    for name in roles:
        if not isinstance(name, str) or not name or "." in name:
            raise UsageError(f"the name of a modality is the name of its site, a string without a dot; got {name!r}")
        if name in TAKEN:
            what = "latent site" if name == "z" else "plate"
            raise UsageError(f"a modality is called {name!r}, which is the name of the {what}: give it another one")


def check_number(names: tuple[str, ...], x: tuple[Any, ...]) -> None:
    """Refuse fewer or more arrays than there are modalities."""
    if len(x) != len(names):
        absent = f"; {names[len(x)]!r} is missing" if len(x) < len(names) else ""
        raise UsageError(
            f"wanted an array for each of the {len(names)} modalities, in the order {', '.join(map(repr, names))}; got "
            f"{len(x)}{absent}. What a row does not have is NaN."
        )
