"""Draws given what a model observes beside x, such as labels: it stays what it is, where that is what conditioning is.

That is a context, or a value of the program's own: of ``poutine.condition``, or a tensor that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pyro_vae.errors import ProgramError
from pyro_vae.programs.determinism import density_at, identical
from pyro_vae.programs.sites import Program
from pyro_vae.programs.unconditioned import Batch, Unconditioned, run_unconditioned

from .decoding import other_rows

OTHER_DRAWS = 1  # the stream of a run that shows what a density depends on


def given_contexts(model: Program, run: Unconditioned, seed: int) -> Unconditioned:
    """Run a model again with what is not x observed, of which a first `run` drew other values; that run, if there is none.

    Drawing forward with an observation left in place is drawing given it where its density depends on nothing that is drawn
    before: labels y ~ p(y) of p(y) p(z) p(x | z, y).

    Raises:
        ProgramError: such a value that is observed given latents, whose draws given it are not had by running forward.
    """
    kept = sites_of_contexts(model, run, seed)
    if not kept:
        return run
    given, other = (run_unconditioned(model, run.args, seed, *more, kept=kept) for more in ((), (OTHER_DRAWS,)))
    for name in kept:
        value = given.sites[name]["value"]
        if not identical(*(density_at(r.sites[name]["fn"], value) for r in (given, other))):
            if len(run.args) == 1:
                raise ProgramError(
                    f"site {name!r} observes the same whatever x is (poutine.condition, a tensor that the program holds), "
                    "given what is drawn before it: draws given it are of a posterior, and not had by running the model. Leave "
                    "the condition off for draws of all sites; observe x as it is passed, obs=x, if it is the data."
                )
            raise ProgramError(
                f"site {name!r} observes a context given latents: draws given it are of their posterior, and not had by "
                "running the model. For draws of all sites leave the context out, or fill it with NaN where the model wants "
                "one; for draws given it, of a model whose sites skip NaN: impute(vae, torch.full_like(x, torch.nan), context)."
            )
    return given


def sites_of_contexts(model: Program, run: Unconditioned, seed: int) -> list[str]:
    """List the sites that observe the same whatever x is, something at least of which is not NaN."""
    same = {name: site["infer"]["obs"] for name, site in run.observed.items()}
    same = {name: value for name, value in same.items() if not value.isnan().all()}
    for other in runs_on_other_rows(lambda args: run_unconditioned(model, args, seed), run.args):
        seen = {name: site["infer"]["obs"] for name, site in other.observed.items()}
        same = {name: value for name, value in same.items() if name in seen and identical(value, seen[name])}
        if not same:
            break
    return list(same)


def runs_on_other_rows(run: Callable[[Batch], Unconditioned], args: Batch) -> Iterator[Unconditioned]:
    """Run a model on other values of x, where it runs on them."""
    noise = torch.Generator().manual_seed(OTHER_DRAWS)
    # any numbers, too: no threshold that x is compared with hides it then
    numbers = (4 * torch.randn(args[0].shape, generator=noise)).to(args[0])
    for rows in (*other_rows(args), (numbers, *args[1:])):
        if not identical(rows[0], args[0]):
            try:
                yield run(rows)
            except Exception:  # no data of the model: a table that it looks up, say
                continue
