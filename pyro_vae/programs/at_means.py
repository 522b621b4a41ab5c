"""The path of means: a program with each latent at its mean, given the means of those that it drew before."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import ProgramError

from .masks import kept_entries
from .sites import Program, Site, is_auxiliary, is_latent, sample_sites
from .unconditioned import is_computed
from .user_errors import explained

NEAR = 1e-4  # of the spread that an auxiliary draw gives a site: what is bent less counts as a straight line


class AtMeans(Messenger):
    """Put every latent site at its mean, in the place of a draw; auxiliary ones a step away from it, for a look at bends.

    Raises:
        ProgramError: a site without a mean in closed form, or one that is drawn given the mean of a discrete one, which is no
            value that it can have.
    """

    def __init__(self, program: str, step: float = 0.0) -> None:
        super().__init__()
        self.program, self.step = program, step

    def __enter__(self) -> Any:
        self.auxiliary: list[str] = []
        self.discrete: str | None = None
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or not is_latent(msg) or masked_out(msg):
            return
        if self.discrete is not None:
            refuse_discrete(self.discrete, msg["name"], self.program)
        mean = mean_of(msg["name"], msg["fn"], self.program)
        if is_auxiliary(msg):
            self.auxiliary.append(msg["name"])
            mean = mean + self.step * noise_like(mean, len(self.auxiliary))
        elif is_discrete(msg["fn"]):
            self.discrete = msg["name"]
        msg["value"], msg["done"] = mean, True


def mean_of(name: str, fn: Any, program: str) -> Tensor:
    """Return the mean of a site's distribution; a ProgramError by site where it has none in closed form."""
    try:
        mean: Tensor = fn.mean
    except NotImplementedError:
        mean = torch.tensor(torch.nan)
    if mean.isnan().all():
        raise ProgramError(
            f"site {name!r} of {program} is a {type(fn).__name__}, which has no mean in closed form. Take draws: "
            "num_samples=100, and their average where it means something."
        )
    return mean


def masked_out(msg: Any) -> bool:
    """Return whether a mask leaves out all of a site, so that its value says nothing."""
    if msg["mask"] is None:
        return False
    return not bool(torch.as_tensor(msg["mask"]).any())


def is_discrete(fn: Any) -> bool:
    """Return whether a distribution is over values that can be counted."""
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def noise_like(mean: Tensor, seed: int) -> Tensor:
    """Draw a fixed direction."""
    return torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)


def refuse_discrete(discrete: str, name: str, program: str) -> None:
    """Refuse a mean of a discrete site that another is given."""
    raise ProgramError(
        f"site {discrete!r} of {program} is discrete: its mean is no value that it can have, and {name!r} is drawn after it, "
        "given its value. Take draws: num_samples=100."
    )


def path_of_means(program: Program, args: tuple[Any, ...], role: str) -> dict[str, Site]:
    """Run a program at its means; return its sites.

    Raises:
        ProgramError: as :class:`AtMeans`; a site that is a bent function of an auxiliary draw (AutoNormal's of a positive
            latent), whose mean is not what that function makes of the draw's mean.
    """
    sites, auxiliary = run_at_means(program, args, role)
    if auxiliary:
        up, down = (run_at_means(program, args, role, step)[0] for step in (1.0, -1.0))
        for name in (name for name, site in sites.items() if is_latent(site) and not is_auxiliary(site)):
            middle, above, below = (some[name]["value"] for some in (sites, up, down))
            spread = (above - below).abs().max()
            if (above + below - 2 * middle).abs().max() > NEAR * spread:
                raise ProgramError(
                    f"site {name!r} of {role} is no straight function of {auxiliary[0]!r}, which is what is drawn (as "
                    "AutoNormal's of a constrained latent): its mean has no closed form. Take draws: num_samples=100."
                )
    return sites


def run_at_means(
    program: Program, args: tuple[Any, ...], role: str, step: float = 0.0
) -> tuple[dict[str, Site], list[str]]:
    """Run a program at its means once; return its sites, and which of them are auxiliary."""
    with AtMeans(role, step) as at, explained(role, *args):
        return sample_sites(poutine.trace(program).get_trace(*args)), at.auxiliary


def where_kept(site: Site) -> Tensor:
    """Return a site's value, NaN in the entries that a mask leaves out: these are no latents.

    What a program computes (a reparametrized latent) is a Delta that scores nothing, by a mask that leaves no value out.
    """
    fn = site["fn"]
    while is_computed(site) and isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    value, kept = site["value"], kept_entries({**site, "fn": fn})
    if kept.all():
        return value
    floats = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.where(kept, floats, torch.nan)
