r"""Count what all rows share once in a data set, however many batches it comes in: weight B/N beside B of N rows."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_vae.common.given import whole
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.plates import WITHOUT_SIZE
from pyro_vae.programs.site_rows import frames_of
from pyro_vae.programs.sites import Program, has_density


class CountOnce:
    r"""The program whose loss on a batch of B rows is Σ_{n in batch} loss_n + B/N · loss(θ).

    N/B times that is an unbiased estimate of the loss of the data set, Σ_n loss_n + loss(θ), for a batch drawn at random: the
    data plate scaled by N/B and KL(q(θ) ‖ p(θ)) counted once. In units of rows, as here, the loss of an epoch is that of the
    data set. Both programs of a pair go under it; :func:`~pyro_vae.fit` does that itself, where sites lie outside the plate.
    Any objective of Pyro's that is a sum of its sites' terms (``Trace_ELBO``, ``TraceMeanField_ELBO``) can be trained.

    Args:
        program: a model, or a guide.
        num_rows: N, rows of the data set; of a stream, as many as it has.
        plate: over the rows.

    Raises:
        UsageError: N that is no whole number of 1 or more; by a run, a batch of more than N rows.
        ProgramError: by a run, a plate that has other rows than the batch, or says that there are other than N.

    References:
        Stochastic Variational Inference (Hoffman, Blei, Wang & Paisley, 2013), https://arxiv.org/abs/1206.7051

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> trace = pyro.poutine.trace(CountOnce(model, num_rows=100)).get_trace(torch.zeros(5))
        >>> trace.nodes["mu"]["scale"], trace.nodes["x"]["scale"]
        (0.05, 1.0)
    """

    def __init__(self, program: Program, num_rows: int, plate: str = "data") -> None:
        self.program, self.num_rows, self.plate = program, whole("num_rows", num_rows, 1), plate

    @property
    def __wrapped__(self) -> Program:  # how modules behind a program are found
        return self.program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (batch := len(args[0])) > self.num_rows:
            raise UsageError(f"a batch of {batch} rows, and num_rows={self.num_rows}: give the rows of the data set")
        with WeighShared(self.plate, batch / self.num_rows, self.num_rows, batch):
            return self.program(*args, **kwargs)


class WeighShared(Messenger):
    """Weigh sites outside a plate, and each row of the plate by 1, whatever the plate itself says."""

    def __init__(self, plate: str, weight: float, num_rows: int | None = None, batch: int | None = None) -> None:
        super().__init__()
        self.plate, self.weight, self.num_rows, self.batch = plate, weight, num_rows, batch

    def _pyro_sample(self, msg: Any) -> None:
        if not has_density(msg):
            return
        frame = frames_of(msg).get(self.plate)
        if frame is None:
            msg["scale"] = msg["scale"] * self.weight
            return
        if self.batch is not None and frame.size not in (self.batch, WITHOUT_SIZE):  # rows of the program's own
            raise ProgramError(
                f"site {msg['name']!r}: its plate {self.plate!r} has {frame.size} rows in a batch of {self.batch}, so that "
                "each batch would count them all. Fix: hand the data in as x, and have the plate follow it, "
                f"pyro.plate({self.plate!r}, len(x))."
            )
        if frame.full_size not in (None, frame.size):
            if self.num_rows not in (None, frame.full_size):
                raise ProgramError(
                    f"site {msg['name']!r}: its plate {self.plate!r} says that the data set has {frame.full_size} rows, and "
                    f"it has {self.num_rows}. Fix: pyro.plate({self.plate!r}, {self.num_rows}, subsample=...), or "
                    f"pyro.plate({self.plate!r}, len(x)), which is weighed all the same."
                )
            msg["scale"] = msg["scale"] * (frame.size / frame.full_size)
