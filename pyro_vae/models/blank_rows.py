"""A model run on rows that hold nothing: what it draws is its own."""

from __future__ import annotations

import torch

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.data_set import WholeDataSet
from pyro_vae.programs.determinism import first_other
from pyro_vae.programs.pair import like_parameters
from pyro_vae.programs.shared_sites import shared_sites
from pyro_vae.programs.simulate import draw
from pyro_vae.programs.sites import Program
from pyro_vae.programs.unconditioned import Batch, Unconditioned, run_unconditioned

# of rows that a model is run on, to see whether it takes more of x than how many rows it has
EVERY_SHAPE = ((1,), (2, 3))


def run_on_any(model: Program, c: Batch, num_samples: int, seed: int) -> Unconditioned:
    """Run a model on rows of any shape and values: it takes no more of x than how many rows there are.

    Raises:
        UsageError: it takes more.
    """
    like = like_parameters(model)
    zero = torch.zeros(()) if like is None else like.detach().new_zeros(())
    blank = [zero.new_full((num_samples, *shape), float(i)) for i, shape in enumerate(EVERY_SHAPE)]
    why = ("this model takes more of x than how many rows it has. Say what its rows are like: "
           f"sample(model, {num_samples}, like=x), x with a row at least")  # fmt: skip
    runs = []
    for rows in blank:
        try:
            runs.append(run_unconditioned(model, (rows, *c), seed))
        except ProgramError:
            raise
        except Exception as error:
            raise UsageError(f"{why} ({type(error).__name__}: {error})") from error
    if (name := first_other(runs[0].values, runs[1].values)) is not None:
        raise UsageError(f"site {name!r}: {why}")
    return runs[0]


def run_on_rows(model: Program, args: Batch, seed: int) -> Unconditioned:
    """Run a model on rows whose values do not count: that they do not is checked, as for :func:`~pyro_vae.simulate`."""
    shared = shared_sites(model, model, lambda n: tuple(a[:n] for a in args), len(args[0]), len(args[0]))
    if shared:
        whole_set = WholeDataSet(model, model)
        draw(whole_set.model, tuple(a.unsqueeze(0) for a in args), seed)
    else:
        draw(model, args, seed)
    return run_unconditioned(model, args, seed)
