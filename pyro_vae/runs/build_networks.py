"""Build the networks that a config asks for, in the shape of the data."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from pyro_vae.errors import UsageError
from pyro_vae.models.missing import WithMask
from pyro_vae.models.networks import MLP, ConvDecoder, ConvEncoder, Tanh
from pyro_vae.models.standardize import OfStandardized, Units

from .config import Config

ACTIVATIONS = {"relu": nn.ReLU, "tanh": Tanh, "softplus": nn.Softplus, "silu": nn.SiLU}


def init_dense(network: nn.Module) -> None:
    """Initialise the dense layers: Glorot-uniform weights and zero biases (Glorot & Bengio, 2010)."""
    for layer in (m for m in network.modules() if isinstance(m, nn.Linear)):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


def encoder_of(
    config: Config,
    shape: tuple[int, ...],
    built: list[nn.Module],
    fill: Tensor | None,
    units: Units | None = None,
    inputs: int = 0,
) -> Callable[[int], nn.Module]:
    """Return a builder of the encoder, given how many features the posterior asks for; it appends what it builds to `built`.

    With `fill`, what stands for missing values, the network sees values and mask; with `units`, it sees x in these. It takes
    further `inputs` of so many features beside x.
    """
    planes = 1 if fill is None else 2

    def encoder(features: int) -> nn.Module:
        if config.network == "mlp":
            width = planes * math.prod(shape) + inputs
            net: nn.Module = MLP(width, features, config.hidden, ACTIVATIONS[config.activation])
        else:
            channels, height, width = image_shape(shape)
            net = ConvEncoder(features, inputs, shape=(planes * channels, height, width))
        if fill is not None:
            net = WithMask(net, fill if units is None else units(fill))
        built.append(net if units is None else OfStandardized(net, Units(units.loc, units.scale)))  # of its own
        return built[-1]

    return encoder


def decoder_of(config: Config, shape: tuple[int, ...], features: int, inputs: int) -> nn.Module:
    """Build the decoder network, from so many inputs to so many features a row."""
    if config.network == "mlp":
        return MLP(inputs, features, config.hidden[::-1], ACTIVATIONS[config.activation])
    _, height, width = image_shape(shape)
    if features % (height * width):
        raise UsageError(
            f"network conv puts out whole images, not the {features} features of this likelihood: take mlp"
        )
    return ConvDecoder(inputs, shape=(features // (height * width), height, width))


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width), if rows are images."""
    if len(shape) != 3:
        raise UsageError(f"network conv takes images, and rows of this data have the shape {shape}: take mlp")
    return shape[0], shape[1], shape[2]
