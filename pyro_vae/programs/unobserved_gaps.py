"""Missing values (NaN) of a context: a modality, which the model observes, may have some; a covariate, which it reads, not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_vae.data.arrays import format_rows
from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.errors import DataError

from .data_map import data_map_of_few
from .pair import quiet
from .sites import Program


def check_context_gaps(model: Program, args: Sequence[Tensor]) -> None:
    """Refuse missing values of a context that no site of the model observes.

    Where the model does not show what it observes (one that reads x, or observes a transformed one), all passes: what it
    makes of NaN meets the checks of parameters and draws.

    Args:
        model: a Pyro program.
        args: x and contexts.

    Raises:
        DataError: names the context and the rows.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x, c):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(c, 1.0), obs=x)
        >>> check_context_gaps(model, (torch.zeros(2), torch.tensor([0.0, torch.nan])))
        Traceback (most recent call last):
        pyro_vae.errors.DataError: x: context 0 has NaN or infinite values in 1 of 2 rows: 1 (counted from 0; ...
    """
    if not any(bool(a.isnan().any()) for a in args[1:] if isinstance(a, Tensor)):  # on disk they have none
        return
    if any_lazy(*args):
        raise DataError(
            "a context beside rows on disk has NaN: whether a site observes it is looked up in all rows at once. Fill its gaps "
            "in, or take rows into memory (x[:10_000])."
        )
    try:
        with quiet(model):
            known = data_map_of_few(model, tuple(args))
    except Exception:  # whatever it raises: who runs the model next shows it
        return
    if known.unmapped:
        return
    observed = known.times_observed(tuple(args))
    for i, (context, times) in enumerate(zip(args[1:], observed[1:], strict=True)):
        unknown = context.isnan() & (times == 0)
        if unknown.any():
            raise DataError(
                f"x: context {i} has NaN or infinite values in {format_rows(unknown)}, which no site of the model observes: it "
                "is read as what is known of a row. Drop those rows, or fill the gaps in; or have the model observe it, "
                'pyro.sample("y", likelihood(z), obs=y), as MultimodalVAE does.'
            )
