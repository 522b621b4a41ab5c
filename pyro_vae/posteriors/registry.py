r"""Posteriors q(z | x): families for a whole latent vector, used as ``Conditional(net, family)``, and their registry.

A family here takes the features of one row, ``(*batch, features)``, and returns a distribution over z of event shape
``(d,)``. (Elementwise families, such as ``normal``, are in :mod:`pyro_vae.likelihoods`.)

    >>> from pyro_vae import Conditional, MLP
    >>> q = Conditional(MLP(784, 16 * (2 + 3)), low_rank_normal(3))(torch.zeros(5, 784))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([16]))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.common.spec import Spec
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.likelihoods.continuous import normal

from .families import (
    full_normal,
    logistic_normal,
    low_rank_normal,
    mixture_normal,
    one_hot_categorical,
    one_hot_categorical_st,
    power_spherical,
)
from .flow import FlowPosterior
from .semi_amortized import SemiAmortized

Encoder = Callable[[int], Callable[..., Tensor]]


def _normal(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(2 * dim), normal)


def _low_rank(encoder: Encoder, dim: int, rank: int = 2) -> Conditional:
    return Conditional(encoder(dim * (2 + rank)), low_rank_normal(rank))


def _full(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim + dim * (dim + 1) // 2), full_normal(dim))


def _mixture(encoder: Encoder, dim: int, components: int = 5) -> Conditional:
    return Conditional(encoder(components * (1 + 2 * dim)), mixture_normal(components))


def _flow(
    encoder: Encoder,
    dim: int,
    kind: str = "iaf",
    transforms: int = 3,
    context_features: int = 64,
    hidden: Sequence[int] = (64, 64),
) -> FlowPosterior:
    return FlowPosterior(encoder(context_features), dim, kind, transforms, context_features, hidden)


def _one_hot(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim), one_hot_categorical)


def _one_hot_st(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim), one_hot_categorical_st)


def _logistic(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(2 * dim), logistic_normal)


def _spherical(encoder: Encoder, dim: int) -> Conditional:
    return Conditional(encoder(dim + 1), power_spherical)


def _semi_amortized(
    encoder: Encoder, dim: int, *, likelihood: Any, prior: Any, steps: int = 5, lr: float = 0.1
) -> SemiAmortized:
    return SemiAmortized(_normal(encoder, dim), likelihood, prior, steps, lr)


POSTERIORS: dict[str, Spec] = {
    "normal": Spec(
        make=_normal, support="real", formula="N(loc, diag(scale²))",
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
    ),
    "low_rank_normal": Spec(
        make=_low_rank, support="real", formula="N(loc, S (I + U U') S)",
        reference="Rezende, Mohamed & Wierstra, 2014, https://arxiv.org/abs/1401.4082",
    ),
    "full_normal": Spec(make=_full, support="real", formula="N(loc, L L')"),
    "mixture_normal": Spec(
        make=_mixture, support="real", formula="Σ π_k N(loc_k, diag(scale_k²))",
        reference="Figurnov, Mohamed & Mnih, 2018, https://arxiv.org/abs/1805.08498",
    ),
    "flow": Spec(
        make=_flow, support="real", formula="N(f_h(z); 0, I) |det ∂f_h/∂z|",
        reference="Kingma et al., 2016, https://arxiv.org/abs/1606.04934",
    ),
    "one_hot_categorical": Spec(make=_one_hot, support="one-hot", formula="softmax(h)_k", reparameterised=False),
    "one_hot_categorical_st": Spec(
        make=_one_hot_st, support="one-hot", formula="softmax(h)_k",
        reference="Bengio, Léonard & Courville, 2013, https://arxiv.org/abs/1308.3432",
    ),
    "logistic_normal": Spec(
        make=_logistic, support="simplex", formula="softmax(loc + scale ε)",
        reference="Srivastava & Sutton, 2017, https://arxiv.org/abs/1703.01488",
    ),
    "power_spherical": Spec(
        make=_spherical, support="sphere", formula="C(κ) (1 + μ·z)^κ",
        reference="De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437",
    ),
    "semi_amortized": Spec(
        make=_semi_amortized, support="real", formula="N(loc, diag(scale²)), refined by gradient steps on the ELBO",
        needs=("likelihood", "prior"),
        reference="Kim, Wiseman, Miller, Sontag & Rush, 2018, https://arxiv.org/abs/1802.02550",
    ),
}  # fmt: skip
