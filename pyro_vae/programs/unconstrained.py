r"""Latents at chosen values on the real line: z = T(u) site by site, T from R^D to the support that the model gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MixtureSameFamily, biject_to, constraints
from torch.distributions.transforms import Transform

from pyro_vae.errors import ProgramError

from .log_density import CIRCULAR, TURN
from .plates import Plates, sum_rows
from .sites import Site
from .vectorize import ParticleDistribution
from .wrapped import WRAPPERS, bare

REFUSED = {
    "Delta": "a single point, which has no density: compute it in the model; a guide needs a spread (Normal, LogNormal).",
}
ZUKO = ("zuko.distributions", "NormalizingFlow")  # by name: importing zuko switches torch's validation off


def support_of(fn: Any) -> constraints.Constraint:
    """Return a support that has a map from R^D; NotImplementedError if none is declared or a mixture's components differ."""
    if isinstance(fn, WRAPPERS):
        support = support_of(fn.base_dist)
    elif isinstance(fn, ParticleDistribution):
        support = fn.split_support([support_of(part) for part in fn.parts])
    elif isinstance(fn, MixtureSameFamily):
        support = shared_by_components(support_of(fn.component_distribution), len(fn.event_shape))
    else:
        support = support_of(fn.dist) if type(fn) is ZukoToPyro else own_support(fn)
    dims = len(fn.event_shape) - support.event_dim
    return constraints.independent(support, dims) if dims > 0 else support


def own_support(fn: Any) -> Any:
    """Return the support that a distribution declares; of an angle one turn; of a zuko flow on a real base, its transform's."""
    if type(fn).__name__ in CIRCULAR:
        return TURN
    flow = (type(fn).__module__, type(fn).__name__) == ZUKO
    if flow and isinstance(bare(support_of(fn.base)), type(constraints.real)):
        return fn.transform.domain
    try:
        return fn.support
    except (NotImplementedError, AttributeError) as error:  # AttributeError: of a transform without a codomain
        way_out = "give it a `support` property (constraints.real_vector, if its values are any vectors)"
        raise NotImplementedError(f"{type(fn).__name__} does not say what its support is: {way_out}") from error


def shared_by_components(support: Any, event_dim: int) -> Any:
    """Return one component's support, without the dimension of components in its bounds, if all have the same."""
    if isinstance(support, constraints.independent):
        base = shared_by_components(support.base_constraint, event_dim)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    if support.is_discrete:
        return support
    support = copy.copy(support)
    for name, bound in vars(support).items():
        if isinstance(bound, Tensor) and bound.dim() > event_dim:
            first = bound.select(-1 - event_dim, 0)
            if (bound != first.unsqueeze(-1 - event_dim)).any():
                raise NotImplementedError("the components of the mixture have different supports: give them one")
            setattr(support, name, first)
    return support


def bijection(fn: Any) -> Transform:
    """Return the map T from R^D onto the support of a distribution.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> bijection(dist.Gamma(2.0, 1.0))(torch.tensor(0.0))
        tensor(1.)
    """
    return biject_to(support_of(fn))


def is_discrete(name: str, fn: Any) -> bool:
    """Return whether a latent takes separate values only; a ProgramError if its distribution declares no support."""
    try:
        return bool(support_of(fn).is_discrete)
    except NotImplementedError as error:
        raise ProgramError(f"site {name!r}: {error}, or use importance sampling.") from error


def check_continuous(name: str, site: Site) -> None:
    """Refuse a latent without a density on the real line; the ProgramError names the site, the reason and the way out."""
    fn = part = site["fn"]
    while isinstance(part, MixtureSameFamily | ParticleDistribution) or hasattr(part, "base_dist"):
        if isinstance(part, ParticleDistribution):
            part = part.parts[0]
        else:
            part = part.component_distribution if isinstance(part, MixtureSameFamily) else part.base_dist
    if why := REFUSED.get(kind := type(part).__name__):
        raise ProgramError(f"site {name!r} is a {kind}, {why}")
    if is_discrete(name, fn):
        raise ProgramError(
            f"site {name!r} is discrete ({kind}): it has no place on the real line, so no grid and no gradient. Beside "
            "continuous latents, sites with a list of values are summed out; where all are discrete, enumeration is exact "
            "(enumerate_latents). Of others use importance sampling."
        )
    try:
        bijection(fn)
    except NotImplementedError as error:
        raise ProgramError(
            f"site {name!r} ({kind}) has a support ({support_of(fn)}) that no smooth one-to-one map takes to the real line. "
            "Use importance sampling, or write the site as a transformed real one."
        ) from error


