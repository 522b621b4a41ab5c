"""Semi-supervised MNIST (M2): few labels and 55,000 images, in one model p(y) p(z) p(x | z, y).

    PYRO_VAE_DATA=... python examples/semi_supervised.py --labels 600 --out results/semi_supervised

q(y | x), a small convolutional network, learns from labelled digits that are moved a little, anew at each step, by a term of
the objective, and from the images through Σ_y q(y | x) of their ELBO. Training has three parts, each with its CPU time: the
term alone; p(x | z, y) and q(z | x, y), with y drawn from q(y | x); and M2, the bound and the term together. Printed are the
errors of q(y | x) before and after M2, beside those of p(y | x), by Bayes' rule from log p(x, y) under each class, and
log p(x), the class summed out. Kingma et al. (2014) report 11.97, 4.94 and 3.60 % of errors at 100, 600 and 1,000 labels,
without moves.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn import functional as F

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
    fit,
    log_likelihood,
    normal,
)
from pyro_vae.data import binarize, load
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid
from pyro_vae.plots.reliability import reliability_diagram

MISSING = -1
PUBLISHED = {100: "11.97", 600: "4.94", 1000: "3.60"}  # errors of M2 in %, Kingma et al. (2014), table 1


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths: first guesses, which validation rows with 600 labels showed to do."""

    data: str = "mnist"
    train_rows: int = 55_000  # the others of the training file validate
    latents: int = 16
    width: int = 256
    channels: int = 16
    rate: float = 2e-3
    batch: int = 64  # moved digits a step
    alone: int = 3000  # steps of the term alone
    given: int = 8  # epochs of p(x | z, y) and q(z | x, y), y given
    joint: int = 3  # epochs of M2
    joint_rate: float = 5e-4
    weight: float = 50.0  # α of the term, in nats a row of the batch
    rows: int = 10_000  # test rows
    bayes: int = 500  # those of Bayes' rule
    num_samples: int = 50
    ends: int = 10
    temperatures: int = 60
    step_size: float | None = None  # of annealing: tuned by a pilot run


QUICK = Settings(
    "digits", 400, 4, 16, 2, alone=5, given=1, joint=1, rows=100, bayes=10, num_samples=5, ends=2, temperatures=3,
    step_size=0.1,
)  # fmt: skip


