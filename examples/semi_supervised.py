"""Semi-supervised MNIST with few labels (M1+M2 of Kingma et al., 2014): one model, trained in two steps, scored as one.

    p(x, z1, y, z2) = p(y) p(z2) p(z1 | z2, y) p(x | z1)        q = q(z1 | x) q(y | z1) q(z2 | z1, y)

First a VAE of all 59,600 images, without labels (M1); then M2, a `SemiSupervised`, of its latents z1, drawn from q(z1 | x) anew
for every batch. Labels train q(y | z1) by a term of the objective; rows without one count through Σ_y q(y | z1) of their ELBO.
M1 is trained once, for whatever labels. Together they are a program of three latents: its log p(x), and p(y | x) by Bayes'
rule, are of the images, y summed out. Beside it stands what the labels alone do: an SVM on the means of z1, or on the pixels.

    PYRO_VAE_DATA=... python examples/semi_supervised.py --out results/semi_supervised
"""

import argparse
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from sklearn.svm import SVC
from torch import nn

from pyro_vae import (
    MLP,
    VAE,
    Bound,
    Classes,
    Conditional,
    SemiSupervised,
    StandardNormal,
    adam,
    bernoulli,
    bracket,
    class_posterior,
    classification,
    cosine,
    elbo,
    encode,
    fit,
    log_likelihood,
    normal,
    supervised,
    warmup,
)
from pyro_vae.data import binarize, load
from pyro_vae.models.semi_supervised import SUMMED
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid
from pyro_vae.plots.reliability import reliability_diagram

MISSING = -1
PUBLISHED = {100: (11.97, 3.33), 600: (4.94, 2.59), 1000: (3.60, 2.40), 3000: (3.92, 2.18)}  # M2, M1+M2: % errors


class Joint(nn.Module):
    """A network of (a, y), whose first layer is a sum of two: a is multiplied once, under however many classes y."""

    def __init__(self, a: int, y: int, out: int, width: int) -> None:
        super().__init__()
        self.of_a, self.of_y, self.rest = nn.Linear(a, width), nn.Linear(y, width, bias=False), nn.Linear(width, out)

    def forward(self, a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.rest((self.of_a(a) + self.of_y(y)).relu())


def make_m1(pixels: int, s: dict) -> VAE:
    hidden = (s["wide"], s["wide"])
    return VAE(
        prior=StandardNormal(s["z1"]),
        likelihood=Conditional(MLP(s["z1"], pixels, hidden), bernoulli),  # p(x | z1)
        posterior=Conditional(MLP(pixels, 2 * s["z1"], hidden), normal),  # q(z1 | x)
    )


def make_m2(s: dict) -> SemiSupervised:
    z1, z2 = s["z1"], s["z2"]
    return SemiSupervised(
        classes=Classes(10),  # p(y)
        prior=StandardNormal(z2),  # p(z2)
        likelihood=Conditional(Joint(z2, 10, 2 * z1, s["narrow"]), normal),  # p(z1 | z2, y)
        classifier=Conditional(MLP(z1, 10, (s["wide"],)), lambda h: dist.Categorical(logits=h), event_dim=0),  # q(y | z1)
        posterior=Conditional(Joint(z1, 10, 2 * z2, s["narrow"]), normal),  # q(z2 | z1, y)
    )


class Stacked(nn.Module):
    """Both together: p(y) p(z2) p(z1 | z2, y) p(x | z1)."""

    def __init__(self, m1: VAE, m2: SemiSupervised) -> None:
        super().__init__()
        self.m1, self.m2 = m1, m2

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.m2.prior())
            y = pyro.sample("y", self.m2.classes(), obs=y, infer=None if y is not None else SUMMED)
            z1 = pyro.sample("z1", self.m2.likelihood(z2, self.m2.one_hot(y)))
            pyro.sample("x", self.m1.likelihood(z1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.m1.posterior(x))
            if y is None:
                y = pyro.sample("y", self.m2.classifier(z1), infer=SUMMED)
            pyro.sample("z2", self.m2.posterior(z1, self.m2.one_hot(y)))

    @torch.no_grad()
    def classify(self, x: torch.Tensor, draws: int = 20) -> torch.Tensor:
        """E_q(z1 | x) q(y | z1), over draws."""
        return self.m2.classifier(self.m1.posterior(x).sample((draws,))).probs.mean(0)


class Draws:
    """z1 ~ q(z1 | x), x drawn from its grey values first: what M2 is trained on."""

    def __init__(self, m1: VAE) -> None:
        self.posterior = m1.posterior

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        q = self.posterior(binarize(x, generator)).base_dist
        return q.loc + q.scale * torch.empty_like(q.loc).normal_(generator=generator)


def keep_labels(y: torch.Tensor, each: int, seed: int) -> torch.Tensor:
    """The labels of so many rows of each class; -1 for the others."""
    g, kept = torch.Generator().manual_seed(seed), torch.full_like(y, MISSING)
    for c in y.unique():
        rows = (y == c).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=g)[:each]]
        kept[rows] = c
    return kept


class Spent(Exception):
    """The run's CPU time is used up."""


def train(vae, x, *context, seconds: float, **options) -> dict:
    """Train for so many seconds of CPU time, the learning rate following them; return what it took."""
    start, schedule, epochs = time.process_time(), warmup(cosine), []

    def spent() -> float:
        return (time.process_time() - start) / seconds

    def watch(record: dict) -> None:
        epochs.append(record["epoch"])
        if spent() >= 1:
            raise Spent

    with suppress(Spent):
        fit(
            vae, x, *context, optimizer=adam(2e-3), batch_size=200, epochs=100_000, on_epoch=watch, verbose=False,
            schedule=lambda done: schedule(min(1.0, spent())), **options,
        )  # fmt: skip
    return {"epochs": len(epochs), "cpu_seconds": time.process_time() - start}
