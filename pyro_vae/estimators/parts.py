"""The model of an estimator: built of a few plain numbers, and its decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.given import described, whole
from pyro_vae.common.keywords import suggest
from pyro_vae.common.spec import REQUIRED
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.distributions.units import real_elements
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.likelihoods.registry import FAMILIES
from pyro_vae.models.decoding import as_drawn, check_decoder, decoded, latents_of, means_of, run_guide, sites_of_x
from pyro_vae.models.networks import MLP
from pyro_vae.models.standardize import is_standardized
from pyro_vae.models.used import Used
from pyro_vae.models.vae import VAE
from pyro_vae.priors.simple import StandardNormal
from pyro_vae.programs.pair import quiet

PROBE = 60  # features, which any likelihood of a few an element divides


class Arguments(Protocol):
    """What of an estimator the model is made of."""

    latent_dim: int
    hidden: Any
    likelihood: Any
    make: Any


def build(arguments: Arguments, columns: int) -> Any:
    """Build the model that the arguments say, in float64, as scikit-learn's tables are; or have `make` build one."""
    if arguments.make is not None:
        if not callable(arguments.make):
            raise UsageError(f"make is called with the number of columns, make(n_features); got {arguments.make!r}")
        return arguments.make(columns)
    latents = whole("latent_dim", arguments.latent_dim, 1)
    if isinstance(arguments.hidden, str) or not isinstance(arguments.hidden, Iterable):
        raise UsageError(f"hidden is the widths of the hidden layers, such as (64,); got {described(arguments.hidden)}")
    hidden = [whole("a width of hidden", width, 1) for width in arguments.hidden]
    family, features = family_of(arguments.likelihood)
    return VAE(
        prior=StandardNormal(latents),
        likelihood=Conditional(MLP(latents, features * columns, hidden), family),
        posterior=Conditional(MLP(columns, 2 * latents, hidden), normal),
    ).double()


def family_of(likelihood: Any) -> tuple[Any, int]:
    """Find a family by its name, or take one, and how many features it wants for each column.

    Example:
        >>> from pyro_vae import binomial
        >>> family_of("normal")[1], family_of(binomial(3))[1]
        (2, 1)
    """
    if callable(likelihood):
        with torch.no_grad():
            d = likelihood(torch.zeros(PROBE))
        columns = (d.batch_shape + d.event_shape)[-1]
        if PROBE % columns:
            raise UsageError(f"likelihood: of {PROBE} features it makes {columns} columns. Build the model by make=.")
        return likelihood, PROBE // columns
    plain = [name for name, spec in FAMILIES.items() if REQUIRED not in spec.options.values()]
    if not isinstance(likelihood, str) or likelihood not in plain:
        needs = sorted(FAMILIES[str(likelihood)].options) if str(likelihood) in FAMILIES else ()
        why = f"takes options ({', '.join(needs)}): give the family itself, as binomial(16)" if needs else ""
        raise UsageError(f"likelihood {likelihood!r} {why or 'is none; ' + suggest(str(likelihood), plain, 3)}")
    return FAMILIES[likelihood].make(), FAMILIES[likelihood].num_features()


def has_real_elements(vae: Any, x: Tensor) -> bool:
    """Return whether a VAE has roles that can take units, and real numbers among its columns; it keeps units that it has."""
    if not isinstance(vae, VAE) or is_standardized(vae):
        return False
    with quiet(vae, seed=0, device=x.device):
        site: Any = poutine.trace(vae.model).get_trace(x[:1]).nodes["x"]
    return bool(real_elements(site["fn"]).any())


def decode(vae: Any, codes: Tensor, row: Tensor) -> Tensor:
    """E[x | z] of codes ``(N, *code)``, ``(N, *event)``, for a model of rows like `row`, whose values do not count.

    Raises:
        ProgramError: a model whose x given these codes is no one distribution (further latents, a model that reads x).
    """
    used = Used.of(vae)
    model, guide, args = used.rows_of_pair(row.expand(len(codes), *row.shape[1:]).contiguous())
    with quiet(model, guide, seed=0, device=args[0].device):
        latents = latents_of(run_guide(guide, args))
        at = as_drawn({used.code or next(iter(latents)): codes}, latents)  # codes are a table of one
        sites = decoded(model, args, at)
        check_decoder(model, args, at, sites)
        x = means_of({name: sites[name] for name in sites_of_x(model, args, at, sites)}, None, used.data, latents)
    return (next(iter(x.values())) if isinstance(x, dict) else x).detach().cpu()
