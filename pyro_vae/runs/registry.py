"""Names to parts: a closed table, the only way from a config to a model. A config never names an import path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import described
from pyro_vae.common.keywords import suggest
from pyro_vae.common.spec import Spec
from pyro_vae.distributions.conditional import Family
from pyro_vae.distributions.units import real_elements
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods.registry import FAMILIES
from pyro_vae.models.standardize import Units, units_by_shape
from pyro_vae.posteriors.registry import POSTERIORS
from pyro_vae.priors.registry import PRIORS

from .config import Config
from .custom_components import NOTHING, Components, adopt, read_options
from .kinds.kind import ModelKind
from .kinds.parts import ModelParts
from .kinds.table import ELSEWHERE, MODELS
from .objective_registry import GRADIENTS, KLS, OBJECTIVES, SCORED, Objective, make_objective
from .tabular_spec import COLUMNS

LIKELIHOODS = FAMILIES | {"columns": COLUMNS}
ROLES: dict[str, Mapping[str, Spec]] = {"prior": PRIORS, "likelihood": LIKELIHOODS, "posterior": POSTERIORS}
CHOICES: dict[str, Mapping[str, Spec]] = {"objective": OBJECTIVES, "gradient": GRADIENTS, "kl": KLS}
TABLES: dict[str, Mapping[str, Spec]] = {"model": MODELS} | ROLES | CHOICES
SUPPLIED = ("dim", "initial", "bounds")  # options that the data says, or that no word can
DIGITS = {"binomial": {"total_count": 16}, "categorical": {"num_classes": 17}, "discretized_logistic": {"levels": 17}}
DIGITS["discretized_logistic_mixture"] = DIGITS["discretized_logistic"]


def names(role: str) -> list[str]:
    """List what a config may call a part of this role, or an objective, a gradient, a treatment of the KL."""
    return list(TABLES[role])


def kind_of(config: Config) -> ModelKind:
    """Find the kind of model that a config names.

    Raises:
        UsageError: an unknown name, with the nearest known ones.
    """
    if config.model in MODELS:
        return MODELS[config.model]
    if config.model in ELSEWHERE:
        raise UsageError(f"model {config.model!r} is not had by a config: {ELSEWHERE[config.model]}")
    raise UsageError(
        f"no model {config.model!r}; {suggest(config.model, list(MODELS), 3)} (`pyro-vae parts` lists them; in Python, any "
        "object with a model and a guide will do)"
    )


def spec_of(role: str, name: str, components: Components = NOTHING) -> Spec:
    """Find the part of that name: of the registry, or of the caller's own (:mod:`pyro_vae.runs.custom_components`).

    Raises:
        UsageError: an unknown name, with the nearest known ones.
    """
    if name in names(role):
        return TABLES[role][name]
    if name in components and role in ROLES:
        return adopt(role, name, components[name])
    known = [*names(role), *(components if role in ROLES else ())]
    own = "in Python, any object will do"
    if role in ROLES:
        own = f"parts of your own are passed as objects, in Python: components={{{name!r}: ...}}"
    raise UsageError(f"no {role} {name!r}; {suggest(name, known, 3)} (`pyro-vae parts` lists them; {own})")


def unregistered(config: Config, components: Components = NOTHING) -> list[tuple[str, str]]:
    """List (role, name) of the parts that a config names and nobody here knows."""
    named = [(role, getattr(config, role)) for role in ROLES]
    return [(role, name) for role, name in named if name not in (*names(role), *components, "auto")]


def check_names(components: Components) -> None:
    """Refuse parts of one's own under names that mean something already."""
    if not isinstance(components, Mapping):
        raise UsageError(f"components are parts by name, {{'mine': MyPrior}}; got {described(components)}")
    taken = {"auto", *(name for table in ROLES.values() for name in table)}
    if both := sorted(taken & components.keys()):
        raise UsageError(
            f"component {both[0]!r}: a registered part is called so, and a config would mean either. Take another name."
        )


