"""Encoder and decoder networks: features on the right, any batch shape on the left.

Several inputs are broadcast against each other and concatenated, so ``net(z, c)`` takes a context as it takes particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_vae.common.picklable import Picklable
from pyro_vae.errors import ShapeError


def check_features(h: Tensor, width: int, network: nn.Module) -> Tensor:
    """Return h if its rightmost size is `width`; raise a ShapeError that says both otherwise."""
    if h.dim() == 0 or h.shape[-1] != width:
        raise ShapeError(
            f"{type(network).__name__} takes {width} features in the last dimension, got an input of shape "
            f"{tuple(h.shape)}. Flatten each row to {width} values, or build the network for this width."
        )
    return h


class Tanh(Picklable):
    """tanh x = 2 σ(2x) − 1, to 2e-7 in float32: on a CPU torch's sigmoid takes a quarter of the time of its tanh.

    Example:
        >>> from pyro_vae.models.networks import Tanh
        >>> Tanh()(torch.tensor([-100.0, 0.0, 0.5]))
        tensor([-1.0000,  0.0000,  0.4621])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu:
            return x.tanh()
        if torch.is_grad_enabled():  # autograd keeps the sigmoid: it must not be written over
            return 2 * (2 * x).sigmoid() - 1
        return (2 * x).sigmoid_().mul_(2).sub_(1)


class MLP(Picklable, nn.Sequential):
    """A fully connected network ``(*batch, in_features) -> (*batch, out_features)``.

    Args:
        in_features: the summed width of all inputs.
        out_features: what the family takes: d for a Bernoulli or binomial, 2 d for a normal.
        hidden: widths of the hidden layers.
        activation: makes the module between two layers.

    Raises:
        ShapeError: an input of another width.

    Example:
        >>> from pyro_vae import MLP
        >>> net = MLP(16 + 10, 784)
        >>> z, c = torch.zeros(7, 5, 16), torch.zeros(5, 10)   # particles x rows, rows
        >>> net(z, c).shape
        torch.Size([7, 5, 784])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (256, 256),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in zip([in_features, *hidden[:-1]], hidden, strict=bool(hidden)):
            layers += [nn.Linear(width_in, width_out), activation()]
        super().__init__(*layers, nn.Linear(hidden[-1] if hidden else in_features, out_features))
        self.in_features = in_features

    def forward(self, *inputs: Tensor) -> Tensor:
        h, *contexts = inputs
        if contexts:
            batch = torch.broadcast_shapes(*(i.shape[:-1] for i in inputs))
            h = torch.cat([i.expand(*batch, i.shape[-1]) for i in inputs], -1)
        return super().forward(check_features(h, self.in_features, self))


class ConvEncoder(Picklable):
    """Two strided convolutions over images, flat ``(*batch, channels * 28 * 28)`` to features ``(*batch, out_features)``.

    Args:
        out_features: 2 d for a normal posterior over d latents.
        context_features: summed width of the inputs after the image; they join at the dense layer.
        width: channels of the first convolution; the second has twice as many.
        shape: (channels, height, width) of one image; of any size, filled up with zeros to multiples of 4.

    Example:
        >>> from pyro_vae import ConvEncoder
        >>> ConvEncoder(2 * 16)(torch.zeros(3, 5, 784)).shape
        torch.Size([3, 5, 32])
        >>> ConvEncoder(2 * 16, shape=(3, 27, 18))(torch.zeros(5, 3 * 27 * 18)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self, out_features: int, context_features: int = 0, width: int = 32, shape: tuple[int, int, int] = (1, 28, 28)
    ) -> None:
        super().__init__()
        self.shape, self.context_features = shape, context_features
        channels, h, w = shape
        self.conv = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU()
        )
        self.dense = MLP(2 * width * quarter(h) * quarter(w) + context_features, out_features, hidden=(256,))
        self.filled = (0, -w % 4, 0, -h % 4)  # columns and rows of zeros, right and below

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        check_features(x, math.prod(self.shape), self)
        images = x.reshape(-1, *self.shape)
        images = pad(images, self.filled) if any(self.filled) else images
        return self.dense(self.conv(images).flatten(1).reshape(*x.shape[:-1], -1), *context)


def quarter(size: int) -> int:
    """Return a quarter of a size, rounded up."""
    return -(-size // 4)


class ConvDecoder(Picklable):
    """The mirror of :class:`ConvEncoder`: latents ``(*batch, in_features)`` to ``(*batch, channels * 28 * 28)`` features.

    Args:
        in_features: the summed width of all inputs (latents and context).
        width: channels before the last transposed convolution; twice as many before that.
        shape: (channels, height, width) of what comes out, flattened on the right: for families of several features
            an element (a normal has 2) give channels × features, so that ``chunk(2, -1)`` splits whole images. Of any size;
            what lies beyond it, up to the next multiples of 4, is cut off.

    Example:
        >>> from pyro_vae import ConvDecoder
        >>> ConvDecoder(16)(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 784])
    """

    def __init__(self, in_features: int, width: int = 32, shape: tuple[int, int, int] = (1, 28, 28)) -> None:
        super().__init__()
        channels, h, w = shape
        self.shape, self.small = shape, (2 * width, quarter(h), quarter(w))
        self.dense = MLP(in_features, math.prod(self.small), hidden=(256,))
        self.conv = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        h = self.dense(*inputs)
        images = self.conv(h.reshape(-1, *self.small))
        _, height, width = self.shape
        images = images if images.shape[-2:] == (height, width) else images[..., :height, :width]
        return images.reshape(*h.shape[:-1], -1)
