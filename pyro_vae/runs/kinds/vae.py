"""p(z) p(x | z) with q(z | x): the VAE, whose other parts have names."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_vae.common.spec import Spec
from pyro_vae.errors import UsageError
from pyro_vae.models.standardize import wrap_roles
from pyro_vae.models.vae import VAE

from .kind import ModelKind
from .parts import ModelParts


def make_vae(parts: ModelParts) -> VAE:
    """Make each role once those that it needs are made; a VampPrior is made of its posterior."""
    config, specs = parts.config, parts.specs
    if "posterior" in specs["prior"].needs and "prior" in specs["posterior"].needs:
        raise UsageError(
            f"prior {config.prior!r} is made of its posterior, and posterior {config.posterior!r} of its prior: take another "
            "of either."
        )
    decoder = parts.decoder(config.latent_dim)
    made: dict[str, Any] = {"shape": parts.elements}
    todo = ["posterior", "likelihood", "prior"]
    while todo:  # the first whose needs are made
        role = next(r for r in todo if r == "likelihood" or made.keys() >= set(specs[r].needs))
        todo.remove(role)
        made[role] = decoder if role == "likelihood" else make_role(role, specs[role], parts, made)
    parts.start(decoder)
    vae = VAE(made["prior"], made["likelihood"], made["posterior"])
    if config.standardize:
        wrap_roles(vae, parts.loc, parts.scale)
    return vae


def make_role(role: str, spec: Spec, parts: ModelParts, made: dict[str, Any]) -> nn.Module:
    """Make the prior or the posterior, from what was made before it."""
    options: dict[str, Any] = dict(getattr(parts.config, f"{role}_options"))
    needs = {need: made[need] for need in spec.needs}
    dim = parts.config.latent_dim
    if role == "posterior":
        posterior: nn.Module = spec.make(parts.encoder, dim, **needs, **options)
        return posterior
    if parts.x is not None and "shape" in needs and {"initial", "components"} <= spec.options.keys():
        options["initial"] = parts.first_rows(options.get("components", spec.options["components"]))
    prior: nn.Module = spec.make(dim, **needs, **options)
    return prior


KIND = ModelKind(
    make=make_vae, takes=("prior", "posterior"),
    formula="p(z) p(x|z); q(z|x)", support="any x",
    reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
)  # fmt: skip
