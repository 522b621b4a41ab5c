"""Semi-supervised MNIST (M2): 600 labels and 59,000 images without, in one model p(y) p(z) p(x | z, y).

    PYRO_VAE_DATA=... python examples/semi_supervised.py --seconds 150 --out results/semi_supervised

q(y | x) learns from the labels by a term of the objective, and from the other images through Σ_y q(y | x) of their ELBO.
Printed are its error and calibration beside those of p(y | x), by Bayes' rule from log p(x, y) under each class, and log p(x)
itself, the class summed out, by importance sampling and between two ends. The paper (Kingma et al., 2014) reports 4.94 % of
errors at 600 labels.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import (
    MLP,
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
    elbo,
    fit,
    log_likelihood,
    normal,
    sample,
    supervised,
)
from pyro_vae.data import load
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid
from pyro_vae.plots.reliability import reliability_diagram

MISSING = -1


class Joint(nn.Module):
    """A network of (a, y), whose first layer is a sum of two: a is multiplied once, under however many classes y."""

    def __init__(self, a: int, y: int, out: int, width: int) -> None:
        super().__init__()
        self.of_a, self.of_y, self.rest = (
            nn.Linear(a, width),
            nn.Linear(y, width, bias=False),
            MLP(width, out, (width,)),
        )

    def forward(self, a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.rest((self.of_a(a) + self.of_y(y)).relu())


def m2(pixels: int, latents: int, width: int) -> SemiSupervised:
    return SemiSupervised(
        classes=Classes(10),  # p(y)
        prior=StandardNormal(latents),  # p(z)
        likelihood=Conditional(MLP(latents + 10, pixels, (width,)), bernoulli),  # p(x | z, y)
        classifier=Conditional(MLP(pixels, 10, (width, width)), lambda h: dist.Categorical(logits=h), event_dim=0),
        posterior=Conditional(Joint(pixels, 10, 2 * latents, width), normal),  # q(z | x, y)
    )


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


def train(vae, x, y, transform, alpha: float, epochs: int, seconds: float) -> dict:
    start, done = time.process_time(), []

    def watch(record: dict) -> None:
        done.append(record["elbo"])
        if time.process_time() - start > seconds:
            raise Spent

    with suppress(Spent):
        fit(
            vae, x, y, objective=Bound(elbo, terms=[supervised(alpha)]), optimizer=adam(1e-3), batch_size=128,
            epochs=epochs, transform=transform, on_epoch=watch, verbose=False,
        )  # fmt: skip
    return {"epochs": len(done), "cpu_seconds": time.process_time() - start}


def main(
    data: str = "mnist", each: int = 60, latents: int = 32, width: int = 256, again: int = 20, alpha: float = 20.0,
    epochs: int = 1000, seconds: float = 420, rows: int = 10_000, bayes: int = 500, num_samples: int = 50,
    ends: int = 10, temperatures: int = 60, out: Path = Path(),
) -> None:  # fmt: skip
    images = load(data, binarization="dynamic" if data == "mnist" else "static", verbose=False)
    x, labels = images.train.x.flatten(1), torch.as_tensor(images.train.y).long()
    test, truth = images.test.x.flatten(1)[:rows], torch.as_tensor(images.test.y).long()[:rows]
    torch.manual_seed(0)
    y = keep_labels(labels, each, seed=0)
    known = (y != MISSING).nonzero().flatten().repeat(again - 1)  # rows with labels come more than once an epoch
    vae = m2(x.shape[1], latents, width)
    cost = train(vae, torch.cat([x, x[known]]), torch.cat([y, y[known]]), images.transform, alpha, epochs, seconds)
    print(
        f"{(y != MISSING).sum()} labels, {len(x)} images; {cost['epochs']} epochs in {cost['cpu_seconds']:.0f} s of CPU"
    )

    guide = classification(vae.classify(test), truth)
    print(f"q(y | x):  {guide}")
    some, theirs = test[:bayes], truth[:bayes]
    by_class = class_posterior(vae.model, vae.guide, some, num_samples=num_samples, verbose=False)
    rule = classification(by_class.probs, theirs)
    print(f"Bayes' rule, K = {num_samples}: {rule}\nover all classes: {by_class}")
    same = classification(vae.classify(some), theirs)
    print(f"q(y | x) on these rows: {same}")
    marginal = log_likelihood(vae.model, vae.guide, some, num_samples=num_samples, verbose=False)
    joint = log_likelihood(vae.model, vae.guide, some, theirs, num_samples=num_samples, verbose=False)
    print(f"log p(x):    {marginal}\nlog p(x, y): {joint}")
    between = bracket(
        vae.model, vae.guide, some[:ends], num_samples=num_samples, num_temperatures=temperatures, num_chains=4,
        leapfrog_steps=4, verbose=False,
    )  # fmt: skip
    print(between)

    out.mkdir(parents=True, exist_ok=True)
    flagged = f"Bayes' rule, {len(by_class.flagged)} of {len(by_class)} rows flagged"
    found = {"q(y | x)": guide.to_dict(), flagged: rule.to_dict()}
    picture = save(reliability_diagram(found), out / "semi_supervised_reliability.png")
    digits = torch.arange(10).repeat_interleave(10)
    drawn = sample(vae, 100, digits, mean=True).numpy().reshape(10, 10, -1)
    title = "E[x | z, y], z ~ p(z): a class y in each row"
    grid = save(image_grid(list(drawn), [str(c) for c in range(10)], images.shape, title), out / "semi_supervised.png")
    facts = {"q(y | x)": guide.to_dict(), "p(y | x)": rule.to_dict(), "log_px": marginal.summary(), "cost": cost}
    facts |= {"log_px_y": joint.summary(), "flagged_by_class": len(by_class.flagged)}
    (out / "semi_supervised.json").write_text(json.dumps(facts, indent=1, default=str))
    print(f"Pictures: {picture}, {grid}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    parser.add_argument("--seconds", type=float, default=420, help="CPU time of training")
    parser.add_argument("--out", type=Path, default=Path())
    said = parser.parse_args()
    torch.set_num_threads(1)
    short = {"data": "digits", "each": 10, "latents": 4, "width": 32, "again": 2, "epochs": 1, "rows": 100, "bayes": 10}
    short |= {"num_samples": 5, "ends": 2, "temperatures": 3}
    main(**(short if said.quick else {}), seconds=said.seconds, out=said.out)
