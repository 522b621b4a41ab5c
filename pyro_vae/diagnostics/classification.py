r"""Accuracy and calibration of class probabilities, of q(y | x) or of p(y | x), against labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.flagged import format_nats
from pyro_vae.common.given import check_whole, whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import seeded
from pyro_vae.errors import DataError, ShapeError

MISSING = -1  # a label that is not there
REPLICATIONS = 200  # sets of labels drawn from the probabilities themselves


@dataclass(frozen=True, eq=False)
class Classification:
    r"""How well class probabilities fit labels: made by :func:`classification`.

    Attributes:
        probs: ``(N, C)``, of the rows that have a label.
        labels: ``(N,)``.
        bins: M, of equal width, that confidences (the largest probability of a row) are put in.
        calibrated: what the ECE would be on these rows if labels were drawn from the probabilities, ``(R,)``: above 0, by
            chance.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])
        >>> found = classification(probs, torch.tensor([0, 1, 1, -1]))           # the last row has no label
        >>> len(found), found.right.tolist(), found.log_score.exp().tolist()
        (3, [True, True, False], [0.75, 0.75, 0.5])
        >>> round(found.ece, 4), found.ece <= found.ece_limit                    # (2 · 0.25 + 0.5) / 3: by chance, of 3 rows
        (0.3333, True)
    """

    probs: Tensor
    labels: Tensor
    bins: int
    calibrated: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Tensor:
        """Whether the most probable class is the label, ``(N,)``."""
        return self.probs.argmax(-1) == self.labels

    @property
    def accuracy(self) -> float:
        """The share of rows that are right."""
        return self.right.double().mean().item()

    @property
    def accuracy_se(self) -> float:
        """Standard error of the accuracy over rows: binomial, √(p (1 − p) / N).

        Where all rows are right, or none, p is (right + 1) / (N + 2), by Laplace's rule of succession: N rows without an error
        leave one in some N possible, and 0 would say that there is none.
        """
        p, rows = self.accuracy, len(self)
        if p in (0.0, 1.0):
            p = (p * rows + 1) / (rows + 2)
        return float((p * (1 - p) / rows) ** 0.5)

    @property
    def log_score(self) -> Tensor:
        """log p(label), nats, ``(N,)``."""
        return self.probs.gather(-1, self.labels[:, None])[:, 0].log()

    @property
    def ece(self) -> float:
        """Expected calibration error Σ_m n_m / N |accuracy_m − confidence_m|, over the bins."""
        return ece_of(self.probs.amax(-1), self.right, self.bins)

    @property
    def ece_limit(self) -> float:
        """95 % of calibrated probabilities have an ECE below this on these rows."""
        return self.calibrated.quantile(0.95).item()

    def reliability(self) -> dict[str, list[float]]:
        """Count, mean confidence and accuracy of each bin that has rows, for a reliability picture."""
        confidence, which = self.probs.amax(-1), bin_of(self.probs.amax(-1), self.bins)
        filled = which.unique()
        members = [which == m for m in filled]
        return {
            "count": [int(member.sum()) for member in members],
            "confidence": [confidence[member].mean().item() for member in members],
            "accuracy": [self.right[member].double().mean().item() for member in members],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON and for :func:`~pyro_vae.plots.reliability.reliability_diagram`."""
        score = self.log_score
        return {
            **{name: getattr(self, name) for name in ("accuracy", "accuracy_se", "ece", "ece_limit", "bins")},
            "ece_if_calibrated": self.calibrated.mean().item(),
            "log_score": score.mean().item(),
            "log_score_se": (score.std() / len(score) ** 0.5).item() if len(score) > 1 else None,
            "rows": len(self),
            "classes": self.probs.shape[1],
            "reliability": self.reliability(),
        }

    def plot(self) -> Any:
        """Plot accuracy against confidence (a matplotlib figure)."""
        from pyro_vae.plots.reliability import reliability_diagram

        return reliability_diagram({"rows": self.to_dict()})

    def __str__(self) -> str:
        d = self.to_dict()
        verdict = "no more than chance" if self.ece <= self.ece_limit else "more than chance"
        error = format_nats(d["log_score_se"])
        return (
            f"error {1 - self.accuracy:.2%} ± {self.accuracy_se:.2%} | log score {d['log_score']:.3f} ± {error} nats | "
            f"ECE {self.ece:.4f} ({d['ece_if_calibrated']:.4f} if calibrated, {self.ece_limit:.4f} in 1 of 20: {verdict}) | "
            f"{len(self)} labelled rows"
        )

    __repr__ = __str__


