"""A straight line between two codes, and the model at its points."""

from __future__ import annotations

from collections.abc import Mapping

from pyro import poutine
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.at_means import AtMeans
from pyro_vae.programs.sites import Program, latent_sites, sample_sites
from pyro_vae.programs.unconditioned import Batch
from pyro_vae.programs.user_errors import MODEL, explained

from .decoding import Sites, check_decoder, decoded, sites_of_x, values_of


class Line:
    """The model at points between two codes, of the latents that move."""

    def __init__(
        self, model: Program, args: Batch, start: Mapping[str, Tensor], end: Mapping[str, Tensor], moving: list[str]
    ) -> None:
        self.model, self.args, self.start, self.end, self.moving = model, args, start, end, moving
        with explained(MODEL, *args):
            sites = latent_sites(sample_sites(poutine.trace(model).get_trace(*args)))
        if absent := [name for name in moving if name not in sites]:
            raise ProgramError(f"site {absent[0]!r} is in the guide but is no latent of the model: nothing decodes it")
        self.support = {name: sites[name]["fn"].support for name in moving}
        order = list(sites)
        first = min(order.index(name) for name in moving)
        self.fixed = {name: start[name] for name in order[:first] if name in start}
        codes = self.codes(0.0)
        sites = decoded(model, args, codes)
        check_decoder(model, args, codes, sites)
        self.data = sites_of_x(model, args, codes, sites)

    def codes(self, t: float) -> dict[str, Tensor]:
        """Return the values of latents at a point; those that follow from them are found at their means."""
        moved = {name: self.start[name] + t * (self.end[name] - self.start[name]) for name in self.moving}
        for name, value in moved.items():
            if not self.support[name].check(value).all():
                raise ProgramError(
                    f"site {name!r}: the line between the two codes leaves what the latent can be ({self.support[name]}), at "
                    f"t = {t:.2g}, where the model says nothing of x. Interpolate a latent of real numbers: site=..."
                )
        known = {**self.fixed, **moved}
        program = poutine.condition(self.model, data=known)
        with AtMeans(MODEL), explained(MODEL, *self.args):
            sites = sample_sites(poutine.trace(program).get_trace(*self.args))
        return {**known, **values_of(latent_sites(sites))}

    def at(self, t: float) -> Sites:
        """Return the observed sites of x at a point."""
        sites = decoded(self.model, self.args, self.codes(t))
        return {name: sites[name] for name in self.data}