def options_for(role: str, name: str, components: Components = NOTHING) -> dict[str, Any]:
    """List the options that a config may give a part, with their defaults: those that the data does not say."""
    supplied = SUPPLIED if name in TABLES[role] else ("dim",) if role == "likelihood" else ()
    return {k: v for k, v in spec_of(role, name, components).options.items() if k not in supplied}


def options_of(role: str, name: str, given: Mapping[str, Any], components: Components = NOTHING) -> dict[str, Any]:
    """Read a part's options, as :func:`~pyro_vae.runs.custom_components.read_options`."""
    known = options_for(role, name, components)
    return read_options(f"{role} {name!r}", known, given, f"--{role}.NAME VALUE", own=name in components)


def resolved(config: Config, components: Components = NOTHING) -> Config:
    """Decide every "auto" of a config, check every name and read every option: what a run records."""
    check_names(components)
    config = config.resolved()
    check_kind(config)
    likelihood: dict[str, Any] = dict(config.likelihood_options)
    if config.data == "digits" and config.binarization == "none":
        likelihood = DIGITS.get(config.likelihood, {}) | likelihood
    check_supports(config.prior, config.posterior, components)
    check_objective(config, components)
    config = dataclasses.replace(
        config,
        model_options=all_options("model", config.model, config.model_options),
        prior_options=options_of("prior", config.prior, config.prior_options, components),
        likelihood_options=options_of("likelihood", config.likelihood, likelihood, components),
        posterior_options=options_of("posterior", config.posterior, config.posterior_options, components),
        objective_options=all_options("objective", config.objective, config.objective_options),
        kl_options=all_options("kl", config.kl, config.kl_options),
    )
    objective_of(config, dataset_size=1)  # refuses what does not go together, before any data is read
    return config


