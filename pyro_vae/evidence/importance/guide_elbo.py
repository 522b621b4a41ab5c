r"""The ELBO of the guide itself, E_q[log p(x, z) − log q(z | x)], where the particles were drawn from another proposal."""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_vae.common.random import stream
from pyro_vae.errors import ProgramError
from pyro_vae.programs.problem import Problem

from .accumulator import RowBlock
from .proposals import GUIDE
from .sampler import Sampler

DRAWS = 200  # of the guide a row; they are no part of log p̂
OWN = 0x656C626F  # of its stream: no particle is drawn from it


def add_guide_elbo(block: RowBlock, problem: Problem, sampler: Sampler) -> None:
    """Give a block of rows the ELBO of its guide, ``(2, N)``: means and errors; NaN where the guide's weights are no numbers.

    The draws come from a stream of the seed and the rows alone: the same numbers whatever was run before, and in every part.
    Nothing is done for particles of the guide, which are such draws themselves.
    """
    if sampler.proposal == GUIDE or block.guide_elbo is not None:
        return
    own = RowBlock(block.rows, DRAWS, pairs=block.pairs)
    try:
        apart = replace(sampler, proposal=GUIDE, seed=stream(sampler.seed, OWN), engine=None)
        apart.fill(own, problem, range(DRAWS))
    except (
        ProgramError
    ):  # a guide that no weight can be taken of has no ELBO; its mixture with the prior may have a log p̂
        block.guide_elbo = torch.full((2, len(block.rows)), torch.nan, dtype=torch.float64)
    else:
        sums = own.total()
        block.guide_elbo = torch.stack([sums.elbo, sums.elbo_se])
