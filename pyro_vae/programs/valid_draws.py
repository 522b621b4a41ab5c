"""Draws that mean something: invalid parameters are named before a site is drawn, and NaN that is drawn after."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae.errors import ProgramError

from .masks import kept_entries
from .parameter_checks import ValidParameters
from .site_rows import row_dim, rows_where
from .sites import has_density


class ValidDraws(ValidParameters):
    """Refuse, by site and row, invalid parameters, which samplers take, or stop at without a name; and NaN that they draw.

    Entries that a mask leaves out may be anything.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        if has_density(msg):
            refuse_nan_draws(msg["name"], msg)


def refuse_nan_draws(name: str, site: Any, first: int = 0) -> None:
    """Refuse, by site and row, NaN that a site drew where no mask leaves it out."""
    value, event_dim = site["value"], site["fn"].event_dim
    if value.is_floating_point() and value.isnan().any() and (bad := value.isnan() & kept_entries(site)).any():
        wrong = bad.flatten(-event_dim).any(-1) if event_dim else bad
        raise ProgramError(
            f"site {name!r} draws NaN {in_rows(site, wrong, first)}: the program puts out parameters "
            "that are not finite. Look at its weights, and at what it does to extreme values."
        )


def in_rows(site: Any, wrong: Tensor, first: int = 0) -> str:
    """Name up to five rows where a mask in the batch shape of a site holds."""
    dim = row_dim(site)
    if dim is None or wrong.dim() < -dim:
        return "for every row"
    return f"for rows {(first + rows_where(wrong, dim)[:5]).tolist()}"
