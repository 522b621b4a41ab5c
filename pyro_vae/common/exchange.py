"""What processes that work together tell each other: tensors and texts, in the order of their ranks; no object is pickled."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, distributed

from pyro_vae.errors import UsageError

from .processes import collective, processes

SHOWN = 200  # characters of a value that ranks do not agree on


def gather(tensor: Tensor, what: str, into: Tensor | None = None) -> Tensor:
    """Return this tensor of each rank as the rows of one, in order; they have one shape and dtype.

    Args:
        tensor: on the CPU, or on the GPU of this process.
        what: where in the work that is, such as ``"step 12"``; for the error.
        into: memory for them, contiguous.

    Raises:
        ProcessesError: a rank did not come.
    """
    here = processes()
    if here.world == 1:
        return tensor.unsqueeze(0)
    whole = tensor.new_empty(here.world, *tensor.shape) if into is None else into
    whole[here.rank] = tensor
    rows = list(as_bytes(whole).unbind(0))  # broadcasts, as gloo's gathering copies what it received twice

    def call() -> None:
        sent = [distributed.broadcast(row, rank, async_op=True) for rank, row in enumerate(rows) if len(row)]
        for work in filter(None, sent):
            work.wait()

    collective(call, what)
    return whole


def exchange(rows: Tensor, what: str, into: Tensor | None = None) -> Tensor:
    """Send row r of a tensor to rank r, for each r; return what each rank has sent here, in order.

    Args:
        rows: one for each rank, of the same shape and dtype on all; on the CPU, or on the GPU of this process.
        what, into: as for :func:`gather`.

    Raises:
        ProcessesError: a rank did not come.
    """
    received = torch.empty_like(rows, memory_format=torch.contiguous_format) if into is None else into
    here, sent = as_bytes(received).flatten(), as_bytes(rows.contiguous()).flatten()
    collective(lambda: distributed.all_to_all_single(here, sent), what)
    return received


def as_bytes(rows: Tensor) -> Tensor:
    """View each row of a tensor as bytes, which every backend sends."""
    return rows.view(len(rows), rows[0].numel()).view(torch.uint8)


def gather_text(text: str, what: str) -> list[str]:
    """Return the text of each rank, in order.

    Example:
        >>> gather_text("here", "start")
        ['here']
    """
    return [text] if processes().world == 1 else [text_of(part) for part in gather_parts(bytes_of(text), what)]


def gather_bytes(content: bytes, what: str) -> list[bytes]:
    """Return the bytes of each rank, in order.

    Example:
        >>> gather_bytes(b"here", "start")
        [b'here']
    """
    if processes().world == 1:
        return [content]
    sent = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return [part.numpy().tobytes() for part in gather_parts(sent, what)]


def gather_parts(content: Tensor, what: str) -> list[Tensor]:
    """Return the tensor of one dimension of each rank, in order, however many elements each has."""
    sizes = gather(torch.tensor(len(content)), what).tolist()
    padded = content.new_zeros(max(1, *sizes))
    padded[: len(content)] = content
    return [part[:size] for part, size in zip(gather(padded, what), sizes, strict=True)]


def share_text(text: str | None, what: str) -> str:
    """Return rank 0's text on each rank; what others pass is not looked at.

    Example:
        >>> share_text("here", "start")
        'here'
    """
    here = processes()
    if here.leads and text is None:
        raise ValueError("rank 0 shares a text, not None")
    if here.world == 1:
        return str(text)
    content = bytes_of(str(text)) if here.leads else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor([len(content)])
    collective(lambda: distributed.broadcast(size, 0), what)
    if not here.leads:
        content = torch.empty(int(size), dtype=torch.uint8)
    if len(content):
        collective(lambda: distributed.broadcast(content, 0), what)
    return text_of(content)


def agree(what: str, value: Any) -> None:
    """Raise a UsageError on each rank where ranks do not have the same value, of what JSON can hold.

    Raises:
        UsageError: names the ranks whose value is not that of rank 0.

    Example:
        >>> agree("seed", 3)
    """
    texts = gather_text(json.dumps(value, sort_keys=True), f"the comparison of {what}")
    if odd := [rank for rank, text in enumerate(texts) if text != texts[0]]:
        ranks = f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))}"
        theirs, ours = (shortened(text) for text in apart(texts[odd[0]], texts[0]))
        have = "have" if len(odd) > 1 else "has"
        raise UsageError(f"{what} must be the same on each rank: {ranks} {have} {theirs}, and rank 0 has {ours}")


def apart(one: str, other: str) -> tuple[str, str]:
    """Leave out what two objects of JSON have in common."""
    first, second = json.loads(one), json.loads(other)
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return one, other
    odd = [name for name in {**second, **first} if first.get(name) != second.get(name)]
    first, second = ({name: of[name] for name in odd if name in of} for of in (first, second))
    return json.dumps(first), json.dumps(second)


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def bytes_of(text: str) -> Tensor:
    """Return a text as bytes."""
    content = text.encode("utf-8", "surrogateescape")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def text_of(content: Tensor) -> str:
    return content.numpy().tobytes().decode("utf-8", "surrogateescape")
