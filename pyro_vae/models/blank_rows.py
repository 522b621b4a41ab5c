"""A model run on rows that hold nothing: what it draws is its own."""

from __future__ import annotations

import torch
from torch import Tensor

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
    why = ("this model takes more of x than how many rows it has. Say what its rows are like: "
           f"sample(model, {num_samples}, like=x), x with a row at least")  # fmt: skip
    runs = runs_on_blank(zero, model, c, num_samples, seed, why)
    elsewhere = {value.device for value in runs[0].values.values()} - {zero.device}
    if (
        like is None and elsewhere
    ):  # a function of tensors on a GPU, which draws there: from the stream of rows that are there
        runs = runs_on_blank(zero.to(elsewhere.pop()), model, c, num_samples, seed, why)
    if (name := first_other(runs[0].values, runs[1].values)) is not None:
        raise UsageError(f"site {name!r}: {why}")
    return runs[0]


def runs_on_blank(zero: Tensor, model: Program, c: Batch, num_samples: int, seed: int, why: str) -> list[Unconditioned]:
    """Run a model on rows of two shapes, of the dtype and where `zero` is; a UsageError that says `why` if it cannot."""
    runs = []
    for i, shape in enumerate(EVERY_SHAPE):
        try:
            runs.append(run_unconditioned(model, (zero.new_full((num_samples, *shape), float(i)), *c), seed))
        except ProgramError:
            raise
        except Exception as error:
            raise UsageError(f"{why} ({type(error).__name__}: {error})") from error
    return runs


def run_on_rows(model: Program, args: Batch, seed: int) -> Unconditioned:
    """Run a model on rows whose values do not count: that they do not is checked, as for :func:`~pyro_vae.simulate`."""
    shared = shared_sites(model, model, lambda n: tuple(a[:n] for a in args), len(args[0]), len(args[0]))
    if shared:
        whole_set = WholeDataSet(model, model)
        draw(whole_set.model, tuple(a.unsqueeze(0) for a in args), seed)
    else:
        draw(model, args, seed)
    return run_unconditioned(model, args, seed)
