"""Choose an exact log p(x): the first oracle that the program allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pyro_vae.errors import OverBudgetError, ProgramError
from pyro_vae.programs.sites import Program

from .enumeration import enumerate_latents
from .joint import probed_once
from .linear_gaussian import linear_gaussian
from .quadrature import quadrature
from .result import Exact


def exact(
    model: Program, guide: Program | None, x: Any, *context: Any, missing: bool = False, budget: float | None = None
) -> Exact:
    """log p(x_n) by the first oracle that applies, of linear_gaussian, enumerate_latents and quadrature.

    Args:
        model, guide, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`; no oracle needs the guide, it may be None.
        budget: of :func:`~pyro_vae.evidence.exact.quadrature.quadrature`.

    Raises:
        OverBudgetError: quadrature applies, but would take more than `budget`.
        ProgramError: none applies; why, oracle by oracle.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.4 * pyro.sample("z", dist.Bernoulli(0.25))), obs=x)
        >>> print(exact(model, None, torch.tensor([0.0, 1.0])))
        log p(x) -0.780 ± 0.0e+00 (enumeration) ... | 2 codes of 'z' | binary | ...
    """
    oracles: dict[str, Callable[..., Exact]] = {
        "linear_gaussian": linear_gaussian,
        "enumerate_latents": enumerate_latents,
        "quadrature": partial(quadrature, budget=budget),
    }
    why = []
    with probed_once():
        for name, oracle in oracles.items():
            try:
                return oracle(model, guide, x, *context, missing=missing)
            except OverBudgetError:
                raise
            except ProgramError as error:
                why.append(f"{name}: {error}")
    raise ProgramError("no oracle applies to this model. " + " | ".join(why))
