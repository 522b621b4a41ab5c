r"""Whose streams the particles are drawn from: those of blocks of rows, by their places, or each row's own, by its values.

Of blocks: rows 0 to 63 share a stream, so that a row's log p̂ is another number once rows are left out before it. Of rows:
the seed of a row's stream is made of a digest of its x and contexts, and each row is computed by itself, in the same shapes
whatever stands beside it: the same bits in any order, any subset and any batch. What that costs is one run of the programs for
each row in the place of one for each 64; rows of equal values have the same particles, whose noise no mean over them shrinks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.problem import Problem

BLOCK, ROW = "block", "row"
NOISES = (BLOCK, ROW)
OWN = 0x726F77  # of a row's stream: apart from those of blocks, which begin with the block's number


def check_noise(noise: str) -> None:
    """Refuse what is neither."""
    if noise not in NOISES:
        raise UsageError(f"noise={noise!r}: choose one of {', '.join(NOISES)}")


def row_keys(noise: str, ids: RowIds, problem: Problem) -> Tensor | None:
    """Return the digests that seed each row's stream, ``(N, 1)``, or ``(N, 2)`` beside contexts; None for blocks.

    Raises:
        ProgramError: a guide that has parameters for each row, and so runs on all of them or none.
    """
    if noise == BLOCK:
        return None
    if problem.own_rows:
        raise ProgramError(
            f"noise='row' scores each row by itself, and this guide has parameters for each of its {problem.own_rows} rows "
            "(an AutoGuide within the plate): it runs on all or none. Leave noise= out, or amortise: q(z | x) by a network."
        )
    return torch.stack([part for part in (ids.x, ids.context) if part is not None], 1)


def key_of(row: Tensor) -> tuple[int, ...]:
    """Name a row's stream by its digests, which are whole numbers with a sign.

    Example:
        >>> key_of(torch.tensor([3, -1])) == (OWN, 3, 2**64 - 1)
        True
    """
    return (OWN, *(digest % 2**64 for digest in row.tolist()))


def repeats_of(noise: str, ids: RowIds | None, rows: int) -> Tensor | None:
    """Count how many of the rows have the particles of each, ``(N,)``; NaN where they do not tell, None for blocks' noise."""
    if noise == BLOCK:
        return None
    if ids is None or ids.x is None:
        return torch.full((rows,), torch.nan, dtype=torch.float64)
    known = torch.stack([part for part in (ids.x, ids.context) if part is not None])
    _, group, counts = known.unique(dim=1, return_inverse=True, return_counts=True)
    return counts[group].double()


def by_itself(problem: Problem) -> Problem:
    """Copy the arguments of a row: kernels may sum in another order where an array starts elsewhere in memory."""
    return problem.over(*(a.clone() if isinstance(a, Tensor) else a for a in problem.args))
