"""Semi-supervised MNIST (M2): 600 labels and 59,000 images without, in one model p(y) p(z) p(x | z, y).

    PYRO_VAE_DATA=... python examples/semi_supervised.py --labels 600 --seconds 300 --out results/semi_supervised

q(y | x), a small convolutional network, is first trained on the labels alone. From there it learns from the labels by a term of
the objective, and from the other images through Σ_y q(y | x) of their ELBO. Printed are its error and calibration before and
after, beside those of p(y | x), by Bayes' rule from log p(x, y) under each class; and log p(x) itself, the class summed out, by
importance sampling and between two ends. Kingma et al. (2014) have plain networks and thousands of epochs.
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
    fit,
    log_likelihood,
    normal,
    sample,
    supervised,
    warmup,
)
from pyro_vae.common.environment import machine
from pyro_vae.data import load
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid
from pyro_vae.plots.reliability import reliability_diagram

MISSING = -1
PUBLISHED = {100: "11.97 %", 600: "4.94 %", 1000: "3.60 %", 3000: "3.92 %"}  # M2's, plain networks, means over labels


class Joint(nn.Module):
    """A network of (a, y), whose first layer is a sum of two: a is multiplied once, under however many classes y."""

    def __init__(self, a: int, y: int, out: int, width: int) -> None:
        super().__init__()
        self.of_a, self.of_y, self.rest = nn.Linear(a, width), nn.Linear(y, width, bias=False), nn.Linear(width, out)

    def forward(self, a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.rest((self.of_a(a) + self.of_y(y)).relu())


class Strokes(nn.Module):
    """Two convolutions of stride 2, and two linear layers, ``(*batch, side²) -> (*batch, classes)``."""

    def __init__(self, side: int, channels: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.side, left = side, (side + 3) // 4
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 5, 2, 2), nn.ReLU(), nn.Conv2d(channels, 2 * channels, 5, 2, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(2 * channels * left**2, width), nn.ReLU(), nn.Linear(width, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.reshape(-1, 1, self.side, self.side)).reshape(*x.shape[:-1], -1)


def m2(pixels: int, s: dict) -> SemiSupervised:
    z, width = s["latents"], s["width"]
    network = Strokes(int(pixels**0.5), s["channels"], width)
    return SemiSupervised(
        classes=Classes(10),  # p(y)
        prior=StandardNormal(z),  # p(z)
        likelihood=Conditional(Joint(z, 10, pixels, width), bernoulli),  # p(x | z, y)
        classifier=Conditional(network, lambda h: dist.Categorical(logits=h), event_dim=0),  # q(y | x)
        posterior=Conditional(Joint(pixels, 10, 2 * z, width), normal),  # q(z | x, y)
    )


def keep_labels(y: torch.Tensor, each: int, seed: int) -> torch.Tensor:
    """The labels of so many rows of each class; -1 for the others."""
    g, kept = torch.Generator().manual_seed(seed), torch.full_like(y, MISSING)
    for c in y.unique():
        rows = (y == c).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=g)[:each]]
        kept[rows] = c
    return kept


def repeated(x: torch.Tensor, y: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Labelled rows come again, until they are such a share of an epoch; the others once."""
    known = (y != MISSING).nonzero().flatten()
    again = known.repeat(max(0, round(share * (len(y) - len(known)) / ((1 - share) * len(known))) - 1))
    return torch.cat([x, x[again]]), torch.cat([y, y[again]])


class Spent(Exception):
    """The run's CPU time is used up."""


def train(vae, x, y, images, s: dict, seconds: float, seed: int) -> dict:
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
            vae, x, y, objective=Bound(elbo, terms=[supervised(s["alpha"])]), optimizer=adam(s["lr"]), seed=seed,
            batch_size=s["batch"], epochs=100_000, transform=images.transform, on_epoch=watch, engine="trace", verbose=False,
            schedule=lambda done: schedule(min(1.0, spent())),
        )  # fmt: skip
    return {"epochs": len(epochs), "cpu_seconds": time.process_time() - start}


