"""A run's log p(x) between two ends: annealing beside importance sampling, and reverse annealing above them."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.given import check_whole
from pyro_vae.common.spread import sharing
from pyro_vae.evidence.annealing.bracket import Bracket, bracket
from pyro_vae.plots.evidence import bracket_ends

from . import folder
from .current_run import as_it_is_now, check_same_weights
from .evaluate_run import placed, record_evaluation
from .evaluation_options import CHUNK, EvaluationOptions
from .load import load_run, open_data
from .rows_to_score import rows_of
from .run_figures import draw_all
from .several_processes import agree_on_scoring, done_by_rank_0, led

TEMPERATURES, CHAINS, LEAPFROGS = 60, 16, 3  # a few seconds on a small model


def bracket_run(
    path: Path | str,
    *,
    rows: int | None = None,
    num_temperatures: int = TEMPERATURES,
    num_chains: int = CHAINS,
    chunk_size: int = CHUNK,
    data_dir: Path | None = None,
    device: str = "cpu",
) -> tuple[dict[str, Any], Bracket]:
    """Bracket log p(x) of a run's test rows; its annealed lower end becomes an evaluation of the folder, with a picture.

    Args:
        path: the run's folder.
        rows: of the test split, the first; all by default.
        num_temperatures, num_chains, chunk_size: of annealing, as :func:`~pyro_vae.bracket` has them.
        data_dir: where the data is, if it has moved.
        device: where to compute.

    Returns:
        What ``evidence-test-annealing.json`` holds, and the :class:`~pyro_vae.evidence.annealing.bracket.Bracket`.

    Raises:
        RunFolderError: the run or its data are not what they were, or another run has taken its place meanwhile.
        ProgramError: latents that cannot be annealed.
        UsageError: rows, temperatures, chains or pairs that are no whole numbers.
    """
    check_whole(rows=rows, num_temperatures=num_temperatures, num_chains=num_chains, chunk_size=chunk_size)
    run = load_run(path, device=device)
    data, start = open_data(run, data_dir), time.perf_counter()
    part = rows_of(data, "test", rows)
    options = EvaluationOptions(
        method="annealing", rows=rows, num_chains=num_chains, num_temperatures=num_temperatures, chunk_size=chunk_size
    )
    with led(run.path, lambda: folder.check_own(run.path), folder.EVALUATION_LOCK, wait=True):
        run = as_it_is_now(run)
        agree_on_scoring(tensor_digest(run.vae.state_dict()), data, asdict(options))
        ends = bracket(
            run.vae.model, run.vae.guide, *run.rows(part),
            num_temperatures=num_temperatures, num_chains=num_chains, leapfrog_steps=LEAPFROGS, chunk_size=chunk_size,
        )  # fmt: skip

        def record() -> dict[str, Any]:
            """Write what came of it."""
            check_same_weights(run, tensor_digest(run.vae.state_dict()))
            about = {"chunk_size": chunk_size}  # which the noise depends on
            annealed = record_evaluation(run, data, options, placed(ends.annealing, part), time.perf_counter() - start)
            folder.write_json(run.path / "bracket.json", ends.summary() | about | {"weights": annealed["weights"]})
            return annealed

        annealed = done_by_rank_0(record, "the writing of the bracket")
    if sharing().leads:
        draw_all(run.path, {"bracket": lambda: bracket_ends({"test rows": ends.summary()})})
    return annealed, ends
