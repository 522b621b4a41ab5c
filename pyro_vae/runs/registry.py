"""Names to parts: a closed table, the only way from a config to a model. A config never names an import path."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import UsageError
from pyro_vae.models.vae import VAE
from pyro_vae.parts.conditional import Conditional
from pyro_vae.parts.families import FAMILIES
from pyro_vae.parts.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.parts.posteriors import POSTERIORS
from pyro_vae.parts.priors import PRIORS

from .config import Config
from .marginal import marginal_features

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "silu": nn.SiLU}
ROLES: dict[str, Mapping[str, Any]] = {"prior": PRIORS, "likelihood": FAMILIES, "posterior": POSTERIORS}
UNNAMED = {"likelihood": {"columns"}}  # made of other parts, so they have no form on the command line
SUPPLIED = ("dim", "initial", "bounds")  # options that the data says, or that no word can
DIGITS = {"binomial": {"total_count": 16}, "categorical": {"num_classes": 17}, "discretized_logistic": {"levels": 17}}
DIGITS["discretized_logistic_mixture"] = DIGITS["discretized_logistic"]


def names(role: str) -> list[str]:
    """What a config may call a part of this role."""
    return [name for name in ROLES[role] if name not in UNNAMED.get(role, ())]


def spec_of(role: str, name: str) -> Any:
    """The part of that name.

    Raises:
        UsageError: an unknown name, with the nearest known ones.
    """
    if name in names(role):
        return ROLES[role][name]
    close = difflib.get_close_matches(name, names(role), 3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names(role))}"
    raise UsageError(f"no {role} {name!r}; {hint} (`pyro-vae parts` lists them; pass parts of your own as objects)")


def options_for(role: str, name: str) -> dict[str, Any]:
    """The options that a config may give a part, with their defaults: those that the data does not say."""
    return {k: v for k, v in spec_of(role, name).options.items() if k not in SUPPLIED}


def options_of(role: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A part's options, each of the type of its default.

    Args:
        role: prior, likelihood or posterior.
        name: of the part.
        given: what the config says, strings where it came from the command line.

    Raises:
        UsageError: an option that the part does not have, lacks, or cannot read.
    """
    known = options_for(role, name)
    made: dict[str, Any] = {}
    for key, value in given.items():
        key = key.replace("-", "_")
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}"
            raise UsageError(f"{role} {name!r} has no option {key!r}; {hint}")
        made[key] = read(f"{role} {name!r}: option {key!r}", value, known[key])
    if missing := [k for k, v in known.items() if v is inspect.Parameter.empty and k not in made]:
        raise UsageError(f"{role} {name!r} needs {missing[0]!r}: --{role}.{missing[0].replace('_', '-')} VALUE")
    return made


def read(what: str, value: Any, default: Any) -> Any:
    """A value of the type of the default (a whole number where there is none): 4, 0.5, true, nsf, or 64,64."""
    if isinstance(default, str):
        return value
    if isinstance(default, tuple) and isinstance(value, str):
        value = f"[{value}]"
    try:
        value = json.loads(value.lower()) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{what}: cannot read {value!r}") from error
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, list) else (value,)
    kind = int if default is inspect.Parameter.empty else type(default)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{what}: {value!r} is not {'true or false' if kind is bool else 'a number'}")
    if kind is int and value != int(value):
        raise UsageError(f"{what}: {value!r} is not a whole number")
    return kind(value)


def resolved(config: Config) -> Config:
    """The config with every "auto" decided, every name known and every option read; what a run records."""
    config = config.resolved()
    likelihood: dict[str, Any] = dict(config.likelihood_options)
    if config.data == "digits" and config.binarization == "none":
        likelihood = DIGITS.get(config.likelihood, {}) | likelihood
    check_supports(config.prior, config.posterior)
    return dataclasses.replace(
        config,
        prior_options=options_of("prior", config.prior, config.prior_options),
        likelihood_options=options_of("likelihood", config.likelihood, likelihood),
        posterior_options=options_of("posterior", config.posterior, config.posterior_options),
    )


def check_supports(prior: str, posterior: str) -> None:
    """Refuses a prior and a posterior over different spaces: KL(q(z | x) ‖ p(z)) would be infinite or undefined."""
    p, q = spec_of("prior", prior).support, spec_of("posterior", posterior).support
    if p not in ("any", q):
        fit = [name for name in names("posterior") if POSTERIORS[name].support == p]
        raise UsageError(
            f"prior {prior!r} lives on {p} latents, posterior {posterior!r} on {q} ones: KL(q ‖ p) is undefined. "
            f"With this prior take posterior {' or '.join(map(repr, fit))}."
        )


