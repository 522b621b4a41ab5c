"""Classes of rows: p(y), and labels that are there for some rows only."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.common.picklable import Picklable
from pyro_vae.errors import UsageError

MISSING = -1  # a label that is not there, as scikit-learn has it


class Classes(Picklable):
    r"""p(y = c) = π_c over whole numbers 0 .. C − 1: uniform, or with learned weights.

    Example:
        >>> Classes(4)().probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    logits: Tensor

    def __init__(self, num_classes: int, learned: bool = False) -> None:
        super().__init__()
        if num_classes < 1:
            raise UsageError(f"num_classes must be 1 or more, got {num_classes}")
        logits = torch.zeros(num_classes)
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def forward(self) -> dist.Categorical:
        return dist.Categorical(logits=self.logits)

    def extra_repr(self) -> str:
        return f"num_classes={self.logits.numel()}, learned={isinstance(self.logits, nn.Parameter)}"


def one_hot(y: Tensor, like: Tensor) -> Tensor:
    """e_y for classes y ``(*batch,)``, of the number of classes and the type of logits `like` ``(C,)``: ``(*batch, C)``.

    What is no class has no 1, so that a label out of range meets the likelihood's own check, by row.

    Example:
        >>> one_hot(torch.tensor([1, -1]), torch.zeros(3))
        tensor([[0., 1., 0.],
                [0., 0., 0.]])
    """
    return (y.unsqueeze(-1) == torch.arange(len(like), device=y.device)).to(like)