class Strokes(nn.Module):
    """Three convolutions and two linear layers: logits of the classes of images, ``(*batch, side²) -> (*batch, 10)``."""

    def __init__(self, side: int, channels: int, width: int) -> None:
        super().__init__()
        self.side, c, left = side, channels, side // 4
        self.net = nn.Sequential(
            nn.Conv2d(1, c, 5, 2, 2), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * c, 2 * c, 3, 1, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(2 * c * left**2, width // 2), nn.ReLU(), nn.Linear(width // 2, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.reshape(-1, 1, self.side, self.side)).reshape(*x.shape[:-1], -1)


class Joint(nn.Module):
    """A network of (a, y), whose first layer is a sum of two: a is multiplied once, under however many classes y."""

    def __init__(self, a: int, y: int, out: int, width: int) -> None:
        super().__init__()
        self.of_a, self.of_y = nn.Linear(a, width), nn.Linear(y, width, bias=False)
        self.rest = MLP(width, out, (width,))

    def forward(self, a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.rest((self.of_a(a) + self.of_y(y)).relu())


def m2(side: int, s: Settings) -> SemiSupervised:
    z, pixels = s.latents, side**2
    network = Strokes(side, s.channels, s.width)
    return SemiSupervised(
        classes=Classes(10),  # p(y)
        prior=StandardNormal(z),  # p(z)
        likelihood=Conditional(MLP(z + 10, pixels, (s.width,)), bernoulli),  # p(x | z, y)
        classifier=Conditional(network, lambda h: dist.Categorical(logits=h), event_dim=0),  # q(y | x)
        posterior=Conditional(Joint(pixels, 10, 2 * z, s.width), normal),  # q(z | x, y)
    )


def keep_labels(y: torch.Tensor, each: int, seed: int) -> torch.Tensor:
    """The labels of so many rows of each class; -1 for the others."""
    g, kept = torch.Generator().manual_seed(seed), torch.full_like(y, MISSING)
    for c in y.unique():
        rows = (y == c).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=g)[:each]]
        kept[rows] = c
    return kept


def move(x: torch.Tensor, side: int) -> torch.Tensor:
    """Shift, turn, stretch, slant and bend each image ``(N, side²)`` a little, anew: what a digit's class does not tell."""
    n = len(x)
    turn, slant, *stretch, right, down = torch.empty(6, n).uniform_(-1, 1) * torch.tensor(
        [[0.25], [0.2], [0.15], [0.15], [0.14], [0.14]]
    )
    cos, sin, (a, b) = turn.cos(), turn.sin(), (t.exp() for t in stretch)
    rows = [a * cos, slant - sin, right, sin, b * cos, down]
    grid = F.affine_grid(torch.stack(rows, -1).reshape(n, 2, 3), [n, 1, side, side], align_corners=False)
    bends = F.interpolate(0.05 * torch.randn(n, 2, 5, 5), (side, side), mode="bicubic", align_corners=True)
    moved = F.grid_sample(x.reshape(n, 1, side, side), grid + bends.permute(0, 2, 3, 1), align_corners=False)
    return moved.reshape(n, -1).clamp(0, 1)


@dataclass(frozen=True)
class MovedLabels:
    """+ α · mean log q(y | T x) over labelled grey digits drawn at each step, T a move of each: the same for each row."""

    classifier: Conditional
    x: torch.Tensor
    y: torch.Tensor
    side: int
    batch: int
    weight: float
    takes_codes = True  # it is of q(y | x) alone, the same under each code

    def __call__(self, draw) -> torch.Tensor:
        return self.weight * self.log_q().expand(draw.log_w.shape[-1])

    def log_q(self) -> torch.Tensor:
        rows = torch.randint(len(self.x), (self.batch,))
        return self.classifier(binarize(move(self.x[rows], self.side))).log_prob(self.y[rows]).mean()


def train_classifier(term: MovedLabels, steps: int, rate: float) -> None:
    """Raise the term alone: q(y | x) as the labels and the moves make it."""
    network = term.classifier.train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        (-term.log_q()).backward()
        optimizer.step()
        schedule.step()


def probabilities(vae: SemiSupervised, x: torch.Tensor) -> torch.Tensor:
    """q(y | x), by blocks of rows."""
    return torch.cat([vae.classify(block) for block in x.split(1000)])


def given_classes(vae: SemiSupervised) -> VAE:
    """p(z) p(x | z, y) and q(z | x, y), the same networks, as programs that take y."""
    return VAE(lambda y: vae.prior(), vae.likelihood, vae.posterior)


def train(vae: SemiSupervised, x, y, term: MovedLabels, s: Settings, transform, watch) -> dict:
    """The three parts; the CPU seconds of each. `watch` is told the name of each as it ends."""
    seconds, start = {}, time.process_time()

    def ended(part: str) -> None:
        nonlocal start
        seconds[part] = time.process_time() - start
        watch(part)
        start = time.process_time()

    options = {"schedule": cosine, "transform": transform, "verbose": False, "batch_size": 128}
    train_classifier(term, s.alone, s.rate)
    ended("term alone")
    drawn = dist.Categorical(probabilities(vae, binarize(x))).sample()
    classes = vae.one_hot(torch.where(y == MISSING, drawn, y))
    fit(given_classes(vae), x, classes, optimizer=adam(1e-3), epochs=s.given, **options)
    ended("y given")
    objective = Bound(elbo, terms=[term])
    fit(vae, x, y, objective=objective, optimizer=adam(s.joint_rate), epochs=s.joint, **options)
    ended("M2")
    return seconds


def prepare(labels: int, seed: int, s: Settings):
    """The images, labels of which all but so many are taken away, an M2 and its term."""
    images = load(s.data, binarization="dynamic", verbose=False)
    x = images.train.x[: s.train_rows].flatten(1)
    y = torch.as_tensor(images.train.y).long()[: s.train_rows]
    y, side = keep_labels(y, labels // 10, seed) if labels else y, images.shape[-1]
    torch.manual_seed(seed)
    vae, known = m2(side, s), y != MISSING
    return images, x, y, vae, MovedLabels(vae.classifier, x[known], y[known], side, s.batch, s.weight)


def validation_rows(images, s: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The training file's rows that nothing is trained on, drawn once: what choices are made by."""
    grey = images.train.x[s.train_rows :].flatten(1)
    x = torch.cat([binarize(grey, torch.Generator().manual_seed(0)), images.validation.x.flatten(1)])
    y = torch.cat([torch.as_tensor(part.y).long() for part in (images.train, images.validation)])
    return x, y[s.train_rows :]


def one_run(labels: int, seed: int, s: Settings) -> tuple[dict, SemiSupervised, object]:
    """M2 with so many labels (0: all), and what q(y | x), Bayes' rule and log p(x) are then."""
    images, x, y, vae, term = prepare(labels, seed, s)
    validation = validation_rows(images, s)
    test, truth = images.test.x.flatten(1)[: s.rows], torch.as_tensor(images.test.y).long()[: s.rows]
    by_part = {}

    def watch(part: str) -> None:
        sets = {"validation": validation, "test": (test, truth)}
        by_part[part] = {name: classification(probabilities(vae, a), b).to_dict() for name, (a, b) in sets.items()}
        told = ", ".join(f"{percent(one)} of {one['rows']:,} {name} rows" for name, one in by_part[part].items())
        print(f"{part}: q(y | x) is wrong on {told}", flush=True)

    count = int((y != MISSING).sum())
    print(f"{count:,} labels, {len(x):,} images, seed {seed}", flush=True)
    seconds = train(vae, x, y, term, s, images.transform, watch)
    print("CPU seconds:", ", ".join(f"{part} {spent:.0f}" for part, spent in seconds.items()))
    some, theirs = test[: s.bayes], truth[: s.bayes]
    by_class = class_posterior(vae.model, vae.guide, some, num_samples=s.num_samples, verbose=False)
    rule, same = classification(by_class.probs, theirs), classification(probabilities(vae, some), theirs)
    print(f"Bayes' rule, K = {s.num_samples}: {rule}\nover all classes: {by_class}\nq(y | x) on these rows: {same}")
    found = {"labels": count, "seed": seed, "cpu_seconds": seconds, "q(y | x)": by_part, "Bayes' rule": rule.to_dict()}
    found |= {"q(y | x), the rows of Bayes' rule": same.to_dict(), "flagged_by_class": len(by_class.flagged)}
    return found | {"settings": asdict(s)}, vae, images


def percent(one: dict) -> str:
    return f"{1 - one['accuracy']:.2%} ± {one['accuracy_se']:.2%}"


def score(found: dict, vae: SemiSupervised, images, s: Settings) -> None:
    """log p(x) and log p(x, y) by importance sampling, and log p(x) of a few rows between two ends, join what was found."""
    x, y = images.test.x.flatten(1)[: s.bayes], torch.as_tensor(images.test.y).long()[: s.bayes]
    marginal = log_likelihood(vae.model, vae.guide, x, num_samples=s.num_samples, verbose=False)
    joint = log_likelihood(vae.model, vae.guide, x, y, num_samples=s.num_samples, verbose=False)
    options = {"num_samples": s.num_samples, "num_temperatures": s.temperatures, "num_chains": 4, "leapfrog_steps": 4}
    options["step_size"] = s.step_size
    between = bracket(vae.model, vae.guide, x[: s.ends], verbose=False, **options)
    print(f"log p(x):    {marginal}\nlog p(x, y): {joint}\n{between}")
    found |= {"log_px": marginal.summary(), "log_px_y": joint.summary(), "between": str(between)}


def draw_reliability(found: dict, s: Settings, out: Path) -> None:
    """How far each classifier is to be believed."""
    flagged = f"Bayes' rule, {found['flagged_by_class']} of {s.bayes} rows flagged"
    parts = {f"q(y | x), {part}": found["q(y | x)"][part]["test"] for part in ("term alone", "M2")}
    print(save(reliability_diagram(parts | {flagged: found["Bayes' rule"]}), out / "semi_supervised_reliability.png"))


def draw_digits(vae: SemiSupervised, labels: int, shape: tuple[int, ...], out: Path) -> None:
    """E[x | z, y] of z ~ p(z): the same as ``sample(vae, 100, y, mean=True)``, on other draws of z."""
    torch.manual_seed(0)
    with torch.no_grad():
        classes = vae.one_hot(torch.arange(10).repeat_interleave(10))
        drawn = vae.likelihood(vae.prior().sample((100,)), classes).mean.numpy().reshape(10, 10, -1)
    title = f"E[x | z, y], z ~ p(z): a class y in each row, {labels:,} labels"
    print(save(image_grid(list(drawn), [str(c) for c in range(10)], shape, title), out / "semi_supervised.png"))


def table(runs: list[dict]) -> str:
    """A line for each run, errors in % of rows ± one standard error over rows."""
    head = [
        "labels",
        "seed",
        "term alone",
        "M2",
        "log score, nats",
        "ECE (if calibrated)",
        "Bayes' rule, and M2 on its rows",
    ]
    lines = ["| " + " | ".join([*head, "epochs of M2", "CPU s", "published"]) + " |", "|--:" * 10 + "|"]
    for run in sorted(runs, key=lambda run: (run["labels"], run["seed"])):
        alone, m2 = (run["q(y | x)"][part]["test"] for part in ("term alone", "M2"))
        rule, same = run["Bayes' rule"], run["q(y | x), the rows of Bayes' rule"]
        cells = [f"{run['labels']:,}", run["seed"], percent(alone), percent(m2)]
        cells += [
            f"{m2['log_score']:.3f} ± {m2['log_score_se']:.3f}",
            f"{m2['ece']:.4f} ({m2['ece_if_calibrated']:.4f})",
        ]
        cells += [
            f"{percent(rule)}, {percent(same)}",
            run["settings"]["joint"],
            " + ".join(f"{t:.0f}" for t in run["cpu_seconds"].values()),
        ]
        lines.append("| " + " | ".join(map(str, [*cells, PUBLISHED.get(run["labels"], "")])) + " |")
    return "\n".join(lines) + "\n"


def main(labels: list[int], seeds: list[int], s: Settings, out: Path) -> None:
    """Each run joins those in the folder's .json, of which the table is; log p(x) and reliability are of the first."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "semi_supervised.json"
    runs = json.loads(kept.read_text()) if kept.exists() else []
    for count, seed in ((count, seed) for count in labels for seed in seeds):
        found, vae, images = one_run(count, seed, s)
        same = [i for i, run in enumerate(runs) if (run["labels"], run["seed"]) == (found["labels"], seed)]
        if same:
            runs[same[0]] = found
        else:
            runs.append(found)
        if runs[0] is found:
            score(found, vae, images, s)
            draw_reliability(found, s, out)
        draw_digits(vae, found["labels"], images.shape, out)
        kept.write_text(json.dumps(runs, indent=1, default=str) + "\n")
        (out / "table.md").write_text(table(runs), encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[600], help="of all classes together; 0: all there are"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the choice of labels, and of training")
    parser.add_argument("--epochs", type=int, default=Settings.joint, help="of M2, the third part of training")
    parser.add_argument("--out", type=Path, default=Path())
    said = parser.parse_args()
    torch.set_num_threads(1)
    main(
        [100] if said.quick else said.labels, said.seeds, QUICK if said.quick else Settings(joint=said.epochs), said.out
    )