def by_labels_alone(net: nn.Module, x, y, transform, steps: int) -> None:
    """Train a classifier on the labelled rows, binarized anew each time, as M2 has them."""
    x, y = x[y != MISSING], y[y != MISSING]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(100, len(x)),))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(transform(x[rows], None)), y[rows]).backward()
        optimizer.step()
        schedule.step()


def one_run(each: int, seed: int, seconds: float, images, s: dict) -> tuple[SemiSupervised, dict]:
    """M2 with so many labels of each class (0: with all), and how well it classifies."""
    labels, truth = (torch.as_tensor(part.y).long() for part in (images.train, images.test))
    x, test, truth = images.train.x, images.test.x[: s["rows"]], truth[: s["rows"]]
    y = keep_labels(labels, each, seed) if each else labels
    torch.manual_seed(seed)
    vae = m2(x.shape[1], s)
    by_labels_alone(vae.classifier.net, x, y, images.transform, s["alone"])
    alone = classification(vae.classify(test), truth)
    cost = train(vae, *repeated(x, y, s["share"]), images, s, seconds, seed)
    some, theirs = test[: s["bayes"]], truth[: s["bayes"]]
    by_class = class_posterior(vae.model, vae.guide, some, num_samples=s["num_samples"], verbose=False)
    found = {
        "q(y | x)": classification(vae.classify(test), truth),
        "labels alone": alone,
        "Bayes' rule": classification(by_class.probs, theirs),
        "q(y | x), the rows of Bayes' rule": classification(vae.classify(some), theirs),
    }
    count = int((y != MISSING).sum())
    print(f"{count} labels, seed {seed}: {cost['epochs']} epochs in {cost['cpu_seconds']:.0f} s of CPU", flush=True)
    for name, one in found.items():
        print(f"  {name}: {one}", flush=True)
    print(f"  log p(x) by the classes: {by_class}", flush=True)
    kept = {"labels": count, "seed": seed, "cost": cost, "flagged": len(by_class.flagged)}
    return vae, kept | {"found": {name: one.to_dict() for name, one in found.items()}}


def scored(vae: SemiSupervised, images, s: dict) -> dict:
    """log p(x) and log p(x, y), by importance sampling and between two ends."""
    x, y = images.test.x[: s["bayes"]], torch.as_tensor(images.test.y).long()[: s["bayes"]]
    options = {"num_samples": s["num_samples"], "verbose": False}
    marginal, joint = (log_likelihood(vae.model, vae.guide, *args, **options) for args in ((x,), (x, y)))
    between = bracket(
        vae.model,
        vae.guide,
        x[: s["ends"]],
        num_temperatures=s["temperatures"],
        num_chains=4,
        leapfrog_steps=4,
        **options,
    )
    print(f"log p(x):    {marginal}\nlog p(x, y): {joint}\n{between}")
    return {
        "log_px": str(marginal).split(" | ")[0],
        "log_px_y": str(joint).split(" | ")[0],
        "ends": str(between).split(" | ")[0],
    }


PAGE = """# M2 on MNIST

`{command}`
({machine}, torch {torch}). {images} images, dynamically binarized; labelled rows come again until they are
{share:.0%} of an epoch, the classifier's term has weight {alpha:g}. Errors are ± one standard error over test rows; a seed is
one of labels, weights and training. "Labels alone" is the classifier as M2 starts with it, which has seen no other image.
Published: Kingma et al. (2014, https://arxiv.org/abs/1406.5298), M2 with plain networks, means over choices of labels.

| labels | seed | CPU s, epochs | error of q(y \\| x) | log score | ECE (if calibrated) | labels alone | published |
|--:|--:|--:|--:|--:|--:|--:|--:|
{lines}

p(y | x) by Bayes' rule, from log p(x, y) of each class with K = {k}, on the first {bayes} test rows:

| labels | seed | Bayes' rule | q(y \\| x), same rows | rows flagged |
|--:|--:|--:|--:|--:|
{rules}

With {of} labels, on these rows, nats: {log_px}; {log_px_y} with their labels. The first {rows}: {ends}.

![reliability](semi_supervised_reliability.png)
![a class in each row](semi_supervised.png)
"""


