"""Where a run's gap comes from, log p(x) − ELBO: the family of q(z | x), or the network that amortises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.given import whole
from pyro_vae.common.spread import sharing
from pyro_vae.diagnostics.inference_gaps import Gaps, gaps

from . import folder
from .current_run import as_it_is_now, check_same_weights
from .load import load_run, open_data
from .rows_to_score import rows_of
from .run_figures import draw_all
from .several_processes import agree_on_scoring, done_by_rank_0, led

GAPS = "gaps.json"
ROWS, STEPS = 32, 300  # fitted each by itself: some seconds on a small model
CHUNK = 4096  # (row, draw) pairs at a time: 64 rows


def gaps_run(
    path: Path | str,
    *,
    rows: int = ROWS,
    steps: int = STEPS,
    chunk_size: int = CHUNK,
    data_dir: Path | None = None,
    device: str = "cpu",
) -> Gaps:
    """Split the gap of a run's first test rows; ``gaps.json`` and a picture keep what came of it, for the report.

    Args:
        path: the run's folder.
        rows: of the test split, the first; all, where there are fewer.
        steps, chunk_size: of fitting each row's own posterior, as :func:`~pyro_vae.gaps` has them.
        data_dir: where the data is, if it has moved.
        device: where to compute.

    Raises:
        RunFolderError: the run or its data are not what they were, or another run has taken its place meanwhile.
        ProgramError: a guide whose sites cannot be fitted row by row.
        UsageError: rows, steps or pairs that are no whole number above 0.
    """
    rows, steps, chunk_size = whole("rows", rows, 1), whole("steps", steps, 1), whole("chunk_size", chunk_size, 1)
    run = load_run(path, device=device)
    data = open_data(run, data_dir)
    part = rows_of(data, "test", min(rows, len(data.test)))
    with led(run.path, lambda: folder.check_own(run.path), folder.EVALUATION_LOCK, wait=True):
        run = as_it_is_now(run)
        weights = tensor_digest(run.vae.state_dict())
        agree_on_scoring(weights, data, {"rows": rows, "steps": steps})
        found = gaps(run.vae.model, run.vae.guide, *run.rows(part), steps=steps, chunk_size=chunk_size)

        def record() -> dict[str, Any]:
            """Write what came of it."""
            check_same_weights(run, weights)
            split = found.summary()
            about = {"rows": split["rows"], "rows_flagged": split["rows_flagged"], "weights": weights, "of_gap": split}
            about["chunk_size"] = chunk_size  # which the noise depends on
            folder.write_json(run.path / GAPS, about)
            return about

        done_by_rank_0(record, "the writing of the gaps")
    if sharing().leads:
        draw_all(run.path, {"gaps": found.plot})
    return found
