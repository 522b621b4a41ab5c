"""p(z) Π p(x_m | z): the columns of a row in blocks, a modality each, any of which may be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.models import usage
from pyro_vae.models.experts import Experts, MixtureOfExperts, MixtureOfProducts, ProductOfExperts
from pyro_vae.models.multimodal import MultimodalVAE
from pyro_vae.models.standardize import Units
from pyro_vae.priors.simple import StandardNormal

from .kind import ModelKind, Shape
from .parts import ModelParts

GUIDES: Mapping[str, type[Experts]] = {
    "product": ProductOfExperts,
    "mixture": MixtureOfExperts,
    "mixture_of_products": MixtureOfProducts,
}


class MultimodalRows(MultimodalVAE):
    """A :class:`~pyro_vae.MultimodalVAE` whose programs take the modalities of a row side by side, ``(N, elements)``."""

    def __init__(self, sizes: tuple[int, ...], prior: Any, likelihoods: Mapping[str, Any], posterior: Experts) -> None:
        super().__init__(prior, likelihoods, posterior)
        self.sizes = sizes

    def model(self, *x: Tensor) -> None:
        """z ~ p(z), x_m ~ p(x_m | z), for each row."""
        super().model(*self.blocks(*x))

    def guide(self, *x: Tensor) -> Tensor:
        """z ~ q(z | x_1, …, x_M), for each row."""
        return super().guide(*self.blocks(*x))

    def blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the modalities of rows."""
        return x.split(self.sizes, -1)


def make_multimodal(parts: ModelParts, sizes: tuple[int, ...] = (), guide: str = "product") -> MultimodalRows:
    """Make a model of modalities of these sizes: of two halves, where none are said."""
    if guide not in GUIDES:
        raise UsageError(f"--model.guide is one of {', '.join(GUIDES)}, got {guide!r}")
    if parts.config.network != "mlp":
        raise UsageError("--network conv is of whole images, and model 'multimodal' sees a part of a row: take mlp")
    sizes, dim = sizes_of(parts.elements, sizes), parts.config.latent_dim
    prior, likelihoods, experts = StandardNormal(dim), {}, {}
    ends = [sum(sizes[:m]) for m in range(len(sizes) + 1)]
    for m, (start, stop) in enumerate(pairwise(ends), 1):
        block = parts.block(start, stop)
        likelihoods[f"x{m}"] = block.likelihood(dim)
        experts[f"x{m}"] = Conditional(block.see(2 * dim), normal)
        block.start(likelihoods[f"x{m}"])
    return MultimodalRows(sizes, prior, likelihoods, GUIDES[guide](prior, experts))


def sizes_of(elements: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many elements of a row each modality has.

    Raises:
        UsageError: sizes that do not add up to a row's, or a row of one element.

    Example:
        >>> sizes_of(7, ()), sizes_of(7, (1, 2, 4))
        ((3, 4), (1, 2, 4))
    """
    sizes = sizes or (elements // 2, elements - elements // 2)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or sum(sizes) != elements:
        raise UsageError(
            f"--model.sizes {','.join(map(str, sizes))}: wanted the number of elements of each modality, whole numbers above 0 "
            f"that add up to the {elements} of a row, as in --model.sizes 4,{max(1, elements - 4)}"
        )
    return sizes


def decide(options: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """Take two halves of a row where no sizes are said."""
    return {**options, "sizes": sizes_of(math.prod(data.shape), tuple(options["sizes"]))}


def beside(values: Mapping[str, Tensor]) -> Tensor:
    """Put modalities by site side by side, ``(..., elements)``."""
    return torch.cat([values[f"x{m + 1}"] for m in range(len(values))], -1)


def sample(model: MultimodalRows, shape: Shape, num_samples: int, seed: int, mean: bool) -> Tensor:
    """x ~ p(x), ``(num_samples, elements)``; all modalities of a row from one z."""
    drawn = usage.sample((model.model, model.guide), num_samples, like=blank(model, shape), seed=seed, mean=mean)
    return beside({name: value for name, value in drawn.items() if name != "z"})


def reconstruct(model: MultimodalRows, x: Tensor) -> Tensor:
    """E[x | z] at z = E[z | x], ``(N, elements)``: what is missing of a row, too."""
    return beside(usage.reconstruct((model.model, model.guide), x))


def interpolate(model: MultimodalRows, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """E[x | z] along the line between two rows, ``(steps, N, elements)``."""
    return beside(usage.interpolate((model.model, model.guide), start, end, steps=steps))


def blank(model: MultimodalRows, shape: Shape) -> Tensor:
    """Return a row of zeros."""
    return torch.zeros(1, math.prod(shape), device=next(model.parameters()).device)


def units(model: MultimodalRows) -> Units:
    """Return those of the modalities, side by side."""
    each: list[Any] = [role for _, role in model.likelihoods.roles()]
    return Units(torch.cat([role.units.loc for role in each]), torch.cat([role.units.scale for role in each]))


KIND = ModelKind(
    make=make_multimodal, decide=decide, sample=sample, reconstruct=reconstruct, interpolate=interpolate, units=units,
    likelihood_of_rows=reconstruct, likelihood_of_draws=partial(sample, mean=True),
    formula="p(z) Π p(x_m|z); q(z|x_1, …, x_M)", support="any x, in blocks of columns",
    reference="Wu & Goodman, 2018, https://arxiv.org/abs/1802.05335",
)  # fmt: skip
