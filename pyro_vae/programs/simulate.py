r"""Data from the model itself: (z, x) ~ p(z) p(x | z), for any model with one data plate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError, ShapeError

from .pair import quiet
from .plates import data_plate, refuse_shared
from .problem import rows_of
from .sites import Program, Site, sample_sites
from .structured import on_tensors
from .user_errors import MODEL, explained
from .validity import ValidParameters

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Simulated:
    """One draw of (z, x) for each row."""

    latents: dict[str, Tensor]  # the value of each latent site, as the model drew it (no dimension of particles)
    args: Batch  # of the programs: the arguments given, with draws in the place of what is observed

    @property
    def x(self) -> Tensor:
        """The data drawn, ``(N, *event)``."""
        return self.args[0]


@suggest_keywords
def simulate(model: Program, x: Any, *context: Any, seed: int = 0) -> Simulated:
    r"""z_n ~ p(z | c_n), x_n ~ p(x | z_n, c_n) for each row n: the model run with its observations undone.

    Changes no parameter, no module's mode and no global random state.

    Args:
        model: a Pyro program ``model(x, *context)`` that observes x whole, ``pyro.sample("x", likelihood, obs=x)``. A context
            that is observed likewise (a label of a joint model) is drawn, too.
        x: a template ``(N, *event)``: its shape, dtype and device count, its values do not.
        *context: what the model takes beside x, each with N rows.
        seed: of the draws.

    Raises:
        ProgramError: an observation that is none of the arguments (a transformed x, a ``pyro.factor``), whose draws are no
            draws of an argument; a model that reads the values of x beside observing them; a latent that rows share.
        ShapeError: a template of another shape than the model draws.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(z.exp()), obs=x)
        >>> drawn = simulate(model, torch.zeros(3))
        >>> drawn.x.shape, drawn.latents["z"].shape
        (torch.Size([3]), torch.Size([3]))
    """
    flat, _, args = on_tensors(model, None, x, *context)
    args = rows_of(flat, None, *args, missing=True)  # a template may be what is not there
    with quiet(flat):
        drawn = draw(flat, args, seed)
    return drawn if flat is model else replace(drawn, args=flat.restore(drawn.args))


def draw(model: Program, args: Batch, seed: int, *block: int) -> Simulated:
    """:func:`simulate` on tensors, with the noise of one block, twice: a model that reads x draws another x from it."""

    def once(args: Batch) -> tuple[dict[str, Site], Batch]:
        with seeded(seed, *block, device=args[0].device), explained(MODEL, *args), ValidParameters("model"):
            sites = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*args))
        plate = data_plate(
            sites
        )  # refuses, by site, a latent that rows share: its draw for one row would be others', too
        for name, site in sites.items():
            refuse_shared(name, site, plate.name, len(args[0]))
        return sites, tuple(replicated(args, sites))

    sites, drawn = once(args)
    for a, b in zip(drawn, once(drawn)[1], strict=True):
        if not torch.allclose(a.double(), b.double(), equal_nan=True):
            raise ProgramError(
                "the model draws another x when it is called on another x: it reads the data's values (an autoregressive "
                "likelihood, a model conditioned on x), so running it once does not simulate from p(z) p(x | z). Simulate "
                "element by element in a program of your own."
            )
    return Simulated({name: s["value"] for name, s in sites.items() if not was_observed(s)}, drawn)


def was_observed(site: Site) -> bool:
    """Return whether the site was an observation before it was undone."""
    return bool(site["infer"].get("was_observed"))


def replicated(args: Batch, sites: Mapping[str, Site], draws: tuple[int, ...] = ()) -> list[Tensor]:
    """The arguments, with draws ``(*draws, N, *event)`` in the place of those that are observed."""
    new_args = list(args)
    for name, site in ((name, site) for name, site in sites.items() if was_observed(site)):
        i, value = index_of(name, site, args), site["value"]
        if new_args[i] is not args[i]:
            raise ProgramError(f"site {name!r} observes what another site observes already: which one draws it is open")
        if value.numel() != args[i].numel() * math.prod(draws):
            raise ShapeError(
                f"site {name!r} draws {tuple(value.shape)} where the template has shape {tuple(args[i].shape)}: give a "
                "template with the shape of what the likelihood generates"
            )
        new_args[i] = value.reshape(*draws, *args[i].shape).to(args[i].dtype)
    if new_args[0] is args[0]:
        raise ProgramError('x is observed nowhere: pass it whole, pyro.sample("x", likelihood, obs=x)')
    return new_args


def index_of(name: str, site: Site, args: Batch) -> int:
    """The index of the argument that a site observes."""
    indices = [i for i, a in enumerate(args) if site["infer"]["obs"] is a]
    if len(indices) != 1:
        raise ProgramError(
            f"site {name!r} observes none of the arguments as it is (a transformed or partial x, fixed data, a pyro.factor): "
            'what it draws does not say what x would be. Observe x whole, pyro.sample("x", likelihood, obs=x).'
        )
    return indices[0]
