r"""Posteriors q(z | x): families for a whole latent vector, used as ``Conditional(net, family)``, and their registry.

A family here takes the features of one row, ``(*batch, features)``, and returns a distribution over z of event shape
``(d,)``. (Elementwise families, such as ``normal``, are in :mod:`pyro_vae.likelihoods`.)

    >>> import torch
    >>> from pyro_vae import MLP
    >>> q = Conditional(MLP(784, 16 * (2 + 3)), families.low_rank_normal(3))(torch.zeros(5, 784))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([16]))
"""

from __future__ import annotations

from pyro_vae.common.spec import Spec
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.likelihoods.continuous import normal

from . import families
from .flow import FlowPosterior
from .semi_amortized import SemiAmortized

# make(encoder, dim, **options): encoder(n) is a network that puts out n features
POSTERIORS: dict[str, Spec] = {
    "normal": Spec(
        make=lambda encoder, dim: Conditional(encoder(2 * dim), normal), support="real",
        formula="N(loc, diag(scale²))", reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114"),
    "low_rank_normal": Spec(
        make=lambda encoder, dim, rank=2: Conditional(encoder(dim * (2 + rank)), families.low_rank_normal(rank)),
        support="real", formula="N(loc, S (I + U U') S)",
        reference="Rezende, Mohamed & Wierstra, 2014, https://arxiv.org/abs/1401.4082"),
    "full_normal": Spec(
        make=lambda encoder, dim: Conditional(encoder(dim + dim * (dim + 1) // 2), families.full_normal(dim)),
        support="real", formula="N(loc, L L')"),
    "mixture_normal": Spec(
        make=lambda encoder, dim, components=5: Conditional(
            encoder(components * (1 + 2 * dim)), families.mixture_normal(components)
        ), support="real", formula="Σ π_k N(loc_k, diag(scale_k²))",
        reference="Figurnov, Mohamed & Mnih, 2018, https://arxiv.org/abs/1805.08498"),
    "flow": Spec(
        make=lambda encoder, dim, kind="iaf", transforms=3, context_features=64, hidden=(64, 64): FlowPosterior(
            encoder(context_features), dim, kind, transforms, context_features, hidden
        ), support="real",
        formula="N(f_h(z); 0, I) |det ∂f_h/∂z|", reference="Kingma et al., 2016, https://arxiv.org/abs/1606.04934"),
    "one_hot_categorical": Spec(
        make=lambda encoder, dim: Conditional(encoder(dim), families.one_hot_categorical),
        support="one-hot", formula="softmax(h)_k", reparameterised=False),
    "one_hot_categorical_st": Spec(
        make=lambda encoder, dim: Conditional(encoder(dim), families.one_hot_categorical_st), support="one-hot",
        formula="softmax(h)_k", reference="Bengio, Léonard & Courville, 2013, https://arxiv.org/abs/1308.3432"),
    "logistic_normal": Spec(
        make=lambda encoder, dim: Conditional(encoder(2 * dim), families.logistic_normal), support="simplex",
        formula="softmax(loc + scale ε)", reference="Srivastava & Sutton, 2017, https://arxiv.org/abs/1703.01488"),
    "power_spherical": Spec(
        make=lambda encoder, dim: Conditional(encoder(dim + 1), families.power_spherical), support="sphere",
        formula="C(κ) (1 + μ·z)^κ", reference="De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437"),
    "semi_amortized": Spec(
        make=lambda encoder, dim, *, likelihood, prior, steps=5, lr=0.1: SemiAmortized(
            Conditional(encoder(2 * dim), normal), likelihood, prior, steps, lr
        ), support="real", formula="N(loc, diag(scale²)), refined by gradient steps on the ELBO",
        needs=("likelihood", "prior"),
        reference="Kim, Wiseman, Miller, Sontag & Rush, 2018, https://arxiv.org/abs/1802.02550"),
}  # fmt: skip
