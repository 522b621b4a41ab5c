r"""Overfitting: the part of the decoder, and that of the encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.common.flagged import format_difference, is_loose
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.random import stream
from pyro_vae.evidence.estimate import LogPx
from pyro_vae.programs.sites import Program

from .elbo_decomposition import Quantity
from .inference_gaps import Gaps, Number, gaps, why_bounds, why_errors


@dataclass(frozen=True, eq=False)
class Overfitting:
    r"""ELBO_train − ELBO_test = decoder + approximation + encoder, each above 0 where it overfits: by :func:`overfitting`.

    Attributes:
        train, test: the :class:`Gaps` of rows that were trained on, and of rows that were not.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.9))
        >>> train, test = torch.tensor([-0.5, 1.0]), torch.tensor([-2.0, 2.5])
        >>> split = overfitting(model, guide, train, test, steps=10, num_samples=50, verbose=False)
        >>> parts = split.summary()
        >>> difference = split.train.elbo.mean() - split.test.elbo.mean()
        >>> abs(parts["decoder"]["value"] + parts["approximation"]["value"] + parts["encoder"]["value"] - difference) < 1e-9
        tensor(True)
    """

    train: Gaps
    test: Gaps

    @property
    def measure(self) -> str | None:
        """That log p(x) is a density with respect to."""
        return self.train.measure

    @property
    def decoder(self) -> Number:
        """log p(x) of training rows − of test rows: how much better the model itself knows what it has seen."""
        return difference(self.train, self.test, "log_px")

    @property
    def encoder(self) -> Number:
        """The amortisation gap of test rows − of training rows: what the encoder loses on rows it has not seen."""
        return difference(self.test, self.train, "amortisation")

    @property
    def approximation(self) -> Number:
        """The approximation gap of test rows − of training rows."""
        return difference(self.test, self.train, "approximation")

    def summary(self) -> dict[str, Any]:
        """Return the parts, and both splits."""
        parts = {name: getattr(self, name) for name in ("decoder", "approximation", "encoder")}
        return parts | {
            "elbo": sum(part["value"] for part in parts.values()),
            "train": self.train.summary(),
            "test": self.test.summary(),
            "measure": self.measure,
            "unit": "nats per row",
        }

    def plot(self) -> Any:
        """Plot the gaps of training rows and of test rows, one below the other (a matplotlib figure)."""
        from pyro_vae.plots.bars import gap_bars

        return gap_bars({"training rows": self.train.summary(), "test rows": self.test.summary()})

    def __str__(self) -> str:
        s = self.summary()
        parts = " + ".join(f"{name} {format_part(s, name)}" for name in ("decoder", "approximation", "encoder"))
        bounds = why_bounds(self.train.moved, "both gaps are bounds, and encoder and approximation none")
        measure = f" | {self.measure}" if self.measure else ""
        errors = why_errors(s["train"], s["test"])
        return f"ELBO of training rows − of test rows: {s['elbo']:.3f} = {parts} nats ({errors}){bounds}{measure}"

    __repr__ = __str__


def format_part(summary: Number, name: str) -> str:
    """Format a part with its errors; without, where it is a difference of bounds that are loose, which the encoder's is not."""
    splits = summary["train"], summary["test"]
    if name == "encoder" or not any(map(is_loose, splits)):
        return str(Quantity(**summary[name]))
    return format_difference(summary[name]["value"], 0.0, *splits)


def difference(a: Gaps, b: Gaps, name: str) -> Number:
    """mean(a) − mean(b) of different rows, with independent noise; the data error holds the Monte Carlo error already."""
    one, other = a.mean(name), b.mean(name)
    errors = {e: None if None in (one[e], other[e]) else math.hypot(one[e], other[e]) for e in ("mc_se", "data_se")}
    return {"value": one["value"] - other["value"]} | errors


@suggest_keywords
def overfitting(
    model: Program,
    guide: Program,
    train: Any,
    test: Any,
    *,
    log_px: tuple[Tensor | LogPx, Tensor | LogPx] | None = None,
    steps: int = 500,
    lr: float = 0.05,
    num_particles: int = 8,
    num_samples: int = 1000,
    seed: int = 0,
    chunk_size: int = 4096,
    missing: bool = False,
    verbose: bool = True,
) -> Overfitting:
    r"""ELBO_train − ELBO_test = Δ log p(x) − Δ approximation gap − Δ amortisation gap, Δ = training rows − test rows.

    Means over the rows of each split. The first part is the decoder's overfitting, the last the encoder's: q(z | x) fits
    rows it was trained on better than others, though the model is as good on both. Each part is above 0 where it makes the
    ELBO of training rows the higher one. Where more than a tenth of the rows of either split is flagged (:func:`gaps`), the
    first two are differences of loose bounds, and printed without errors.

    Args:
        train: x, or a tuple of x and contexts, of rows that were trained on; the preprocessing of both splits must be one.
        test: likewise of rows that were not.
        log_px: as for :func:`gaps`, a pair (train, test).
        seed: of the noise, which differs between splits.
        model, guide, steps, lr, num_particles, num_samples, chunk_size, missing, verbose: as for :func:`gaps`, for both splits.

    References:
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017), https://arxiv.org/abs/1611.04273
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018), https://arxiv.org/abs/1801.03558

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):   # exact where x < 1.5
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x.clamp(max=1.5) / 2, 0.5**0.5))
        >>> found = overfitting(model, guide, torch.tensor([-0.5, 1.0]), torch.tensor([-2.0, 2.5]), steps=200)
        >>> round(found.encoder["value"], 1)
        0.1
    """
    splits = [given if isinstance(given, tuple) else (given,) for given in (train, test)]
    seeds = seed, stream(seed, 1)
    parts = [
        gaps(
            model, guide, *split, log_px=given, steps=steps, lr=lr, num_particles=num_particles, num_samples=num_samples,
            seed=own, chunk_size=chunk_size, missing=missing, verbose=verbose,
        )
        for split, given, own in zip(splits, log_px or (None, None), seeds, strict=True)
    ]  # fmt: skip
    return Overfitting(*parts)
