"""The ELBO of pairs without a log weight for each row (enumerated or shared latents), in nats per datum."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.programs.sites import Program

ELBOS = (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO)  # whose loss is the negative ELBO; a subclass's may be anything


class AsWritten(Messenger):
    """Sites count as p and q say: whatever handlers weigh them by (β, ``poutine.scale``) is left out.

    What a plate of N rows that holds B of them multiplies by, N / B, stays: it stands for the rows that are not there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plates: Counter[tuple[str, int, int]] = Counter()  # name, size here, size in all

    def _pyro_sample(self, msg: Message) -> None:
        frames: Any = msg["cond_indep_stack"]
        sizes = [(f.name, f.size, f.size if f.full_size is None else f.full_size) for f in frames]
        self.plates.update(sizes)
        msg["scale"] = math.prod(full / size for _, size, full in sizes if size != full) if sizes else 1.0

    def rows(self, given: int) -> int:
        """Count the rows that the ELBO is of: those of the data set, where the plate over the given ones says so."""
        candidates = [p for p, _ in self.plates.most_common() if given in p[1:]]
        named = [p for p in candidates if p[0] == "data"] or candidates
        return named[0][2] if named else given


def elbo_objective(objective: Any) -> Any:
    """Return the objective itself if its loss is the negative ELBO, or else the one that treats the same sites."""
    if type(objective) in ELBOS:
        return objective
    nesting = getattr(objective, "max_plate_nesting", float("inf"))
    return TraceEnum_ELBO(max_plate_nesting=nesting) if isinstance(objective, TraceEnum_ELBO) else Trace_ELBO()


def elbo_per_datum(objective: Any, model: Program, guide: Program, *batch: Tensor) -> float:
    """ELBO / N in nats, N the rows of the batch, or those that its plate says the data set has.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model(x):
        ...     with pyro.plate("data", len(x)), poutine.scale(scale=0.1):
        ...         k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        ...         pyro.sample("x", dist.Normal(0.0 * k, 1.0), obs=x)
        >>> elbo = elbo_per_datum(TraceEnum_ELBO(max_plate_nesting=1), model, lambda x: None, torch.zeros(7))
        >>> round(elbo, 4)      # log N(0; 0, 1)
        -0.9189
    """
    as_written = AsWritten()
    loss = elbo_objective(objective).loss(as_written(model), as_written(guide), *batch)
    return -float(loss) / as_written.rows(len(batch[0]))
