"""Choose an exact log p(x): the first oracle that the program allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_vae.errors import ProgramError
from pyro_vae.programs.sites import Program

from .enumeration import enumerate_latents
from .joint import probed_once
from .linear_gaussian import linear_gaussian
from .quadrature import quadrature
from .result import Exact


def exact(model: Program, guide: Program | None, x: Any, *context: Any, missing: bool = False) -> Exact:
    """log p(x_n) by the first oracle that applies, of linear_gaussian, enumerate_latents and quadrature.

    Args:
        model, guide, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`; no oracle needs the guide, it may be None.

    Raises:
        ProgramError: none applies; why, oracle by oracle.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.4 * pyro.sample("z", dist.Bernoulli(0.25))), obs=x)
        >>> print(exact(model, None, torch.tensor([0.0, 1.0])))
        log p(x) -0.780 ± 0.0e+00 (enumeration) ... | 2 codes of 'z' | binary | ...
    """
    oracles: tuple[Callable[..., Exact], ...] = (linear_gaussian, enumerate_latents, quadrature)
    why = []
    with probed_once():
        for oracle in oracles:
            try:
                return oracle(model, guide, x, *context, missing=missing)
            except ProgramError as error:
                why.append(f"{oracle.__name__}: {error}")
    raise ProgramError("no oracle applies to this model. " + " | ".join(why))
