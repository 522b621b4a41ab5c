"""Where a run's gap comes from, log p(x) − ELBO: the family of q(z | x), or the network that amortises it."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.given import whole
from pyro_vae.diagnostics.inference_gaps import Gaps, gaps

from . import folder
from .evaluate_run import as_it_is_now, check_same_weights, rows_of
from .load import load_run, open_data
from .lock import locked
from .run_figures import draw_all

GAPS = "gaps.json"
ROWS, STEPS = 32, 300  # fitted each by itself: some seconds on a small model


def gaps_run(
    path: Path | str, *, rows: int = ROWS, steps: int = STEPS, data_dir: Path | None = None, device: str = "cpu"
) -> Gaps:
    """Split the gap of a run's first test rows; ``gaps.json`` and a picture keep what came of it, for the report.

    Args:
        path: the run's folder.
        rows: of the test split, the first; all, where there are fewer.
        steps: of fitting each row's own posterior, as :func:`~pyro_vae.gaps` has them.
        data_dir: where the data is, if it has moved.
        device: where to compute.

    Raises:
        RunFolderError: the run or its data are not what they were, or another run has taken its place meanwhile.
        ProgramError: a guide whose sites cannot be fitted row by row.
        UsageError: rows or steps that are no whole number above 0.
    """
    rows, steps = whole("rows", rows, 1), whole("steps", steps, 1)
    run = load_run(path, device=device)
    data = open_data(run, data_dir)
    part = rows_of(data, "test", min(rows, len(data.test)))
    folder.check_own(run.path)
    with locked(run.path, folder.EVALUATION_LOCK, True):
        run = as_it_is_now(run)
        weights = tensor_digest(run.vae.state_dict())
        found = gaps(run.vae.model, run.vae.guide, *run.rows(part), steps=steps)
        check_same_weights(run, weights)
        split = found.summary()
        about = {"rows": split["rows"], "rows_flagged": split["rows_flagged"], "weights": weights}
        folder.write_json(run.path / GAPS, about | {"of_gap": split})
    draw_all(run.path, {"gaps": found.plot})
    return found
