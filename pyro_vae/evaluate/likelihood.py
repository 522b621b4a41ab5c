r"""log p(x), by the method that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.infer.weights import Program

from .evidence import Evidence
from .exact import Exact
from .importance import importance
from .oracles import exact

PARTS = ("rows", "particles")  # of an evaluation by importance sampling, to be merged; an oracle has none


@overload
def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: Literal["importance"] = ..., **options: Any
) -> Evidence: ...


@overload
def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: Literal["exact"], **options: Any
) -> Exact: ...


@overload
def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: str, **options: Any
) -> Evidence | Exact: ...


def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: str = "importance", **options: Any
) -> Evidence | Exact:
    r"""log p(x_n) of each row, in nats: by importance sampling, or exactly where the model allows it.

    | method | is | options |
    |---|---|---|
    | ``"importance"`` | log 1/K Σ_k p(x, z_k) / q(z_k): a lower bound in expectation, with its errors and flags | below |
    | ``"exact"`` | the first oracle that applies: closed form, enumeration, quadrature; refused where none does | `missing` |
    | ``"auto"`` | exact, if an oracle applies and flags no row; otherwise importance sampling | below |

    What comes back says which it was (``.method``, and in print), and is read alike: ``log_px``, ``mc_se``, ``flagged``,
    ``measure``, ``bits_per_dim()``, ``summary()``. Changes no parameter, no module's mode, no optimizer and no global random
    state.

    Args:
        model: a Pyro program with one data plate, as for :func:`~pyro_vae.log_weights`.
        guide: its guide.
        x: data ``(N, *event)``: a tensor, an array, anything :func:`~pyro_vae.data.as_rows` takes.
        *context: what the programs take beside x, each with N rows.
        method: as above.
        **options: of :func:`~pyro_vae.evaluate.importance.importance`, which explains them: `num_samples` (1000), `proposal`
            (the guide), `target_se` and `max_samples`, `rows` and `particles` (parts, to be merged), `resume`, `strict`,
            `seed`, `chunk_size`, `missing`, `device`, `verbose`.

    Returns:
        An :class:`~pyro_vae.Evidence` or, of an oracle, an :class:`~pyro_vae.Exact`.

    Raises:
        UsageError: no such method, or parts of what may be exact.
        ProgramError: ``"exact"``, and no oracle applies; or a pair that cannot be treated row by row.
        SupportError, ShapeError, DataError, Interrupted, UnreliableError, DeviceError: as
            :func:`~pyro_vae.evaluate.importance.importance`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_vae import log_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(z), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.LogNormal(((x + 2) / 2).log(), 0.8))
        >>> x = torch.tensor([0.0, 3.0])
        >>> sampled, quadrature = (log_likelihood(model, guide, x, method=name) for name in ("importance", "auto"))
        >>> sampled.method, quadrature.method
        ('importance sampling', 'quadrature in 1 dimensions')
        >>> bool(((sampled.log_px - quadrature.log_px).abs() < 4 * sampled.mc_se).all())
        True
    """
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method](model, guide, x, *context, **options)


def auto(
    model: Program, guide: Program, x: Any, *context: Any, missing: bool = False, **options: Any
) -> Evidence | Exact:
    """By an oracle, if one applies and flags no row; otherwise by importance sampling."""
    if parts := [name for name in PARTS if options.get(name) is not None]:
        raise UsageError(f"{parts[0]}= runs a part of the particles, and an oracle has none: give method='importance'")
    try:
        found = exact(model, guide, x, *context, missing=missing)
    except ProgramError:
        found = None
    if found is None or len(found.flagged):
        return importance(model, guide, x, *context, missing=missing, **options)
    return found


METHODS: dict[str, Callable[..., Any]] = {"importance": importance, "exact": exact, "auto": auto}
