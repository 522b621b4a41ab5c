"""log p(x) of the rows of a run, by any method; what an interruption leaves stays in the folder, to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.errors import Interrupted, UsageError
from pyro_vae.evaluate.evidence import Evidence
from pyro_vae.evaluate.exact import Exact
from pyro_vae.evaluate.likelihood import log_likelihood
from pyro_vae.evaluate.proposals import GUIDE, Proposal, defensive, widened
from pyro_vae.evaluate.saving import load_evidence, save_evidence
from pyro_vae.models.vae import VAE

PROPOSALS: dict[str, Proposal] = {"guide": GUIDE, "defensive": defensive(), "widened": widened()}


def log_px_of(
    vae: VAE,
    x: Tensor,
    kept: Path,
    *,
    method: str = "importance",
    proposal: str = "guide",
    resume: bool = False,
    **options: Any,
) -> Evidence | Exact:
    """log p(x) of some rows of a saved run.

    Args:
        vae: of the run.
        x: the rows.
        kept: file for the sums of particles: written after an interruption, and always under `resume`.
        method: of :func:`~pyro_vae.log_likelihood`; an exact one takes none of what follows.
        proposal: a name of PROPOSALS.
        resume: go on from what `kept` holds, if it is there.
        **options: of importance sampling.

    Raises:
        UsageError: no such proposal; particles of another seed or proposal, or of other rows, in `kept`.
        DataError: `kept` is damaged.
        Interrupted: Ctrl-C.
    """
    if proposal not in PROPOSALS:
        raise UsageError(f"no proposal {proposal!r}; take one of {', '.join(PROPOSALS)}")
    if method == "exact":
        return log_likelihood(vae.model, vae.guide, x, method=method)
    begun = load_evidence(kept) if resume and kept.is_file() else None
    try:
        found = log_likelihood(
            vae.model, vae.guide, x, method=method, proposal=PROPOSALS[proposal], resume=begun, **options
        )
    except Interrupted as error:
        raise Interrupted(f"interrupted: {keep(error.result, kept)}", error.result) from None
    if resume:
        keep(found, kept)
    return found


def keep(found: Any, file: Path) -> str:
    """Puts particles into a file, if there are any; says so."""
    if not isinstance(found, Evidence):
        return "no row has particles, and nothing was kept"
    save_evidence(found, file)
    return f"the particles so far of rows 0 to {len(found) - 1} are in {file}; the same command with --resume goes on"
