"""Recurrent networks over ragged sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.common.picklable import Picklable

from .networks import check_features


class BackwardGRU(Picklable):
    """h_t = GRU(x_t, h_{t+1}) from the last step of each sequence back to the first: h_t has seen x_t, …, x_T.

    That is all of x that p(z_t | z_{t−1}, x) depends on. In plain operations, which trace, compile and are stacked by vmap.

    Args:
        in_features: elements of one x_t.
        hidden: width of h_t.

    Raises:
        ShapeError: an x of another width.

    References:
        Learning Phrase Representations using RNN Encoder–Decoder (Cho et al., 2014), https://arxiv.org/abs/1406.1078

    Example:
        >>> from pyro_vae import BackwardGRU
        >>> h = BackwardGRU(3, 16)(torch.zeros(5, 4, 3), torch.tensor([4, 1, 2, 4, 3]))
        >>> h.shape, h[1, 1:].abs().max().item()                       # beyond the length there is nothing to see
        (torch.Size([5, 4, 16]), 0.0)
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.in_features, self.hidden = in_features, hidden
        self.inputs, self.recurrent = nn.Linear(in_features, 3 * hidden), nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor, lengths: Tensor | None = None, *c: Tensor) -> Tensor:
        """Return h ``(N, T, H)`` of x ``(N, T, in_features)``, or ``(N, T)`` of single numbers; contexts join each x_t."""
        x = x.unsqueeze(-1) if x.dim() == 2 else x.flatten(2)
        x = torch.cat([x, *(i.unsqueeze(1).expand(-1, x.shape[1], -1).to(x) for i in c)], -1)
        gates = self.inputs(check_features(x, self.in_features, self))
        h, found = gates.new_zeros(len(x), self.hidden), []
        for t in reversed(range(x.shape[1])):
            seen = self.step(gates[:, t], h)
            h = seen if lengths is None else torch.where((lengths > t).unsqueeze(-1), seen, h)
            found.append(h)
        return torch.stack(found[::-1], 1)

    def step(self, gates: Tensor, h: Tensor) -> Tensor:
        """Return GRU(x_t, h), its input gates given."""
        (reset, update, new), (r, u, n) = gates.chunk(3, -1), self.recurrent(h).chunk(3, -1)
        update = (update + u).sigmoid()
        return (1 - update) * (new + (reset + r).sigmoid() * n).tanh() + update * h
