"""Hierarchies: a VAE of several stochastic layers, and the ways in which a guide goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.errors import UsageError
from pyro_vae.programs.parameters import register

from .standardize import give_units, is_standardized

Role = Callable[..., TorchDistributionMixin]


class Levels(FunctionParts):
    """A role for each level, by its site: ``z1`` is the one next to x, the last is the top."""

    def __init__(self, *roles: Role) -> None:
        super().__init__()
        self.sites = tuple(f"z{level}" for level in range(1, len(roles) + 1))
        for site, role in zip(self.sites, roles, strict=True):
            setattr(self, site, role)

    def __len__(self) -> int:
        return len(self.sites)

    def upwards(self) -> Iterator[tuple[str, Role]]:
        """Yield z1 … zL with their roles."""
        return ((site, getattr(self, site)) for site in self.sites)

    def downwards(self) -> Iterator[tuple[str, Role]]:
        """Yield zL … z1 with their roles."""
        return ((site, getattr(self, site)) for site in reversed(self.sites))


class BottomUp(Levels):
    r"""q(z_1 | x) q(z_2 | z_1) ⋯ q(z_L | z_{L−1}): each level reads the one below it alone, as in Burda et al.'s models.

    Args:
        *roles: from the bottom: ``q1(x, *c)``, then ``q2(z1, *c)``, …

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_vae import MLP, BottomUp, Conditional, normal
        >>> posterior = BottomUp(Conditional(MLP(9, 2 * 3), normal), Conditional(MLP(3, 2 * 2), normal))
        >>> posterior.sites
        ('z1', 'z2')
    """

    def forward(self, x: Tensor, *c: Tensor) -> Tensor:
        """z_1 ~ q(z_1 | x, c), z_l ~ q(z_l | z_{l−1}, c)."""
        below = x
        for site, q in self.upwards():
            below = pyro.sample(site, q(below, *c))
        return below


class SkipUp(Levels):
    r"""q(z_1 | x) q(z_2 | x, z_1) ⋯ q(z_L | x, z_1, …, z_{L−1}): bottom-up, with skip connections from x and all levels below.

    With them no level's posterior is held to what those below it passed on.

    Args:
        *roles: from the bottom: ``q1(x, *c)``, ``q2(x, z1, *c)``, ``q3(x, z1, z2, *c)``, …

    Example:
        >>> from pyro_vae import MLP, Conditional, SkipUp, normal
        >>> posterior = SkipUp(Conditional(MLP(9, 2 * 3), normal), Conditional(MLP(9 + 3, 2 * 2), normal))
        >>> posterior.sites
        ('z1', 'z2')
    """

    def forward(self, x: Tensor, *c: Tensor) -> Tensor:
        """z_l ~ q(z_l | x, z_1 … z_{l−1}, c)."""
        seen = [x]
        for site, q in self.upwards():
            seen.append(pyro.sample(site, q(*seen, *c)))
        return seen[-1]


class TopDown(Levels):
    r"""q(z_L | x) q(z_{L−1} | x, z_L) ⋯ q(z_1 | x, z_2): down as the model goes, each level reading x and the one above it.

    Given x and z_{l+1}, the posterior's z_l does not depend on the levels above these: such a guide can be exact.

    Args:
        *roles: from the bottom: ``q1(x, z2, *c)``, ``q2(x, z3, *c)``, …, the last one ``qL(x, *c)``.

    References:
        Ladder Variational Autoencoders (Sønderby, Raiko, Maaløe, Sønderby & Winther, 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> from pyro_vae import MLP, Conditional, TopDown, normal
        >>> posterior = TopDown(Conditional(MLP(9 + 2, 2 * 3), normal), Conditional(MLP(9, 2 * 2), normal))
        >>> posterior.sites
        ('z1', 'z2')
    """

    def forward(self, x: Tensor, *c: Tensor) -> Tensor:
        """z_L ~ q(z_L | x, c), z_l ~ q(z_l | x, z_{l+1}, c)."""
        above: tuple[Tensor, ...] = ()  # of the top level
        for site, q in self.downwards():
            above = (pyro.sample(site, q(x, *above, *c)),)
        return above[0]


class HierarchicalVAE(FunctionParts):
    r"""p(z_L) p(z_{L−1} | z_L) ⋯ p(z_1 | z_2) p(x | z_1), with amortized q(z_1, …, z_L | x); a context c conditions all.

    Args:
        priors: from the bottom: ``p1(z2, *c)`` is p(z_1 | z_2, c), …, and the last one, ``pL(*c)``, is p(z_L | c).
        likelihood: ``likelihood(z1, *c)`` is p(x | z_1, c).
        posterior: ``posterior(x, *c)`` draws every level at its site: :class:`BottomUp`, :class:`TopDown`, :class:`SkipUp`, or
            a function of one's own that calls ``pyro.sample("z2", …)``.

    Each prior and the likelihood is a callable that returns a distribution: a :class:`~pyro_vae.Conditional`, a module of
    one's own, or a lambda. Sites are ``"z1"`` (next to x) to ``"zL"``, and ``"x"``, the plate is ``"data"``; x has shape
    ``(N, *event)``. With one level this is a :class:`~pyro_vae.VAE` whose latent is called z1.

    Raises:
        UsageError: no priors, or a posterior of fewer or more levels than there are priors; the site is named.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed & Wierstra, 2014),
        https://arxiv.org/abs/1401.4082

    Example:
        >>> from pyro_vae import HierarchicalVAE, TopDown, StandardNormal, Conditional, MLP, bernoulli, log_likelihood, normal
        >>> vae = HierarchicalVAE(
        ...     priors=[Conditional(MLP(2, 2 * 3), normal), StandardNormal(2)],                          # p(z1 | z2), p(z2)
        ...     likelihood=Conditional(MLP(3, 9), bernoulli),                                            # p(x | z1)
        ...     posterior=TopDown(
        ...         Conditional(MLP(9 + 2, 2 * 3), normal),                                              # q(z1 | x, z2)
        ...         Conditional(MLP(9, 2 * 2), normal),                                                  # q(z2 | x)
        ...     ),
        ... )
        >>> log_likelihood(vae.model, vae.guide, torch.ones(5, 9), num_samples=10).log_px.shape
        torch.Size([5])
    """

    code_site, data_site = "z1", "x"  # what encode and sample are of, where no site is named

    def __init__(self, priors: list[Role] | tuple[Role, ...], likelihood: Role, posterior: Callable[..., Any]) -> None:
        super().__init__()
        self.priors, self.likelihood, self.posterior = Levels(*priors), likelihood, posterior
        check_levels(self.priors, posterior)

    def model(self, x: Tensor, *c: Tensor) -> Tensor:
        """z_L ~ p(z_L | c), z_l ~ p(z_l | z_{l+1}, c), x ~ p(x | z_1, c), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            above: tuple[Tensor, ...] = ()  # of the top level
            for site, p in self.priors.downwards():
                above = (pyro.sample(site, p(*above, *c)),)
            return pyro.sample("x", self.likelihood(*above, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> Any:
        """z_1, …, z_L ~ q(z_1, …, z_L | x, c), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            return self.posterior(x, *c)

    standardize = give_units
    standardized = property(is_standardized)


def check_levels(priors: Levels, posterior: Any) -> None:
    """Refuse a hierarchy without levels, and a posterior of other levels, by site; a function's are known once it is run."""
    if not priors.sites:
        raise UsageError("a hierarchy needs at least one prior: priors=[..., p(z1 | z2), ..., p(zL)], the top one last")
    if not isinstance(posterior, Levels):
        return
    for site in (*priors.sites, *posterior.sites):
        if site not in posterior.sites:
            raise UsageError(
                f"site {site!r}: the {type(posterior).__name__} posterior forgets this level: it has {len(posterior)} roles, "
                f"and there are {len(priors)} priors. Give it a role for each, from z1 up."
            )
        if site not in priors.sites:
            raise UsageError(
                f"site {site!r}: the {type(posterior).__name__} posterior has a level that no prior draws: it has "
                f"{len(posterior)} roles, and there are {len(priors)} priors. Leave it out, or give it a prior."
            )
