"""A training in TensorBoard: its numbers by epoch, its options, log p(x) with both errors, its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_both_errors, is_loose
from pyro_vae.common.given import described
from pyro_vae.common.optional import imported
from pyro_vae.common.plain_text import is_utf8, plain
from pyro_vae.common.safe_read import MIB, read_bytes
from pyro_vae.errors import UsageError

EXTRA = "tensorboard"
BINS = 30  # of a histogram; a rule of numpy's asks for millions where most units are closed and a few are not
ERRORS = ("log_px_mc_se", "log_px_data_se")
PNG, IHDR = b"\x89PNG\r\n\x1a\n", b"IHDR"


@dataclass(eq=False)
class TensorBoardTracker:
    """Write a training for TensorBoard (extra `tensorboard`): ``train_run(..., trackers=[TensorBoardTracker("boards/a")])``.

    Each number of an epoch's record is a scalar by its name there, each list of numbers a histogram. log p(x) of validation
    rows is ``validation/log_px``, beside it ``validation/log_px_mc_se``, ``validation/log_px_data_se`` and
    ``validation/rows_flagged``; or ``validation/log_px_bound``, without errors, where more than a tenth of the rows is
    flagged. At the end the same of the test rows, ``test/...``, as a text, too, and the pictures. Numbers that are not finite
    are left out.

    Args:
        folder: where the event file goes. A folder for each run, as TensorBoard has it: ``tensorboard --logdir boards``.

    Raises:
        MissingExtraError: tensorboard is not installed.
        UsageError: `folder` is no path, or its name is no UTF-8, which TensorBoard wants.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:            # with fit: fit(..., on_epoch=tracker.epoch)
        ...     tracker = TensorBoardTracker(folder)
        ...     tracker.begin({"latent_dim": 2})
        ...     tracker.epoch({"epoch": 1, "elbo": -90.0, "kl_per_unit": [1.5, 0.0]})
        ...     tracker.end({}, [])
        ...     print([path.name.split(".")[0] for path in Path(folder).iterdir()])
        ['events']
    """

    folder: Path | str
    writer: Any = field(default=None, init=False, repr=False)
    last: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        imported("tensorboard", EXTRA, "TensorBoardTracker")
        if not isinstance(self.folder, str | Path) or not str(self.folder):
            raise UsageError(f"folder is where the event file goes, such as 'boards/a'; got {described(self.folder)}")
        if not is_utf8(str(Path(self.folder).absolute())):
            raise UsageError(f"{self.folder} is no UTF-8, which TensorBoard wants of a folder's name: name another")

    def begin(self, config: Mapping[str, Any]) -> None:
        """Open the event file, and write the options into it."""
        self.writer = tensorboard().FileWriter(str(self.folder))
        self.add_text("config", f"```json\n{plain(json.dumps(config, indent=2, default=str, ensure_ascii=False))}\n```")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of an epoch."""
        if self.writer is None:
            raise UsageError("the tracker has not begun, or has ended: call its begin(config) before epoch(record)")
        self.last = record["epoch"]
        for name, value in record.items():
            if name != "epoch" and isinstance(value, int | float):
                self.add_scalar(name, value)
            elif isinstance(value, list):
                self.add_histogram(name, value)
        if isinstance(evidence := record.get("evidence"), Mapping):
            self.add_evidence("validation", evidence)
        self.writer.flush()

    def end(self, evidence: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Write log p(x) and the pictures, if there are some, and close the file."""
        if self.writer is None:
            raise UsageError("the tracker has not begun, or has ended: call its begin(config) before end(...)")
        try:
            if evidence:
                split = (evidence.get("evaluation") or {}).get("split", "test")
                self.add_evidence(str(split), evidence)
                self.add_text("log p(x)", in_words(evidence))
            for figure in figures:
                self.add_picture(f"figures/{figure.stem}", read_bytes(figure, 64 * MIB))
        finally:
            self.writer.close()
            self.writer = None

    def add_scalar(self, tag: str, value: float) -> None:
        """Write a number, if it is finite."""
        if not isinstance(value, bool) and math.isfinite(value):
            self.write(tensorboard().summary.scalar(plain(tag), float(value)))

    def add_histogram(self, tag: str, values: Sequence[Any]) -> None:
        """Write a list of numbers, if it is one."""
        import numpy as np

        if values and all(type(v) in (int, float) and math.isfinite(v) for v in values):
            self.write(tensorboard().summary.histogram(plain(tag), np.asarray(values, dtype=float), BINS))

    def add_text(self, tag: str, text: str) -> None:
        """Write a text, which TensorBoard reads as Markdown."""
        self.write(tensorboard().summary.text(tag, text))

    def add_evidence(self, split: str, summary: Mapping[str, Any]) -> None:
        """Write log p(x) with its errors, or the bare bound, and how many rows are flagged."""
        for name, value in evidence_scalars(summary):
            self.add_scalar(f"{split}/{name}", value)

    def add_picture(self, tag: str, content: bytes) -> None:
        """Write a PNG as it is; nothing is decoded here but its size."""
        if (size := png_size(content)) is None:
            return
        proto = imported("tensorboard.compat.proto.summary_pb2", EXTRA, "TensorBoardTracker")
        picture = proto.Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=content)
        self.write(proto.Summary(value=[proto.Summary.Value(tag=plain(tag), image=picture)]))

    def write(self, summary: Any) -> None:
        """Write a summary at the last epoch."""
        self.writer.add_summary(summary, self.last)


def tensorboard() -> Any:
    """Import torch's half of TensorBoard."""
    imported("torch.utils.tensorboard.summary", EXTRA, "TensorBoardTracker")
    return imported("torch.utils.tensorboard", EXTRA, "TensorBoardTracker")


def evidence_scalars(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers that stand for log p(x): mean and both errors, or a bound alone; how many rows are flagged.

    Example:
        >>> dict(evidence_scalars({"log_px": -87.0, "log_px_mc_se": 0.01, "rows": 9, "rows_flagged": 0}))
        {'log_px': -87.0, 'log_px_mc_se': 0.01, 'rows_flagged': 0, 'rows': 9}
        >>> dict(evidence_scalars({"log_px": -87.0, "log_px_mc_se": 0.01, "rows": 9, "rows_flagged": 8}))
        {'log_px_bound': -87.0, 'rows_flagged': 8, 'rows': 9}
        >>> dict(evidence_scalars({"log_px": -87.0, "log_px_mc_se": 0.01, "rows": 9, "rows_flagged": 8, "how": "quadrature"}))
        {'log_px_not_believed': -87.0, 'rows_flagged': 8, 'rows': 9}
    """
    if is_loose(summary):  # an oracle errs to either side: no bound
        yield ("log_px_not_believed" if "how" in summary else "log_px_bound"), summary["log_px"]
    else:
        for name in ("log_px", *ERRORS):
            if summary.get(name) is not None:
                yield name, summary[name]
    for name in ("rows_flagged", "rows"):
        if name in summary:
            yield name, summary[name]


def in_words(summary: Mapping[str, Any]) -> str:
    """Format log p(x) as it is to be quoted.

    Example:
        >>> in_words({"log_px": -87.0, "log_px_mc_se": 0.01, "log_px_data_se": 0.75, "rows": 9, "rows_flagged": 0})
        '-87.000 ± 0.010 ± 0.750 nats a row (± Monte Carlo ± data); 0 of 9 rows flagged'
    """
    errors = "" if is_loose(summary) else " (± numerical ± data)" if "how" in summary else " (± Monte Carlo ± data)"
    flagged = (
        f"; {summary['rows_flagged']} of {counted(summary['rows'], 'row')} flagged" if "rows_flagged" in summary else ""
    )
    return f"{format_both_errors(summary)} nats a row{errors}{flagged}"


def png_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG, as its header says; None of anything else."""
    if not content.startswith(PNG) or content[12:16] != IHDR or len(content) < 24:
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