def likelihood_of(config: Config, elements: int) -> tuple[Any, int]:
    """The family that a resolved config names, and how many features it takes for each element."""
    spec = spec_of("likelihood", config.likelihood)
    options: dict[str, Any] = dict(config.likelihood_options)
    if "dim" in spec.options:
        options["dim"] = elements
    return spec.make(**options), spec.features(**options)


def build(config: Config, shape: tuple[int, ...], x: Tensor | None = None) -> VAE:
    """The VAE of a resolved config, for data of that shape.

    Args:
        config: as :func:`resolved` leaves it.
        shape: of one row: (d,) or (channels, height, width).
        x: training rows; their marginal starts the decoder's output bias, so that training begins at the floor, and some
            of them start a VampPrior's pseudo-inputs.

    Raises:
        UsageError: parts that do not go together, or a network that this shape has no use for.
    """
    check_supports(config.prior, config.posterior)
    elements = math.prod(shape)
    family, width = likelihood_of(config, elements)
    prior, posterior = PRIORS[config.prior], POSTERIORS[config.posterior]
    if "posterior" in prior.needs and "prior" in posterior.needs:
        raise UsageError(
            f"prior {config.prior!r} is made of its posterior, and posterior {config.posterior!r} of its prior: take another "
            "of either."
        )
    parts: dict[str, Any] = {"shape": elements, "encoders": []}
    for role in ("posterior", "likelihood", "prior") if not posterior.needs else ("likelihood", "prior", "posterior"):
        parts[role] = make(role, config, shape, parts, family, width, x)
    for network in (parts["likelihood"].net, *parts["encoders"]):
        start(network)
    if x is not None and isinstance(parts["likelihood"].net, MLP):
        bias = list(parts["likelihood"].net.parameters())[-1]
        bias.data.copy_(marginal_features(config.likelihood, family, width * elements, x))
    return VAE(parts["prior"], parts["likelihood"], parts["posterior"])


def make(
    role: str, config: Config, shape: tuple[int, ...], parts: dict[str, Any], family: Any, width: int, x: Tensor | None
) -> nn.Module:
    """One role's part, from those made before it."""
    if role == "likelihood":
        return Conditional(decoder_of(config, shape, width), family)
    spec = ROLES[role][getattr(config, role)]
    options: dict[str, Any] = dict(getattr(config, f"{role}_options"))
    needs = {need: parts[need] for need in spec.needs}
    if role == "posterior":
        return spec.make(encoder_of(config, shape, parts["encoders"]), config.latent_dim, **needs, **options)
    if x is not None and "initial" in spec.options:
        count = options.get("components", spec.options["components"])
        options["initial"] = x[torch.arange(count) * len(x) // count]
    return spec.make(config.latent_dim, **needs, **options)


def start(network: nn.Module) -> None:
    """Glorot-uniform weights and zero biases in the dense layers (Glorot & Bengio, 2010)."""
    for layer in (m for m in network.modules() if isinstance(m, nn.Linear)):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


def encoder_of(config: Config, shape: tuple[int, ...], made: list[nn.Module]) -> Callable[[int], nn.Module]:
    """Makes the encoder network, for as many features as the posterior asks for, and notes it in `made`."""

    def encoder(features: int) -> nn.Module:
        if config.network == "mlp":
            made.append(MLP(math.prod(shape), features, config.hidden, ACTIVATIONS[config.activation]))
        else:
            made.append(ConvEncoder(features, shape=image_shape(shape)))
        return made[-1]

    return encoder


def decoder_of(config: Config, shape: tuple[int, ...], width: int) -> nn.Module:
    """The decoder network, `width` features an element."""
    if config.network == "mlp":
        return MLP(config.latent_dim, width * math.prod(shape), config.hidden[::-1], ACTIVATIONS[config.activation])
    channels, height, wide = image_shape(shape)
    return ConvDecoder(config.latent_dim, shape=(width * channels, height, wide))


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width), if the convolutions divide them."""
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise UsageError(
            f"network conv takes images whose height and width are multiples of 4, not data of shape {shape}"
        )
    return shape[0], shape[1], shape[2]
