"""What is measured and shown while training: the true ELBO, one line an epoch or a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.infer.programs import evaluation_mode, without_validation
from pyro_vae.infer.weights import find_plates, log_probs
from pyro_vae.progress import bar

from .step import Step

Record = dict[str, Any]


def true_elbo(step: Step, batch: tuple[Tensor, ...], chunk_size: int = 2000) -> Record:
    """ELBO, reconstruction E_q[log p(x | z)] and KL in nats per datum, one particle a row, whatever the objective is.

    Pairs that have no log weight for each row (enumerated sites) get the ELBO of Pyro's own estimator, without terms.
    """
    with evaluation_mode(step.model, step.guide), without_validation():
        chunks = [tuple(a[i : i + chunk_size] for a in batch) for i in range(0, len(batch[0]), chunk_size)]
        try:
            plates = find_plates(step.model, step.guide, *(a[:1] for a in batch))
        except ProgramError:
            elbo = sum(-pyro_elbo(step).loss(step.model, step.guide, *chunk) for chunk in chunks)
            return {"elbo": elbo / len(batch[0]), "reconstruction": None, "kl": None}
        terms = [log_probs(step.model, step.guide, *chunk, plates=plates) for chunk in chunks]
        reconstruction, kl = (sum(getattr(t, f).sum().item() for t in terms) for f in ("reconstruction", "kl"))
    rows = len(batch[0])
    return {"elbo": (reconstruction - kl) / rows, "reconstruction": reconstruction / rows, "kl": kl / rows}


def row_elbo(step: Step, batch: tuple[Tensor, ...]) -> Tensor | None:
    """One draw of each row's ELBO, or None where the pair has no log weight for each row."""
    try:
        with evaluation_mode(step.model, step.guide), without_validation():
            return log_probs(step.model, step.guide, *batch).log_w.mean(0)
    except (ProgramError, ValueError):  # a ValueError is torch's, on a covariance of NaN
        return None


def pyro_elbo(step: Step) -> Any:
    """The trained objective if its loss is the ELBO; Trace_ELBO otherwise."""
    is_elbo = isinstance(step.objective, (TraceEnum_ELBO, TraceGraph_ELBO)) or type(step.objective) is Trace_ELBO
    return step.objective if is_elbo else Trace_ELBO()


class Reporter:
    """Called with each epoch's record: asks `on_epoch` for more, then shows it."""

    def __init__(self, epochs: int, verbose: bool, on_epoch: Callable[[Record], Record | None] | None) -> None:
        self.epochs, self.on_epoch = epochs, on_epoch
        self.bar = bar(verbose)
        self.lines = verbose and not self.bar.console.is_terminal

    def __enter__(self) -> Reporter:
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.epochs)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, record: Record) -> None:
        record |= (self.on_epoch and self.on_epoch(record)) or {}
        if self.lines:
            print(f"epoch {record['epoch']}/{self.epochs}  {say(record)}", file=self.bar.console.file, flush=True)
        self.bar.update(self.task, advance=1, description=say(record))


def say(record: Record) -> str:
    """The record in a line."""
    terms = "" if record["kl"] is None else f" = {record['reconstruction']:.3f} - KL {record['kl']:.3f}"
    return f"loss {record['loss']:.3f}  ELBO {record['elbo']:.3f}{terms}"
