"""Several modalities of each row, any of which may be missing: one latent vector, and a likelihood for each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.data.arrays import convert, same_rows
from pyro_vae.errors import UsageError
from pyro_vae.programs.parameters import register

from .experts import Experts, Modalities, Role, gone


class MultimodalVAE(FunctionParts):
    r"""p(z) Π_m p(x_m | z) with amortized q(z | x_1, …, x_M): modalities that are independent given z, any of them missing.

    Args:
        prior: ``prior()`` is p(z).
        likelihoods: by modality: ``likelihood(z)`` is p(x_m | z). Wrapped in :class:`~pyro_vae.SkipMissing`, it leaves out what
            is NaN: single entries of a row, or all of them.
        posterior: ``posterior(x_1, …, x_M)`` is q(z | x_1, …, x_M): :class:`ProductOfExperts`, :class:`MixtureOfExperts`,
            :class:`MixtureOfProducts`, or any function that returns a distribution.

    The programs take one array for each modality, ``(N, *event)``, in the order of `likelihoods`: the first is x, the others
    are its contexts, ``log_likelihood(vae.model, vae.guide, image, label)``. What is missing is NaN, so that labels with gaps
    are floats. Sites are ``"z"`` and the modalities' names, the plate is ``"data"``. log p of a row is that of what it has:
    exactly 0, if that is nothing and the guide is the prior there, as of all three above.

    For guides that are good for every subset, train on every subset: :func:`every_subset`.

    Raises:
        UsageError: no modality; a name that is none, or that of the latent site or a plate; experts that lack a modality, have
            one more, or another order; as many arrays as there are modalities, and no others, are taken.

    References:
        Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018),
        https://arxiv.org/abs/1802.05335

    Example:
        >>> from pyro_vae import MultimodalVAE, ProductOfExperts, SkipMissing, StandardNormal, Conditional, MLP
        >>> from pyro_vae import bernoulli, normal, log_likelihood
        >>> prior = StandardNormal(2)
        >>> vae = MultimodalVAE(
        ...     prior,                                                                      # p(z)
        ...     {
        ...         "image": SkipMissing(Conditional(MLP(2, 9), bernoulli)),                # p(image | z)
        ...         "sound": SkipMissing(Conditional(MLP(2, 2 * 4), normal)),               # p(sound | z)
        ...     },
        ...     ProductOfExperts(
        ...         prior, {"image": Conditional(MLP(9, 4), normal), "sound": Conditional(MLP(4, 4), normal)}
        ...     ),                                                                          # q(z | image, sound)
        ... )
        >>> image, sound = torch.ones(5, 9), torch.zeros(5, 4)
        >>> sound[3:] = torch.nan                                                           # two rows have none
        >>> log_likelihood(vae.model, vae.guide, image, sound, num_samples=50).log_px.shape
        torch.Size([5])
    """

    code_site = "z"  # what encode is of, where no site is named

    def __init__(self, prior: Role, likelihoods: Mapping[str, Role], posterior: Role) -> None:
        super().__init__()
        self.prior, self.likelihoods, self.posterior = prior, Modalities(likelihoods), posterior
        check_experts(self.likelihoods.names, posterior)

    def model(self, *x: Tensor) -> None:
        """z ~ p(z), x_m ~ p(x_m | z) for each modality, for each row."""
        register(self)
        modalities = self.likelihoods.beside(x)
        with pyro.plate("data", len(x[0])):
            z = pyro.sample("z", self.prior())
            for name, likelihood, value in modalities:
                pyro.sample(name, likelihood(z), obs=value)

    def guide(self, *x: Tensor) -> Tensor:
        """z ~ q(z | x_1, …, x_M), for each row."""
        register(self)
        with pyro.plate("data", len(x[0])):
            return pyro.sample("z", self.posterior(*x))


def every_subset(*x: Any) -> tuple[Tensor, ...]:
    """Repeat the rows of M modalities for each subset of these that is not empty, the others NaN: ``((2^M − 1) N, *event)``.

    Training on these is training on Σ_S log p(x_S), the sum of Wu & Goodman's ELBOs: the guide meets every subset. Rows that
    lack modalities are repeated for the subsets of those that they have, and rows that have none are left out.

    Args:
        *x: the modalities, N rows each; whole numbers become floats, which have NaN.

    Raises:
        DataError, ShapeError: what is no array of numbers, is infinite, or has other rows than the first.

    References:
        Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu & Goodman, 2018; equation 4),
        https://arxiv.org/abs/1802.05335

    Example:
        >>> every_subset(torch.tensor([[1.0, 2.0]]), [7])
        (tensor([[1., 2.], [1., 2.], [nan, nan]]), tensor([7., nan, 7.]))
    """
    rows = [convert(part, f"modality {i}", missing=True)[0] for i, part in enumerate(x)]
    if not rows:
        raise UsageError("every_subset takes the arrays of the modalities, one at least")
    same_rows(*rows)
    there = torch.stack([~gone(part) for part in rows])
    chosen = [torch.tensor(subset) for subset in product((True, False), repeat=len(rows)) if any(subset)]
    having = [there[subset.to(there.device)].all(0) for subset in chosen]  # rows that have all of a subset
    return tuple(
        torch.cat(
            [
                part[has] if subset[i] else torch.full_like(part[has], torch.nan)
                for subset, has in zip(chosen, having, strict=True)
            ]
        )
        for i, part in enumerate(rows)
    )


def check_experts(names: tuple[str, ...], posterior: Any) -> None:
    """Refuse experts of other modalities than the likelihoods', by site, or in another order."""
    if not isinstance(posterior, Experts) or posterior.names == names:
        return
    kind = type(posterior).__name__
    for name in (*names, *posterior.names):
        if name not in posterior.names:
            raise UsageError(f"site {name!r}: the {kind} forgets this modality: give it an expert for each likelihood.")
        if name not in names:
            raise UsageError(f"site {name!r}: the {kind} has an expert of a modality that no likelihood draws.")
    raise UsageError(
        f"the {kind} has its experts in the order {', '.join(posterior.names)}, the likelihoods are in the order "
        f"{', '.join(names)}: arrays are handed to both by order. Give both in the same one."
    )
