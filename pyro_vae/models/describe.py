"""A model at a glance: its densities, their families, what networks they go through, how many parameters they have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from pyro_vae.common.closures import modules_behind

WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def densities(parts: dict[str, Callable[..., Any]]) -> list[list[str]]:
    """Tabulate the densities of a model: a line each with family, sizes and parameters, and their sum.

    Args:
        parts: what a density is written as, such as "p(x | z)", to the callable that returns it.
    """
    lines = [["", "family", "sizes", "parameters"]]
    for name, part in parts.items():
        lines.append([name, family_of(part), sizes_of(part), f"{count(part):,}"])
    total = {id(p): p.numel() for part in parts.values() for p in parameters_of(part)}
    return [*lines, ["all", "", "", f"{sum(total.values()):,}"]]


def family_of(part: Callable[..., Any]) -> str:
    """Name the family of a density: that of a Conditional, else of the part itself.

    Example:
        >>> from pyro_vae import Conditional, MLP, bernoulli, StandardNormal
        >>> family_of(Conditional(MLP(2, 9), bernoulli)), family_of(StandardNormal(2)), family_of(lambda z: None)
        ('bernoulli', 'StandardNormal', 'a function')
    """
    family = getattr(part, "family", None)
    if callable(family):
        return str(getattr(family, "__name__", type(family).__name__))
    if isinstance(part, nn.Module):
        return type(part).__name__
    name = getattr(part, "__name__", type(part).__name__)
    return "a function" if name == "<lambda>" else str(name)


def sizes_of(part: Callable[..., Any]) -> str:
    """Say the sizes of what a density goes through, layer by layer; of one without layers, the shape of its parameters.

    Example:
        >>> from pyro_vae import Conditional, MLP, bernoulli
        >>> sizes_of(Conditional(MLP(2, 9, hidden=(5,)), bernoulli))
        '2 → 5 → 9'
    """
    layers = [m for m in part.modules() if isinstance(m, WEIGHED)] if isinstance(part, nn.Module) else []
    if layers and all(isinstance(layer, nn.Linear) for layer in layers):
        sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
        if all(a.out_features == b.in_features for a, b in pairwise(layers)):
            return " → ".join(map(str, sizes))
    if layers:
        return f"{len(layers)} layers"
    tensors = [*part.named_parameters(), *part.named_buffers()] if isinstance(part, nn.Module) else []
    return ", ".join(f"{name} {'×'.join(map(str, tensor.shape)) or '1'}" for name, tensor in tensors[:3])


def parameters_of(part: Callable[..., Any]) -> list[nn.Parameter]:
    """List the parameters of a density, each once: those of networks that a function holds, too."""
    found = {id(p): p for _, module in modules_behind(part) for p in module.parameters()}
    return list(found.values())


def count(part: Callable[..., Any]) -> int:
    """Count the numbers in them."""
    return sum(p.numel() for p in parameters_of(part))