@dataclass(frozen=True)
class SiteLayout:
    """How the values of one latent site lie in columns of a tensor ``(G, R, D)``, G particles of R rows."""

    name: str
    batch: tuple[int, ...]  # sizes of its plates beside the data's
    event: tuple[int, ...]  # shape of an event of what lies there
    event_dim: int  # of z
    dtype: torch.dtype  # of z
    plates: Plates
    unconstrained: bool  # u = T⁻¹(z) lies there, not z

    @classmethod
    def of(cls, name: str, site: Site, plates: Plates, unconstrained: bool) -> SiteLayout:
        """Lay out a site of a trace, with or without particles; if `unconstrained`, after :func:`check_continuous`."""
        fn, value = site["fn"], site["value"]
        if unconstrained:
            check_continuous(name, site)
        shape = bijection(fn).inverse_shape(value.shape) if unconstrained else value.shape
        dims = value.dim() - fn.event_dim
        batch = [1] * (plates.nesting - dims) + list(value.shape[:dims])[-plates.nesting :]
        del batch[plates.dim]
        return cls(name, tuple(batch), tuple(shape[dims:]), fn.event_dim, value.dtype, plates, unconstrained)

    @property
    def size(self) -> int:
        """How many columns it takes."""
        return math.prod(self.batch) * math.prod(self.event)

    @property
    def row_dim(self) -> int:
        """The dimension of the rows in the site's values, from the left, behind G particles."""
        return 1 + self.plates.nesting + self.plates.dim

    def arrange(self, columns: Tensor) -> Tensor:
        """``(G, R, size)`` in the site's own shape, particles on the left, rows where the data plate is."""
        return columns.reshape(*columns.shape[:2], *self.batch, *self.event).movedim(1, self.row_dim)

    def flatten(self, value: Tensor) -> Tensor:
        """``(G, *batch, *event)`` as columns ``(G, R, size)``."""
        moved = value.movedim(self.row_dim, 1)
        return moved.reshape(*moved.shape[:2], -1)

    def unconstrain(self, site: Site, dtype: torch.dtype | None = None) -> Tensor:
        """u = T⁻¹(z) of the site's value in a trace, computed in `dtype`, as columns ``(G, R, size)``."""
        return self.flatten(bijection(site["fn"]).inv(site["value"].to(dtype or self.dtype)))


class SubstituteLatents(Messenger):
    """Fix latent sites at values, broadcast to the site's shape; :meth:`Problem.trace` enters it. Others are drawn.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> with SubstituteLatents({"z": torch.tensor(2.0)}):
        ...     pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        tensor([2., 2., 2.])
    """

    def __init__(self, values: dict[str, Tensor], layouts: Sequence[SiteLayout] = ()) -> None:
        super().__init__()
        self.values, self.layouts = values, {layout.name: layout for layout in layouts}
        self.moved: dict[str, tuple[Transform, Tensor, Tensor]] = {}  # T, u and z by site
        self.part: tuple[int, int] | None = None  # which of how many particles, where they run one after the other
        self.parts: list[tuple[SubstituteLatents, dict[str, Site]]] = []  # those, with their sites

    @classmethod
    def at(cls, flat: Tensor, layouts: Sequence[SiteLayout]) -> SubstituteLatents:
        """Return latents whose values, or coordinates on the real line, lie side by side: ``(G, R, D)``."""
        parts = flat.split([layout.size for layout in layouts], -1)
        return cls({layout.name: layout.arrange(part) for layout, part in zip(layouts, parts, strict=True)}, layouts)

    def particle(self, k: int, of: int) -> SubstituteLatents:
        """Return the latents of one particle of several."""
        one = type(self)(self.values, tuple(self.layouts.values()))
        one.part = k, of
        return one

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"] or name not in self.values:
            return
        layout, msg["done"] = self.layouts.get(name), True
        value = self.chosen(self.values[name], None if layout else fn.shape())
        if layout is not None and layout.unconstrained:
            to_support, u = bijection(fn), value
            value = to_support(u)
            self.moved[name] = to_support, u, value
        if layout is None:
            msg["value"] = value.expand(fn.shape())
        else:
            msg["value"] = self.placed(value.to(layout.dtype), fn) if layout.unconstrained else value.to(layout.dtype)

    def placed(self, value: Tensor, fn: Any) -> Tensor:
        """Return the value that a site takes, of T(u)."""
        return value

    def chosen(self, value: Tensor, shape: torch.Size | None) -> Tensor:
        """Return the values of all particles, or of this one: of a site of this `shape`, where they may lack dimensions."""
        if self.part is None:
            return value
        k, of = self.part
        full = value if shape is None else value.expand(of, *shape[1:])
        return full[k : k + 1]

    def log_jacobians(self, sites: dict[str, Site]) -> dict[str, Tensor]:
        """log |∂z/∂u|, ``(G, R)``, of each site that was placed by its u, from the trace that was made."""
        if self.parts:
            by_part = [part.log_jacobians(own) for part, own in self.parts]
            return {name: torch.cat([terms[name] for terms in by_part]) for name in by_part[0]}
        return {name: self.log_jacobian(name, sites[name]) for name in self.moved}

    def log_jacobian(self, name: str, site: Site) -> Tensor:
        """log |∂z/∂u| of one site, under its mask, as its density is."""
        to_support, u, z = self.moved[name]
        log_det = to_support.log_abs_det_jacobian(u, z)
        log_det = sum_rightmost(log_det, log_det.dim() - (z.dim() - site["fn"].event_dim))
        return sum_rows(name, scale_and_mask(log_det, mask=site["mask"]), self.layouts[name].plates)
