"""One measure for p(z) and q(z | x): w = p(x, z) / q(z | x) is a weight only where both densities are against the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.distributions import constraints

from pyro_vae.errors import NoWeightError

from .wrapped import bare, last, parts

POINTS = ("Delta",)
ROUNDED = ("RelaxedBernoulliStraightThrough", "RelaxedOneHotCategoricalStraightThrough")
UNNORMALISED = ("Unit", "ImproperUniform")  # pyro.factor and its like
NO_DENSITY = {
    **dict.fromkeys(
        POINTS,
        "a single point, which has no density: a point estimate (MAP) is no posterior, and has no weight. Draw the site "
        "from a density (Normal, LogNormal; AutoNormal in place of AutoDelta), or compute it outside pyro.sample.",
    ),
    **dict.fromkeys(
        ROUNDED,
        "whose draws are rounded while its density is that of the relaxed value before rounding. To score, draw the site "
        "from Bernoulli or OneHotCategorical (one_hot_categorical_st has their probabilities, and a gradient).",
    ),
    **dict.fromkeys(UNNORMALISED, "which is no normalised density. Draw the site from one (Normal, Uniform)."),
}
KINDS: dict[type, str] = {  # densities against something else than length in all coordinates
    type(constraints.simplex): "vectors that sum to 1",
    type(constraints.sphere): "vectors of length 1",
    type(constraints.one_hot): "one-hot vectors",
    type(constraints.lower_cholesky): "lower triangular matrices",
    type(constraints.corr_cholesky): "Cholesky factors of correlations",
    type(constraints.positive_definite): "symmetric matrices",
    type(constraints.positive_semidefinite): "symmetric matrices",
    type(constraints.symmetric): "symmetric matrices",
}
CONTINUOUS, DISCRETE, TURN = "real numbers", "whole numbers", "angles"


def check_measure(p: Mapping[str, Any], q: Mapping[str, Any]) -> None:
    """Refuse, by site, latents whose prior and posterior are no densities against one measure.

    Raises:
        NoWeightError: a single point (Delta), rounded or unnormalised draws in either program; discrete against continuous
            values, one-hot against whole numbers, a sphere or simplex against all vectors.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> prior, point = {"z": {"fn": dist.Normal(0.0, 1.0)}}, {"z": {"fn": dist.Delta(torch.tensor(0.3))}}
        >>> check_measure(prior, point)
        Traceback (most recent call last):
          ...
        pyro_vae.errors.NoWeightError: site 'z': the guide draws it from a Delta, a single point, which has no density: ...
    """
    for name in [name for name in q if name in p]:
        for program, fn in (("guide", q[name]["fn"]), ("model", p[name]["fn"])):
            if kind := without_density(fn):
                raise NoWeightError(f"site {name!r}: the {program} draws it from a {kind}, {NO_DENSITY[kind]}")
        prior, posterior = latent_measure(p[name]["fn"]), latent_measure(q[name]["fn"])
        if None not in (prior, posterior) and not one_measure(p[name]["fn"], q[name]["fn"]):
            kinds = [type(last(side[name]["fn"])).__name__ for side in (p, q)]
            raise NoWeightError(
                f"site {name!r}: the prior ({kinds[0]}) has a density over {prior}, the posterior ({kinds[1]}) over "
                f"{posterior}: their ratio is no weight. Draw both from distributions over the same kind of values."
            )


def without_density(fn: Any) -> str | None:
    """Name what has no density in a distribution (a Delta, also as a component or a base), if anything."""
    classes = (cls.__name__ for part in parts(fn) for cls in type(part).__mro__)
    return next((name for name in classes if name in NO_DENSITY), None)


def one_measure(prior: Any, posterior: Any) -> bool:
    """Return whether two distributions are over the same values; an angle is a number within bounds."""
    kinds = {latent_measure(prior), latent_measure(posterior)}
    if kinds == {TURN, CONTINUOUS}:
        other = prior if latent_measure(posterior) == TURN else posterior
        return all(hasattr(declared_support(other), f"{end}_bound") for end in ("lower", "upper"))
    return len(kinds) == 1


def latent_measure(fn: Any) -> str | None:
    """Name the values that a density is over; None where the distribution does not tell.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> [latent_measure(d) for d in (dist.Gamma(1.0, 1.0), dist.Poisson(1.0), dist.Dirichlet(torch.ones(3)))]
        ['real numbers', 'whole numbers', 'vectors that sum to 1']
    """
    support = declared_support(fn)
    if support is None:
        return None
    if kind := next((words for cls, words in KINDS.items() if isinstance(support, cls)), None):
        return kind
    if type(last(fn)).__name__ == "VonMises":  # its support says any number, its density one turn
        return TURN
    return DISCRETE if support.is_discrete else CONTINUOUS


def declared_support(fn: Any) -> Any:
    """Return the support of a distribution, without the dimensions it is declared over; None if it declares none."""
    try:
        return bare(last(fn).support)
    except (NotImplementedError, AttributeError):  # a flow of zuko, a transform without a codomain
        return None
