"""What a model is made of, for whoever builds one: networks as they were asked for, in the units and the shape of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.common.spec import Spec
from pyro_vae.distributions.conditional import Conditional, Family
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.models.networks import MLP
from pyro_vae.models.standardize import InUnits, OfStandardized, Units
from pyro_vae.runs.build_networks import ACTIVATIONS, decoder_of, encoder_of, init_dense
from pyro_vae.runs.config import Config
from pyro_vae.runs.marginal_baseline import marginal_features


@dataclass(eq=False)
class ModelParts:
    """Networks, likelihood and units of a config.

    Attributes:
        config: resolved.
        shape: of one x that the likelihood is of: a row, or one step of a sequence.
        family: of the likelihood, and how many `features` it takes.
        loc, scale: units that networks see x in, where the config standardizes; else 0 and 1.
        x: training rows in these units, or None.
        fill: what stands for missing values before an encoder; None where none are missing.
        units: units that encoders alone see x in, of x as standardized; None where the config asks for none.
        family_of: the likelihood's family, and its number of features, of so many elements.
        specs: the rows of the registry for "prior" and "posterior".
        built: networks, in the order in which they were made.
    """

    config: Config
    shape: tuple[int, ...]
    family: Family
    features: int
    loc: Tensor
    scale: Tensor
    x: Tensor | None
    fill: Tensor | None
    units: Units | None
    family_of: Callable[[int], tuple[Family, int]]
    specs: Mapping[str, Spec] = field(default_factory=dict)
    built: list[nn.Module] = field(default_factory=list)

    @property
    def elements(self) -> int:
        """Of one x."""
        return math.prod(self.shape)

    def decoder(self, *inputs: int) -> Any:
        """Make p(x | parents), of parents of these widths, in the units that networks see."""
        network = decoder_of(self.config, self.shape, self.features, sum(inputs))
        self.built.append(network)
        decoder = Conditional(network, self.family)
        return SkipMissing(decoder) if self.config.missing else decoder

    def likelihood(self, *inputs: int) -> Any:
        """Make p(x | parents), of parents of these widths, in the units of x."""
        decoder = self.decoder(*inputs)
        return InUnits(decoder, Units(self.loc, self.scale)) if self.config.standardize else decoder

    def encoder(self, features: int, *inputs: int) -> nn.Module:
        """Make a network of x and inputs of these widths, that puts out so many features; x is standardized already."""
        return encoder_of(self.config, self.shape, self.built, self.fill, self.units, sum(inputs))(features)

    def see(self, features: int, *inputs: int) -> nn.Module:
        """Make such a network of x as it is given."""
        return self.standardized(self.encoder(features, *inputs))

    def see_by(self, network: nn.Module) -> nn.Module:
        """Let a network of one's own, of x and mask where values may be missing, see x as encoders do."""
        masked = network if self.fill is None else WithMask(network, self.filled())
        self.built.append(
            masked if self.units is None else OfStandardized(masked, Units(self.units.loc, self.units.scale))
        )
        return self.standardized(self.built[-1])

    def filled(self) -> Tensor:
        """Return what stands for missing values, in the encoder's units."""
        assert self.fill is not None
        return self.fill if self.units is None else self.units(self.fill)

    def standardized(self, network: nn.Module) -> nn.Module:
        """Wrap a network that shall see x in standard units, where the config says so."""
        return OfStandardized(network, Units(self.loc, self.scale)) if self.config.standardize else network

    def network(self, inputs: int, features: int) -> nn.Module:
        """Make a network from latents to features."""
        self.built.append(MLP(inputs, features, self.config.hidden, ACTIVATIONS[self.config.activation]))
        return self.built[-1]

    def block(self, start: int, stop: int) -> ModelParts:
        """Gather what a model of these elements alone is made of, networks of its own.

        Raises:
            UsageError: elements that a likelihood of several families has no boundary at.
        """
        part = getattr(self.family, "part", None)
        family, features = self.family_of(stop - start) if part is None else part(start, stop)
        return replace(
            self, shape=(stop - start,), family=family, features=features, loc=self.loc[start:stop],
            scale=self.scale[start:stop], x=None if self.x is None else self.x[:, start:stop],
            fill=None if self.fill is None else self.fill[start:stop],
            units=None if self.units is None else Units(self.units.loc[start:stop], self.units.scale[start:stop]),
            built=[],
        )  # fmt: skip

    def start(self, decoder: Any) -> None:
        """Initialise what was built, and the decoder's output bias by the training rows: training begins at the floor."""
        for network in self.built:
            init_dense(network)
        while not isinstance(decoder, Conditional):
            decoder = decoder.likelihood if isinstance(decoder, SkipMissing) else decoder.base
        if self.x is not None and isinstance(decoder.net, MLP):
            bias = list(decoder.net.parameters())[-1]
            bias.data.copy_(marginal_features(self.config.likelihood, self.family, self.features, self.x))

    @property
    def planes(self) -> int:
        """How often an encoder sees each element: once, or beside a mask."""
        return 1 if self.fill is None else 2

    def first_rows(self, count: int) -> Tensor | None:
        """Return so many training rows, evenly spaced, gaps filled."""
        if self.x is None:
            return None
        rows = self.x[torch.arange(count) * len(self.x) // count]
        return rows if self.fill is None else torch.where(rows.isnan(), self.fill, rows)
