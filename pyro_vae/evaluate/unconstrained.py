r"""The latents of a (model, guide) pair as one real vector a row, u = T⁻¹(z), and the densities there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import plate, poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from pyro_vae.errors import ProgramError
from pyro_vae.infer.support import base_name
from pyro_vae.infer.weights import (
    PARTICLES,
    Plates,
    Program,
    Site,
    check_pair,
    row_log_prob,
    sample_sites,
    sum_rows,
    sum_terms,
    trace_pair,
)

Sites = dict[str, Site]
Start = Literal["prior", "guide"]

REFUSED = {
    "Delta": "is a single point, which has no density. Give the guide a spread (Normal, LogNormal), or start='prior'.",
    "VonMises": "is an angle: it has a density on one turn only, not on the real line. Use importance sampling.",
}


class Place(Messenger):
    """Latent sites hold what `value(name, fn)` says; their plates have been broadcast into fn already."""

    def __init__(self, value: Callable[[str, Any], Tensor]) -> None:
        super().__init__()
        self.value = value

    def _pyro_sample(self, msg: Any) -> None:
        if latent(msg):
            msg["value"] = self.value(msg["name"], msg["fn"])


def latent(site: Any) -> bool:
    """Whether a site is drawn: neither observed nor a plate's indices."""
    return not site["is_observed"] and not poutine.util.site_is_subsample(site)


@dataclass(frozen=True)
class Slot:
    """Where one site lies in u: its width, its shape ``(chains, N, *rest)``, the dim of its rows from the right, in u;
    and how many dims of its value are its event."""

    width: int
    rest: tuple[int, ...]
    dim: int
    event_dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Point:
    r"""Chains at u, with what a path between two densities needs there.

    Attributes:
        u: ``(chains, N, D)``.
        start: log density that the chains start from, at u, ``(chains, N)``, nats.
        ratio: log p(x, z) − log start density: the Jacobians cancel, and for ``start="prior"`` this is log p(x | z).
        d_start: gradient of `start`, ``(chains, N, D)``.
        d_ratio: gradient of `ratio`.
    """

    u: Tensor
    start: Tensor
    ratio: Tensor
    d_start: Tensor
    d_ratio: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log start^(1−β) (start · ratio)^β = log start + β ratio, in float64."""
        return self.start.double() + beta * self.ratio.double()

    def slope(self, beta: float) -> Tensor:
        """The gradient of :meth:`log_density`."""
        return self.d_start + beta * self.d_ratio

    def replaced(self, other: Point, where: Tensor) -> Point:
        """The other's chains `where` says so, ``(chains, N)``; its own elsewhere."""
        return Point(
            torch.where(where[..., None], other.u, self.u),
            torch.where(where, other.start, self.start),
            torch.where(where, other.ratio, self.ratio),
            torch.where(where[..., None], other.d_start, self.d_start),
            torch.where(where[..., None], other.d_ratio, self.d_ratio),
        )


class Densities:
    r"""log start(u) and log p(x, z(u)) + log |∂z/∂u| for a batch of rows, with gradients in u.

    z = T(u) site by site, T = ``biject_to`` of the support that the *model* gives the site, which may depend on latents
    before it. Nothing is scaled: plate sizes and ``poutine.scale`` stay out, masks stay in.

    Args:
        model: a Pyro program, as for :func:`~pyro_vae.log_weights`.
        guide: its guide; only asked where it is the start.
        args: x and contexts, as tensors.
        plates: from :func:`~pyro_vae.infer.weights.find_plates`.
        start: where chains start, the model's prior or the guide.

    Raises:
        ProgramError: a latent that is discrete, or whose support no smooth map takes to the real line; names the site.
    """

    def __init__(self, model: Program, guide: Program, args: tuple[Tensor, ...], plates: Plates, start: Start) -> None:
        self.model, self.guide, self.args, self.plates, self.from_prior = model, guide, args, plates, start == "prior"
        self.slots: dict[str, Slot] = {}

    # from programs to u and back

    def draw(self, chains: int) -> Tensor:
        """u at exact draws of the start, ``(chains, N, D)``."""
        with self.chains(chains):
            if self.from_prior:
                return self.flat(sample_sites(poutine.trace(self.model).get_trace(*self.args)))
            q, p = trace_pair(self.model, self.guide, *self.args)
        check_pair(p, q)
        for name in self.latents(p):
            check_site(f"{name} (guide)", q[name])
        return self.flat(p)

    def at(self, latents: dict[str, Tensor], chains: int) -> Tensor:
        """u with every chain at the same latents, each as a site holds it without chains."""
        with Place(lambda name, fn: latents[name].expand(fn.shape())), self.chains(chains):
            return self.flat(sample_sites(poutine.trace(self.model).get_trace(*self.args)))

    def latents(self, p: Sites) -> Sites:
        """The model's latent sites."""
        return {name: site for name, site in p.items() if not site["is_observed"]}

    def chains(self, count: int) -> plate:
        """The plate of the chains, left of all others."""
        return plate(PARTICLES, count, dim=-1 - self.plates.nesting)

    def flat(self, p: Sites) -> Tensor:
        """The latent sites of the model's trace, unconstrained, side by side: ``(chains, N, D)``."""
        columns = []
        for name, site in self.latents(p).items():
            check_site(name, site)
            u = transform(site["fn"]).inv(site["value"])
            dim = self.plates.dim - (u.dim() - batch_dims(site))
            u = u.movedim(dim, 1)
            width = u[0, 0].numel()
            self.slots[name] = Slot(width, tuple(u.shape[2:]), dim, site["fn"].event_dim, site["value"].dtype)
            columns.append(u.reshape(*u.shape[:2], width))
            check_finite(name, columns[-1])
        if not columns:
            raise ProgramError("the model has no latent site: log p(x) is the log-probability of what it observes.")
        u = torch.cat(columns, -1)
        if u.shape[1] != len(self.args[0]):
            raise ProgramError(
                f"the model draws latents for {u.shape[1]} rows where x has {len(self.args[0])}: a subsampling plate cannot be "
                "scored. Let the data plate run over the rows that are passed in."
            )
        return u

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """u of each site, in the site's own shape."""
        parts = u.split([slot.width for slot in self.slots.values()], -1)
        return {
            name: part.reshape(*u.shape[:2], *slot.rest).movedim(1, slot.dim).to(slot.dtype)
            for (name, slot), part in zip(self.slots.items(), parts, strict=True)
        }

    # the densities

    def __call__(self, u: Tensor) -> Point:
        """Values and gradients at u ``(chains, N, D)``: one run of the model, and one of the guide if it is the start."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            start, ratio = self.scores(u)
            d_start, d_ratio = gradient(start, u), gradient(ratio, u)
        return Point(u.detach(), start.detach(), ratio.detach(), d_start, d_ratio)

    def scores(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(log start, log joint − log start), each ``(chains, N)``."""
        pieces = self.split(u)
        with Place(lambda name, fn: transform(fn)(pieces[name])), self.chains(len(u)):
            p = sample_sites(poutine.trace(self.model).get_trace(*self.args))
        latents = self.latents(p)
        jacobian = self.total(
            {name: log_jacobian(name, site, pieces[name], self.plates) for name, site in latents.items()}
        )
        prior = self.total({name: log_prior(name, site, self.plates) for name, site in latents.items()})
        observed = {name: site for name, site in p.items() if site["is_observed"]}
        likelihood = self.total({name: row_log_prob(name, site, self.plates) for name, site in observed.items()})
        if self.from_prior:
            return prior + jacobian, likelihood
        with Place(lambda name, fn: latents[name]["value"]), self.chains(len(u)):
            q = sample_sites(poutine.trace(self.guide).get_trace(*self.args))
        guide = self.total({name: row_log_prob(name, site, self.plates) for name, site in q.items()})
        return guide + jacobian, likelihood + prior - guide

    @staticmethod
    def total(terms: dict[str, Tensor]) -> Tensor:
        """The sites' terms added up in float64."""
        return sum_terms({name: term.double() for name, term in terms.items()})