def percent(found: dict) -> str:
    return f"{1 - found['accuracy']:.2%} ± {found['accuracy_se']:.2%}"


def page(runs: list[dict], scores: dict, images, s: dict, command: str) -> str:
    """Format the page of all runs."""
    lines, rules = [], []
    for run in runs:
        q, alone, rule, same = run["found"].values()
        lines.append(
            f"| {run['labels']:,} | {run['seed']} | {run['cost']['cpu_seconds']:.0f}, {run['cost']['epochs']} | {percent(q)} | "
            f"{q['log_score']:.3f} ± {q['log_score_se']:.3f} | {q['ece']:.4f} ({q['ece_if_calibrated']:.4f}) "
            f"| {percent(alone)} | {PUBLISHED.get(run['labels'], '')} |"
        )
        rules.append(
            f"| {run['labels']:,} | {run['seed']} | {percent(rule)} | {percent(same)} | {run['flagged']} of {rule['rows']} |"
        )
    return PAGE.format(
        command=command, machine=machine(torch.device("cpu")), torch=torch.__version__.split("+")[0], share=s["share"],
        images=f"{len(images.train.x):,}", alpha=s["alpha"], lines="\n".join(lines), rules="\n".join(rules),
        k=s["num_samples"], bayes=s["bayes"], of=f"{runs[0]['labels']:,}", rows=s["ends"], **scores,
    )  # fmt: skip


def main(labels: list[int], seeds: int, seconds: float, s: dict, out: Path, command: str) -> None:
    images, runs = load(s["data"], binarization="dynamic", verbose=False), []
    out.mkdir(parents=True, exist_ok=True)
    for count in labels:
        for seed in range(seeds if count == labels[0] else 1):
            vae, run = one_run(count // 10, seed, seconds, images, s)
            runs.append(run)
            if len(runs) > 1:
                continue
            scores = scored(vae, images, s)
            drawn = sample(vae, 100, torch.eye(10).repeat_interleave(10, 0), mean=True).numpy().reshape(10, 10, -1)
            title = "E[x | z, y], z ~ p(z): a class y in each row"
            save(image_grid(list(drawn), [str(c) for c in range(10)], images.shape, title), out / "semi_supervised.png")
            shown = {name: run["found"][name] for name in ("q(y | x)", "labels alone", "Bayes' rule")}
            picture = save(reliability_diagram(shown), out / "semi_supervised_reliability.png")
            print(f"Picture: {picture}")
        (out / "semi_supervised.json").write_text(json.dumps({"runs": runs, "scores": scores}, indent=1) + "\n")
        (out / "README.md").write_text(page(runs, scores, images, s, command), encoding="utf-8")


MNIST = {
    "data": "mnist", "latents": 8, "width": 128, "channels": 16, "alpha": 10.0, "share": 0.1, "lr": 2e-3, "batch": 100,
    "rows": 10_000, "bayes": 200, "num_samples": 100, "ends": 5, "temperatures": 40, "alone": 1500,
}  # fmt: skip
QUICK = {
    "data": "digits", "latents": 4, "width": 16, "channels": 2, "alpha": 5.0, "share": 0.1, "lr": 2e-3, "batch": 100,
    "rows": 50, "bayes": 4, "num_samples": 5, "ends": 2, "temperatures": 3, "alone": 5,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[600], help="of all classes together; 0: all there are"
    )
    parser.add_argument("--seeds", type=int, default=1, help="of the first number of labels; the others have one")
    parser.add_argument("--seconds", type=float, default=300, help="CPU time of training, each run")
    parser.add_argument("--out", type=Path, default=Path())
    said = parser.parse_args()
    torch.set_num_threads(1)
    command = (
        f"python examples/semi_supervised.py --labels {' '.join(map(str, said.labels))} --seeds {said.seeds} "
        f"--seconds {said.seconds:g} --out {said.out}"
    )
    how = ([20], 1, 0.1, QUICK) if said.quick else (said.labels, said.seeds, said.seconds, MNIST)
    main(*how, said.out, command)
