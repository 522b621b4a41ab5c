r"""log p(x), by the method that is asked for."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import KeywordError, OracleWarning, OverBudgetError, ProgramError, UsageError
from pyro_vae.evidence.exact.choose import exact
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.evidence.importance.accumulator import RowBlock
from pyro_vae.evidence.importance.estimator import importance
from pyro_vae.evidence.importance.noise import BLOCK
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.programs.sites import Program

PARTS = ("rows", "particles")  # of an evaluation by importance sampling, to be merged; an oracle has none
METHODS = ("importance", "exact", "auto")
BUDGET = 3e8  # (row, grid point) pairs of quadrature, after which "auto" samples: some minutes
DEFAULTS = {p.name: p.default for p in inspect.signature(importance).parameters.values()}
OnBlock = Callable[[Sequence[RowBlock], dict[str, Any]], None]


# fmt: off
@overload
def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: Literal["importance"] = ..., num_samples: int = ...,
    proposal: Proposal = ..., target_se: float | None = ..., max_samples: int = ..., rows: range | None = ...,
    particles: range | None = ..., resume: Evidence | None = ..., strict: bool = ..., seed: int = ..., noise: str = ...,
    chunk_size: int | None = ..., engine: str = ..., vectorize_particles: bool = ..., missing: bool = ...,
    device: torch.device | str | None = ..., on_block: OnBlock | None = ..., verbose: bool = ...,
) -> Evidence: ...


@overload
def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: Literal["exact"], missing: bool = ...
) -> Exact: ...


@overload
def log_likelihood(
    model: Program, guide: Program, x: Any, *context: Any, method: str, num_samples: int = ...,
    proposal: Proposal = ..., target_se: float | None = ..., max_samples: int = ..., rows: range | None = ...,
    particles: range | None = ..., resume: Evidence | None = ..., strict: bool = ..., seed: int = ..., noise: str = ...,
    chunk_size: int | None = ..., engine: str = ..., vectorize_particles: bool = ..., missing: bool = ...,
    device: torch.device | str | None = ..., on_block: OnBlock | None = ..., verbose: bool = ...,
) -> Evidence | Exact: ...
# fmt: on


@suggest_keywords
def log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    method: str = "importance",
    num_samples: int = 1000,
    proposal: Proposal = GUIDE,
    target_se: float | None = None,
    max_samples: int = 100_000,
    rows: range | None = None,
    particles: range | None = None,
    resume: Evidence | None = None,
    strict: bool = False,
    seed: int = 0,
    noise: str = BLOCK,
    chunk_size: int | None = None,
    engine: str = "auto",
    vectorize_particles: bool = True,
    missing: bool = False,
    device: torch.device | str | None = None,
    on_block: OnBlock | None = None,
    verbose: bool = True,
) -> Evidence | Exact:
    r"""log p(x_n) of each row, in nats: by importance sampling, or exactly where the model allows it.

    | method | is | options |
    |---|---|---|
    | ``"importance"`` | log 1/K Σ_k p(x, z_k) / q(z_k): a lower bound in expectation, with its errors and flags | below |
    | ``"exact"`` | the first oracle that applies: closed form, enumeration, quadrature; refused where none does | `missing` |
    | ``"auto"`` | exact, if an oracle applies, flags no row and is done in time; otherwise importance sampling | below |

    Where an oracle applies and ``"auto"`` samples all the same, an :class:`~pyro_vae.errors.OracleWarning` says why.

    Both :class:`~pyro_vae.Evidence` and, of an oracle, :class:`~pyro_vae.Exact` have ``log_px``, ``mc_se``, ``flagged``,
    ``method``, ``measure``, ``bits_per_dim()``, ``summary()``. Changes no parameter, no module's mode, no optimizer and no
    global random state.

    Processes that torchrun started share the work, and each returns all of the evidence, with the bits of one process: wherever
    a group of torch.distributed is open, all ranks call this together (or one does, within
    :func:`pyro_vae.common.spread.by_itself`).

    Args:
        model, guide: Pyro programs with one data plate, as for :func:`~pyro_vae.log_weights`.
        x: data ``(N, *event)``: a tensor, an array, anything :func:`~pyro_vae.data.as_rows` takes; a sparse matrix or an
            AnnData, made dense a part at a time.
        *context: what the programs take beside x, each with N rows.
        method: as above.
        missing: x may hold NaN, for what was not observed: the result is log p(x_obs).
        num_samples, proposal, target_se, max_samples, rows, particles, resume, strict, seed, noise, chunk_size, engine,
            vectorize_particles, device, on_block, verbose: of
            :func:`~pyro_vae.evidence.importance.estimator.importance`, which explains them;
            ``"exact"`` takes none of these.

    Raises:
        UsageError: no such method, an argument that the method does not take, or parts of what may be exact.
        ProgramError: ``"exact"``, and no oracle applies; or a pair that cannot be treated row by row.
        SupportError, ShapeError, DataError, Interrupted, UnreliableError, DeviceError: as
            :func:`~pyro_vae.evidence.importance.estimator.importance`.

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
    options: dict[str, Any] = {
        "num_samples": num_samples, "proposal": proposal, "target_se": target_se, "max_samples": max_samples, "rows": rows,
        "particles": particles, "resume": resume, "strict": strict, "seed": seed, "noise": noise,
        "chunk_size": chunk_size, "engine": engine,
        "vectorize_particles": vectorize_particles, "device": device, "on_block": on_block, "verbose": verbose,
    }  # fmt: skip
    given = [name for name, value in options.items() if value != DEFAULTS[name]]
    if method == "exact":
        if given:
            raise KeywordError(f"method='exact' takes no {given[0]}=, which is of importance sampling: leave it out")
        return exact(model, guide, x, *context, missing=missing)
    check_whole(num_samples=num_samples, max_samples=max_samples, seed=seed, chunk_size=chunk_size)
    if method == "auto":
        if parts := [name for name in PARTS if name in given]:
            raise UsageError(
                f"{parts[0]}= runs a part of the particles, and an oracle has none: give method='importance'"
            )
        if (oracle := by_oracle(model, guide, x, *context, missing=missing)) is not None:
            return oracle
    return importance(model, guide, x, *context, missing=missing, **options)


def by_oracle(model: Program, guide: Program, x: Any, *context: Any, missing: bool) -> Exact | None:
    """log p(x) by an oracle, if one applies, within a budget, and flags no row; an OracleWarning says what else came of it."""
    try:
        result = exact(model, guide, x, *context, missing=missing, budget=BUDGET)
    except OverBudgetError as error:
        why = str(error)
    except ProgramError:  # no oracle applies
        return None
    else:
        if not len(result.flagged):
            return result
        rows = ", ".join(map(str, result.flagged[:5].tolist())) + ", …" * (len(result.flagged) > 5)
        why = (
            f"{result.method} does not vouch for {len(result.flagged)} of {len(result)} rows ({rows}; largest "
            f"error {result.error.max():.1e} nats; method='exact' has the others)"
        )
    warnings.warn(f"method='auto' takes importance sampling: {why}", OracleWarning, stacklevel=4)
    return None
