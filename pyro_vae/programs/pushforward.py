r"""Guides of auxiliary sites: u ~ q(u | x), then z = T(u) as a Delta with a log_density, is one draw z ~ T_* q(u | x).

Pyro's AutoNormal and EasyGuide are written so. Pyro's ELBO adds log q(u) and the Delta's log_density, −log |∂T/∂u|; here the
two sites become one, whose density is that sum wherever z lies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ReshapeTransform, Transform

from pyro_vae.errors import NoWeightError, ProgramError

from .joint_pushforward import JointPushforward, joint_pushforward
from .one_measure import NO_DENSITY, declared_support
from .sites import Site, is_auxiliary, latent_sites
from .wrapped import bare, last

Sites = Mapping[str, Site]


@dataclass(frozen=True)
class Pushforward:
    """z = T(u), T from R^D onto a support: the latent site that an auxiliary site is made into.

    Example:
        >>> import pyro.distributions as dist
        >>> positive = Pushforward("z", constraints.positive, torch.Size([]), 0)
        >>> fn = positive.distribution(dist.Normal(0.0, 1.0))
        >>> bool(torch.isclose(fn.log_prob(torch.tensor(2.0)), dist.LogNormal(0.0, 1.0).log_prob(torch.tensor(2.0))))
        True
    """

    latent: str
    support: constraints.Constraint
    event_shape: torch.Size
    event_dim: int  # of z

    @property
    def identity(self) -> bool:
        """Return whether T changes no value."""
        return isinstance(bare(self.support), type(constraints.real))

    @property
    def latents(self) -> tuple[str, ...]:
        """The one latent."""
        return (self.latent,)

    @property
    def to_support(self) -> Transform:
        """T itself."""
        over = self.event_dim - self.support.event_dim
        return biject_to(constraints.independent(self.support, over) if over > 0 else self.support)

    def source(self, batch: torch.Size) -> torch.Size:
        """Return the shape of u that T takes, for a batch shape; bounds may be of each row."""
        return torch.Size(self.to_support.inverse_shape(batch + self.event_shape)[len(batch) :])

    def transforms(self, u: Any) -> list[Transform]:
        """T in steps, for u drawn from a distribution; the last value is kept, so that its inverse is exact."""
        to_support, source = self.to_support, self.source(u.batch_shape)
        reshaped = [ReshapeTransform(u.event_shape, source, cache_size=1)] if source != u.event_shape else []
        return [*reshaped, *([] if self.identity else [to_support.with_cache(1)])]

    def distribution(self, u: Any) -> Any:
        """T_* of the distribution of u; that itself where T changes nothing."""
        steps = self.transforms(u)
        return dist.TransformedDistribution(u, steps) if steps else u

    def draw(self, u: Any, sample: Callable[[str, Any], Tensor]) -> Tensor:
        """Draw z by ``sample(name, its distribution)``; return its u."""
        fn = self.distribution(u)
        return self.inverse(fn, sample(self.latent, fn))

    def densities(self, u: Any, value: Tensor) -> dict[str, Any]:
        """Return the distribution of z by its name; it is the same at each value of u."""
        return {self.latent: self.distribution(u)}

    def inverse(self, fn: Any, z: Tensor) -> Tensor:
        """u = T⁻¹(z), for the `fn` that :meth:`distribution` gave."""
        for step in reversed(fn.transforms if isinstance(fn, dist.TransformedDistribution) else []):
            z = step.inv(z)
        return z


Move = Pushforward | JointPushforward


def auxiliary_sites(p: Sites, q: Sites) -> dict[str, Site]:
    """Return the sites that the guide draws, marks auxiliary, and that are no latents of the model."""
    latent = latent_sites(p)
    return {name: site for name, site in latent_sites(q).items() if is_auxiliary(site) and name not in latent}


def find_pushforwards(p: Sites, q: Sites, whole: bool = False) -> dict[str, Move]:
    """Find the auxiliary sites whose latent is a bijection of them, by name; `whole` if no other rows will be asked for.

    Raises:
        NoWeightError: an auxiliary site without such a latent, or a latent that is a Delta of none.
    """
    auxiliary = auxiliary_sites(p, q)
    found: dict[str, Move] = {}
    points = {name: q[name] for name in latent_sites(p) if name in q and isinstance(q[name]["fn"], dist.Delta)}
    for u_name, u in auxiliary.items():
        for z_name, z in points.items():
            move = pushforward(p[z_name], whole)
            if move is not None and not same_name(found, z_name) and is_made_of(move, u, z):
                found[u_name] = move
                break
    order = list(q)
    for u_name, u in auxiliary.items():
        after = [n for n in order[order.index(u_name) + 1 :] if n in points and not same_name(found, n)]
        moves = [(pushforward(p[n], whole), q[n]) for n in after if u_name not in found]
        joint = joint_pushforward(u, [(move, z) for move, z in moves if move is not None])
        found |= {} if joint is None else {u_name: joint}
    for z_name, z in points.items():
        if auxiliary and not same_name(found, z_name):
            refuse(z_name, z, p[z_name], {n: s for n, s in auxiliary.items() if n not in found})
    if alone := [name for name in auxiliary if name not in found]:
        raise NoWeightError(
            f"site {alone[0]!r} of the guide is auxiliary: the model does not have it, and no latent is a Delta of it, so the "
            "weight p(x, z) / q(z | x) would need q(z | x) summed over it. Sample it in the model, too (a density of it given "
            "z and x; then without the mark), or draw the latents without it."
        )
    return found


def same_name(found: Mapping[str, Move], latent: str) -> bool:
    """Return whether a latent has its auxiliary site."""
    return any(latent in move.latents for move in found.values())


def pushforward(prior: Site, whole: bool) -> Pushforward | None:
    """Make the map onto the support of a prior; None where it is no continuous one, or another for each row."""
    fn, support = prior["fn"], declared_support(prior["fn"])
    if support is None or support.is_discrete:
        return None
    support = last(fn).support
    fixed = fixed_bounds(support) or (support if whole else None)
    return None if fixed is None else Pushforward(prior["name"], fixed, fn.event_shape, fn.event_dim)


def fixed_bounds(support: Any) -> Any:
    """Return a support with bounds that are the same for all rows, one number each; None where they are not."""
    if isinstance(support, constraints.independent):
        base = fixed_bounds(support.base_constraint)
        return base if base is None else constraints.independent(base, support.reinterpreted_batch_ndims)
    if hasattr(support, "cseq"):  # of parts side by side
        return None
    support = copy.copy(support)
    for name, bound in vars(support).items():
        if isinstance(bound, Tensor):
            if (bound != bound.flatten()[0]).any():
                return None
            setattr(support, name, bound.flatten()[0])
    return support


def is_made_of(move: Pushforward, u: Site, z: Site) -> bool:
    """Compare a Delta with T(u), and its log_density with −log |∂T/∂u|, at the draw."""
    if tuple(u["fn"].batch_shape) != tuple(z["fn"].batch_shape) or z["fn"].event_dim != move.event_dim:
        return False
    try:
        fn = move.distribution(u["fn"])
        value = u["value"]
        for step in getattr(fn, "transforms", []) if fn is not u["fn"] else []:
            value = step(value)
    except (NotImplementedError, RuntimeError, ValueError):  # no map, or u of another size
        return False
    if value.shape != z["value"].shape or not torch.allclose(value, z["value"], rtol=1e-4, atol=1e-6):
        return False
    total = u["fn"].log_prob(u["value"]) + z["fn"].log_density
    return bool(torch.allclose(fn.log_prob(value), total.expand(fn.batch_shape), rtol=1e-3, atol=1e-3))


def refuse(name: str, z: Site, prior: Site, auxiliary: Sites) -> NoReturn:
    """Say why a Delta has no density of a row: a vector for all rows, one for several latents, a point, no known map."""
    plates = [frame.name for frame in z["cond_indep_stack"] if frame.vectorized]
    for u_name, u in auxiliary.items():
        size = u["fn"].event_shape.numel()
        if plates and not any(frame.vectorized for frame in u["cond_indep_stack"]):
            raise ProgramError(  # log q of all rows at once is right: an ELBO of Pyro's may go on
                f"site {name!r}: the guide draws it out of {u_name!r}, one vector of {size} numbers for all rows, so "
                "log q(z | x) does not split into rows. Take a guide that keeps rows apart (AutoNormal(model) in place of "
                "AutoDiagonalNormal, AutoMultivariateNormal and their like), or an encoder."
            )
        if size > z["fn"].event_shape.numel():
            raise ProgramError(
                f"site {name!r}: the guide draws it out of {u_name!r}, a vector of {size} numbers for more than this latent, "
                "so it has no density of its own. Give each latent an auxiliary site of its own (one group each), or draw it "
                "by pyro.sample."
            )
    if not auxiliary:
        raise NoWeightError(f"site {name!r}: the guide draws it from a Delta, {NO_DENSITY['Delta']}")
    raise NoWeightError(
        f"site {name!r}: the guide draws it as a Delta beside the auxiliary {next(iter(auxiliary))!r}, and it is not "
        f"biject_to(support)(u) of it with log_density −log |∂z/∂u|, for one support of all rows (the prior is a "
        f"{type(last(prior['fn'])).__name__}). Draw the latent itself: pyro.sample({name!r}, Normal(...)), or a "
        "TransformedDistribution."
    )


class MoveLatents(Messenger):
    """Draw each latent from the density that its auxiliary site and its Delta make together; hide these two.

    What the guide observes, and ``pyro.factor``, is hidden from the handlers around it, but where `observed` is set.
    """

    def __init__(self, moves: Mapping[str, Move], observed: bool) -> None:
        super().__init__()
        self.moves, self.observed = moves, observed
        self.drawn: dict[str, Tensor] = {}
        self.drawing = False

    def __enter__(self) -> Any:
        self.drawn = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if self.drawing or type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["is_observed"]:
            msg["stop"] = not self.observed
        elif name in self.moves:
            self.answer(msg, self.draw(self.moves[name], msg["fn"]))
        elif name in self.drawn:
            self.answer(msg, self.drawn.pop(name))

    def draw(self, move: Move, u: Any) -> Tensor:
        """Draw z under the handlers around, which may put another value in its place; return its u."""
        self.drawing = True
        try:
            return move.draw(u, self.sample)
        finally:
            self.drawing = False

    def sample(self, name: str, fn: Any) -> Tensor:
        """Draw one latent, for the Delta that comes later."""
        z: Tensor = pyro.sample(name, fn)
        self.drawn[name] = z
        return z

    def answer(self, msg: Any, value: Tensor) -> None:
        """Give a site a value, and hide it."""
        msg["value"], msg["done"], msg["stop"] = value, True, True
