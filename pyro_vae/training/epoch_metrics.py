"""What is measured after an epoch: the true ELBO, under the same noise each time, and what the latents carry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pyro_vae.common.memory import fitting
from pyro_vae.common.random import seeded, stream

from .batch_source import Batch, TrainingData
from .metrics import Record, latent_use, true_elbo
from .shuffle import ELBO_NOISE, FIXED, LATENTS
from .step import Step

LOGGED_ROWS = 2000  # training rows that the ELBO is logged on, at most


@dataclass(eq=False)
class EpochMetrics:
    """Measures on validation rows, or, where there are none, on some of the training rows.

    Attributes:
        step: whose programs are measured.
        data: the rows.
        seed: of the noise, which is the same after every epoch, so that ELBOs differ by the weights alone.
    """

    step: Step
    data: TrainingData
    seed: int

    def elbo(self, place: str) -> Record:
        """The true ELBO and its terms, in nats per datum; `place` is what a DeviceMemoryError says of when it was raised."""
        train = self.true_elbo(self.train_sample, place)
        terms = train if self.data.validation is None else self.true_elbo(self.data.validation, place)
        return terms | {"train_elbo": train["elbo"]}

    def latents(self) -> Record:
        """Active units, I(x; z) and KL per unit."""
        rows = self.train_sample if self.data.validation is None else self.data.validation
        return latent_use(self.step, rows, stream(self.seed, LATENTS))

    def true_elbo(self, batch: Batch, place: str) -> Record:
        what = f"{place}: the ELBO of {len(batch[0])} rows on {self.data.device}"
        with seeded(self.seed, ELBO_NOISE, device=self.data.device), fitting(what, "Validate on fewer rows."):
            return true_elbo(self.step, batch)

    @cached_property
    def train_sample(self) -> Batch:
        """The training rows that the ELBO is logged on, the same throughout, binarized once."""
        every = max(1, len(self.data.train[0]) // LOGGED_ROWS)
        return self.fixed_batch(tuple(a[::every][:LOGGED_ROWS] for a in self.data.train))

    def fixed_batch(self, batch: Batch) -> Batch:
        """Make of some rows what training sees, the same each time."""
        return self.data.fixed_batch(batch, stream(self.seed, FIXED))