@suggest_keywords
def classification(probs: Tensor, labels: Any, bins: int = 15, seed: int = 0) -> Classification:
    r"""Accuracy, log score and expected calibration error (ECE) of class probabilities ``(N, C)`` against labels ``(N,)``.

    ECE = Σ_m n_m / N |accuracy_m − confidence_m| over M bins of the confidence max_c p(c | x). It is above 0 for calibrated
    probabilities too, by chance: what it would be is simulated, with labels drawn from the probabilities.

    Args:
        probs: p(c | x_n), rows that sum to 1.
        labels: whole numbers from 0 to C − 1; −1 where there is none: such rows are left out.
        bins: M, of equal width.
        seed: of the labels that are drawn.

    Raises:
        ShapeError: another number of labels than rows.
        DataError: labels that are no class, by row; no labels at all; rows that are no probabilities.

    References:
        On Calibration of Modern Neural Networks (Guo, Pleiss, Sun & Weinberger, 2017), https://arxiv.org/abs/1706.04599

    Example:
        >>> from pyro_vae import classification
        >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> found = classification(probs, torch.tensor([0, 1, 1]))
        >>> round(found.accuracy, 3), round(found.ece, 3), found.reliability()["count"]
        (0.667, 0.3, [1, 1, 1])
    """
    check_whole(seed=seed)
    bins = whole("bins", bins, 1)
    probs, labels = probs.detach().double().cpu(), torch.as_tensor(labels).detach().cpu()
    labels = checked_labels(probs, labels)
    known = labels != MISSING
    probs, labels = probs[known], labels[known]
    with seeded(seed):
        drawn = torch.multinomial(probs, REPLICATIONS, replacement=True).T  # (R, N)
    confidence, best = probs.max(-1)
    calibrated = torch.tensor([ece_of(confidence, best == y, bins) for y in drawn], dtype=torch.float64)
    return Classification(probs, labels, bins, calibrated)


def checked_labels(probs: Tensor, labels: Tensor) -> Tensor:
    """Return labels as whole numbers; refuse what is no class, and probabilities that are none."""
    if probs.dim() != 2 or labels.shape != probs.shape[:1]:
        raise ShapeError(
            f"probabilities of shape {tuple(probs.shape)} and labels of shape {tuple(labels.shape)}: wanted (N, C) and (N,)"
        )
    if (bad := ~((probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() < 1e-3))).any():
        raise DataError(f"rows {first(bad)} of the probabilities do not sum to 1: pass p(y | x), after a softmax")
    wrong = (labels != labels.round()) | (labels < MISSING) | (labels >= probs.shape[1])
    if wrong.any():
        raise DataError(
            f"labels of rows {first(wrong)} are no class: {labels[wrong][0].item():g} came first, wanted whole numbers from 0 "
            f"to {probs.shape[1] - 1}, or {MISSING} where a label is missing"
        )
    if (labels == MISSING).all():
        raise DataError(
            f"all {len(labels)} labels are missing ({MISSING}): there is nothing to hold the classes against"
        )
    return labels.long()


def first(where: Tensor) -> list[int]:
    """Number the first rows where a mask holds."""
    return where.nonzero().flatten()[:5].tolist()


def bin_of(confidence: Tensor, bins: int) -> Tensor:
    """Number the bin of each confidence, ``(N,)``."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def ece_of(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Σ_m |Σ_{n in m} right_n − confidence_n| / N."""
    off = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of(confidence, bins), right.double() - confidence)
    return off.abs().sum().item() / len(confidence)
