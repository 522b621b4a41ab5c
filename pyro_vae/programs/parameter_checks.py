"""Invalid parameters refused before anything is drawn: of a pair on some rows, and of each site as it runs."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from .log_density import outside_support
from .pair import quiet
from .site_rows import frames_of, row_dim
from .sites import Program, has_density, trace_pair
from .valid_parameters import check_site_parameters


def check_pair_parameters(model: Program, guide: Program, *args: Tensor) -> None:
    """Refuse invalid parameters of either program by one run on some rows, before torch's validation does without a row."""
    with quiet(model, guide, seed=0, device=args[0].device):
        q, p = trace_pair(model, guide, *args)
        dims = [frame.dim for site in (q | p).values() for frame in frames_of(site).values() if frame.dim is not None]
        check_site_parameters(q, max(dims, default=-1), program="guide")
        if not any(outside_support(p[name]).any() for name in q if name in p):  # what comes of those counts for nothing
            check_site_parameters(p, max(dims, default=-1), program="model")


class ValidParameters(Messenger):
    """Messenger that refuses invalid parameters before a site is drawn: torch's samplers stop without naming it, or draw.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> with ValidParameters("model"), pyro.plate("data", 2):
        ...     pyro.sample("x", dist.Poisson(torch.tensor([1.0, -1.0]), validate_args=False))
        Traceback (most recent call last):
          ...
        pyro_vae.errors.ProgramError: site 'x' of the model: Poisson has rate -1 for rows [1]; wanted numbers from 0. Pass ...
    """

    def __init__(self, program: str = "", first: int = 0) -> None:
        super().__init__()
        self.program, self.first = program, first

    def _pyro_sample(self, msg: Any) -> None:
        if has_density(msg):
            check_site_parameters({msg["name"]: msg}, row_dim(msg) or -1, first=self.first, program=self.program)
