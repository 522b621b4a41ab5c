"""How rows and particles are cut into blocks, each drawn from a stream of its own: anew, or as evidence so far has them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import UsageError
from pyro_vae.programs.problem import Problem

from .accumulator import CUDA_ROWS, PAIRS, ROWS, RowBlock
from .noise import ROW
from .result import Evidence
from .sampler import Sampler
from .weighing import CUDA_PAIRS


def open_row_blocks(
    problem: Problem, num_samples: int, rows: range | None, resume: Evidence | None, sampler: Sampler
) -> list[RowBlock]:
    """Open one for each block of rows, with the particles of `resume`; one of all, where the guide runs on all or none."""
    num_rows, size = len(problem), max(sampler.rows, problem.own_rows)
    rows = range(num_rows) if rows is None else rows
    if not rows or rows.step != 1 or rows.start % size or not (rows.stop % size == 0 or rows.stop == num_rows):
        raise UsageError(
            f"rows={rows} is no run of whole blocks: start at a multiple of {size}, stop at one or at {num_rows}"
        )
    if not 0 <= rows.start < rows.stop <= num_rows:
        raise UsageError(f"rows={rows}, but x has {num_rows} rows")
    parts = [range(start, min(start + size, num_rows)) for start in range(rows.start, rows.stop, size)]
    blocks = {part: sampler.open(part, num_samples) for part in parts}
    if resume is not None:
        resume.check_same(seed=sampler.seed, proposal=str(sampler.proposal), noise=sampler.by)
        for block in copy.deepcopy(resume.row_blocks):
            start, stop = block.rows.start, block.rows.stop
            if stop > num_rows or (len(block.rows) < size and stop != num_rows):
                raise UsageError(f"resume holds rows {start} to {stop - 1} of other data: x has {num_rows} rows")
            if block.rows in blocks:
                block.plan(num_samples)
            block.weight_sums.largest.trim()
            blocks[block.rows] = block
    return sorted(blocks.values(), key=lambda block: block.rows.start)


def identify(blocks: Sequence[RowBlock], ids: RowIds) -> None:
    """Say to each block which rows it is of; a UsageError if its particles are of others."""
    for block in blocks:
        block.identify(ids[block.rows.start : block.rows.stop])


def layout_on(device: torch.device, num_samples: int, resume: Evidence | None, noise: str) -> tuple[int, int]:
    """Return how many rows a block has, and how many pairs: as in `resume`, or as fit the device; or one row's pairs."""
    if resume is not None and resume.row_blocks:
        most = max(len(block.rows) for block in resume.row_blocks)
        return (ROWS if most <= ROWS else CUDA_ROWS), resume.row_blocks[0].pairs
    rows = CUDA_ROWS if device.type == "cuda" else ROWS
    if noise == ROW:
        return rows, even_particles(num_samples, ROWS)
    return rows, even_pairs(num_samples) if device.type == "cuda" else PAIRS


def even_pairs(num_samples: int) -> int:
    """Return how many pairs a block on a GPU has: K particles are as many whole blocks, where K can be divided so.

    A block that is not whole is weighed by the programs' own Python, which a GPU waits for.

    Example:
        >>> [even_pairs(k) // 256 for k in (1000, 5000, 10_000, 4099)]  # a prime has a short last block
        [1000, 1000, 1000, 1024]
    """
    return CUDA_ROWS * even_particles(num_samples, CUDA_ROWS)


def even_particles(num_samples: int, rows: int) -> int:
    """Return how many particles a block of so many rows has at most, for K to be whole blocks, where K can be divided so."""
    most = CUDA_PAIRS // rows
    fewest = -(-num_samples // most)
    even = (num_samples // n for n in range(fewest, 2 * fewest + 1) if num_samples % n == 0)
    return next(even, most)