def all_options(role: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option, as given or by default."""
    return {**TABLES[role][name].options, **options_of(role, name, given)}


def check_objective(config: Config, components: Components = NOTHING) -> None:
    """Refuse objectives that a posterior's draws cannot be trained with (Pyro sums pathwise values without their weights)."""
    spec = spec_of("posterior", config.posterior, components)
    for role in CHOICES:
        spec_of(role, getattr(config, role))
    if config.objective == "trace_enum" and spec.reparameterised:
        fit = [name for name in names("posterior") if not POSTERIORS[name].reparameterised]
        raise UsageError(
            f"objective 'trace_enum' sums over every value of z, and the draws of posterior {config.posterior!r} are pathwise. "
            f"Take posterior {' or '.join(map(repr, fit))} (of your own: a Spec with reparameterised=False), or objective "
            "'elbo'."
        )
    if config.objective != "trace_enum" and config.gradient not in SCORED and not spec.reparameterised:
        raise UsageError(
            f"the draws of posterior {config.posterior!r} carry no gradient (no rsample), which gradient {config.gradient!r} "
            f"needs. Take --gradient {' or '.join(SCORED)} with --objective iwae or elbo (--objective.particles 2 or more), or "
            "--objective trace_enum, which sums z out."
        )


def objective_of(config: Config, dataset_size: int) -> Objective:
    """Make what a resolved config says to train, on so many rows.

    Raises:
        UsageError: an objective, a gradient and a treatment of the KL that do not go together.
    """
    kl, objective = (config.kl, config.kl_options), (config.objective, config.objective_options)
    return make_objective(objective, config.gradient, kl, dataset_size, kind_of(config).terms(config, dataset_size))


def check_kind(config: Config) -> None:
    """Refuse parts that a model of this kind has by itself, and objectives that it cannot be trained on."""
    kind, default = kind_of(config), Config()
    for role in ("prior", "posterior"):
        if role in kind.takes:
            continue
        if getattr(config, role) != getattr(default, role) or getattr(config, f"{role}_options"):
            fit = [name for name, other in MODELS.items() if role in other.takes]
            raise UsageError(
                f"--{role} {getattr(config, role)} is of model {' or '.join(map(repr, fit))}: model {config.model!r} has a "
                f"{role} of its own, {kind.formula}. Leave it out."
            )
    if kind.objectives and config.objective not in kind.objectives:
        raise UsageError(
            f"objective {config.objective!r} is none that model {config.model!r} is trained on: take --objective "
            f"{' or '.join(kind.objectives)}"
        )


def check_supports(prior: str, posterior: str, components: Components = NOTHING) -> None:
    """Refuse a prior and a posterior over different spaces: KL(q(z | x) ‖ p(z)) would be infinite or undefined."""
    p, q = spec_of("prior", prior, components).support, spec_of("posterior", posterior, components).support
    if p != q and "any" not in (p, q):
        fit = [name for name in names("posterior") if POSTERIORS[name].support == p]
        raise UsageError(
            f"prior {prior!r} lives on {p} latents, posterior {posterior!r} on {q} ones: KL(q ‖ p) is undefined. "
            f"With this prior take posterior {' or '.join(map(repr, fit))}."
        )


def likelihood_of(config: Config, elements: int, components: Components = NOTHING) -> tuple[Any, int]:
    """Make the family that a resolved config names, and count the features it takes for a row of so many elements."""
    spec = spec_of("likelihood", config.likelihood, components)
    options: dict[str, Any] = dict(config.likelihood_options)
    if "dim" in spec.options:
        options["dim"] = elements
    family = spec.make(**options)
    if spec is not COLUMNS:
        return family, spec.num_features(**options) * elements
    if (width := sum(family.widths)) != elements:
        raise UsageError(f"likelihood 'columns': its blocks make {width} columns, the data has {elements}")
    return family, sum(family.features)


def build(config: Config, shape: tuple[int, ...], x: Tensor | None = None, components: Components = NOTHING) -> Any:
    """Build the model of a resolved config, for data of that shape.

    Args:
        config: as :func:`resolved` leaves it.
        shape: of one row: (d,) or (channels, height, width).
        x: training rows; their marginal starts the decoder's output bias, so that training begins at the floor, and some
            of them start a VampPrior's pseudo-inputs.
        components: parts of the caller's own, by the names that the config uses.

    Raises:
        UsageError: parts that do not go together, or a network that this shape has no use for.
    """
    check_supports(config.prior, config.posterior, components)
    kind = kind_of(config)
    rows = None if x is None else kind.observed(x, shape)
    options: dict[str, Any] = dict(config.model_options)
    return kind.make(parts_of(config, kind.emission(shape), rows, components), **options)


def parts_of(config: Config, shape: tuple[int, ...], x: Tensor | None, components: Components) -> ModelParts:
    """Gather what a model is made of, for an x of that shape."""
    elements = math.prod(shape)
    family, features = likelihood_of(config, elements, components)
    loc, scale = units_of(config, family, features, shape, x)
    x = x if x is None or not config.standardize else (x - loc) / scale
    fill = None if not config.missing else torch.zeros(elements) if x is None else x.nanmean(0).nan_to_num()
    specs = {role: spec_of(role, getattr(config, role), components) for role in ("posterior", "prior")}
    units = input_units(config, shape, x)
    family_of = partial(likelihood_of, config, components=components)
    return ModelParts(config, shape, family, features, loc, scale, x, fill, units, family_of, specs)


def input_units(config: Config, shape: tuple[int, ...], x: Tensor | None) -> Units | None:
    """Return the units that the encoder sees its input in; 0 and 1 without rows, None if the config asks for none."""
    if not config.normalize:
        return None
    elements = math.prod(shape)
    if x is None:
        return Units(torch.zeros(elements), torch.ones(elements))
    return Units(*units_by_shape(x, torch.tensor(True), shape))


def units_of(
    config: Config, family: Family, features: int, shape: tuple[int, ...], x: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the training rows by element; 0 and 1 without rows, or if the config asks for none.

    Raises:
        UsageError: they were asked for, and the likelihood is of no real numbers.
    """
    elements = math.prod(shape)
    if not config.standardize:
        return torch.zeros(elements), torch.ones(elements)
    if not (real := real_elements(family(torch.zeros(features)))).any():
        name = config.likelihood
        raise UsageError(
            f"standardize: the likelihood {name!r} is no density of real numbers; leave it out "
            "(--no-standardize, where a config file says it)"
        )
    return (torch.zeros(elements), torch.ones(elements)) if x is None else units_by_shape(x, real, shape)