def log_prior(name: str, site: Site, plates: Plates) -> Tensor:
    """log p(z) of one latent site, ``(chains, N)``."""
    return row_log_prob(name, site, plates)


def log_jacobian(name: str, site: Site, u: Tensor, plates: Plates) -> Tensor:
    """log |∂z/∂u| of one latent site, ``(chains, N)``; under the site's mask, as its density is."""
    fn = site["fn"]
    log_det = transform(fn).log_abs_det_jacobian(u, site["value"])
    log_det = sum_rightmost(log_det, log_det.dim() - batch_dims(site))
    return sum_rows(name, scale_and_mask(log_det, mask=site["mask"]), plates)


def batch_dims(site: Site) -> int:
    """Plates left of a site's value (a replayed site's fn is not broadcast to them)."""
    return site["value"].dim() - site["fn"].event_dim


def gradient(y: Tensor, u: Tensor) -> Tensor:
    """∂y/∂u for y ``(chains, N)`` whose every entry depends on its own u alone; zero where it depends on none."""
    if not y.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(y.sum(), u, retain_graph=True, materialize_grads=True)[0]


def transform(fn: Any) -> Transform:
    """From R^D to the support of a distribution."""
    return biject_to(support(fn))


def support(fn: Any) -> Any:
    """The support of a distribution; a bare ``ZukoToPyro`` does not say, and is real."""
    if base_name(fn) == "ZukoToPyro":
        return constraints.independent(constraints.real, fn.event_dim)
    return of_components(fn.support)


def of_components(constraint: Any) -> Any:
    """The support of a mixture's components in the place of the mixture's own, which has no transform in torch's registry."""
    if isinstance(constraint, constraints.independent):
        return constraints.independent(of_components(constraint.base_constraint), constraint.reinterpreted_batch_ndims)
    if type(constraint).__name__ == "MixtureSameFamilyConstraint":
        return of_components(constraint.base_constraint)
    return constraint


def check_site(name: str, site: Site) -> None:
    """Refuses, by site, what has no density on the real line."""
    kind = base_name(site["fn"])
    if why := REFUSED.get(kind):
        raise ProgramError(f"site {name!r} ({kind}) {why}")
    try:
        if getattr(support(site["fn"]), "is_discrete", False):
            raise ProgramError(
                f"site {name!r} ({kind}) is discrete: Hamiltonian dynamics need a gradient in z. Sum it out by enumeration, "
                "which is exact for a few classes, or use importance sampling."
            )
        transform(site["fn"])
    except NotImplementedError as error:
        raise ProgramError(
            f"site {name!r} ({kind}) has a support that no smooth one-to-one map takes to the real line. Use importance "
            "sampling, or write the site as a transformed real one."
        ) from error


def check_finite(name: str, u: Tensor) -> None:
    """Refuses draws on the edge of the support, which lie at infinity in u, or outside it."""
    bad = ~u.isfinite().flatten(2).all(2).all(0)
    if bad.any():
        raise ProgramError(
            f"site {name!r}: draws for rows {bad.nonzero().flatten().tolist()[:5]} lie on the edge of the support that the "
            "model gives it, or outside: they have no place on the real line. Give the guide the support of the prior, and "
            "keep either away from 0 and 1 (float64 helps)."
        )
