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
        classifier=Conditional(
            MLP(z1, 10, (s["wide"],)), lambda h: dist.Categorical(logits=h), event_dim=0
        ),  # q(y | z1)
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


def by_labels_alone(features: torch.Tensor, y: torch.Tensor, test: torch.Tensor, truth: torch.Tensor) -> float:
    """The error of an SVM trained on the labelled rows and nothing else, as a share."""
    known = y != MISSING
    machine = SVC(C=10.0).fit(features[known].numpy(), y[known].numpy())
    return 1 - machine.score(test.numpy(), truth.numpy())


def repeated(x: torch.Tensor, y: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Labelled rows come again, until they are such a share of an epoch; the others once."""
    known = (y != MISSING).nonzero().flatten()
    again = known.repeat(max(0, round(share * (len(y) - len(known)) / ((1 - share) * len(known))) - 1))
    return torch.cat([x, x[again]]), torch.cat([y, y[again]])


def one_run(m1: VAE, each: int | None, seed: int, images, test: torch.Tensor, s: dict) -> tuple[Stacked, dict]:
    """M2 with so many labels of each class (None: with all), and how well it classifies."""
    truth, labels = (torch.as_tensor(part.y).long() for part in (images.test, images.train))
    truth = truth[: len(test)]
    torch.manual_seed(seed)
    y = labels if each is None else keep_labels(labels, each, seed)
    m2, objective = make_m2(s), Bound(elbo, terms=[supervised(s["alpha"])])
    x, context = repeated(images.train.x, y, s["share"])
    cost = train(m2, x, context, objective=objective, transform=Draws(m1), seed=seed, seconds=s["m2_seconds"])
    stacked = Stacked(m1, m2)
    torch.manual_seed(seed)
    q = classification(stacked.classify(test), truth)
    found = {"labels": int((y != MISSING).sum()), "seed": seed, "cost": cost, "q": q.to_dict()}
    if each is not None:
        known = y != MISSING
        ink, seen = images.train.x[known], (encode(m1, part) for part in (images.train.x[known], test))
        found["svm_pixels"] = by_labels_alone(ink, y[known], test, truth)
        found["svm_z1"] = by_labels_alone(next(seen), y[known], next(seen), truth)
    some, theirs = test[: s["bayes"]], truth[: s["bayes"]]
    rule = class_posterior(stacked.model, stacked.guide, some, num_samples=s["num_samples"], verbose=False)
    found |= {"rule": classification(rule.probs, theirs).to_dict(), "rule_flagged": len(rule.flagged)}
    found["q_there"] = classification(stacked.classify(some), theirs).to_dict()
    published = PUBLISHED.get(found["labels"])
    print(
        f"{found['labels']} labels, seed {seed}: {cost['epochs']} epochs in {cost['cpu_seconds']:.0f} s of CPU\n"
        f"  q(y | x): {q}\n  Bayes' rule, {len(some)} rows: error {1 - found['rule']['accuracy']:.2%}, q(y | x) there "
        f"{1 - found['q_there']['accuracy']:.2%}; {found['rule_flagged']} rows flagged\n"
        f"  labels alone, SVM: {found.get('svm_pixels', 1):.2%} of pixels, {found.get('svm_z1', 1):.2%} of z1"
        f"\n  published, M2 and M1+M2: {published}",
        flush=True,
    )
    return stacked, found


PAGE = """# MNIST with few labels: M1+M2

`{command}`.
{images} images, dynamically binarized; M1 once in {m1:.0f} s of CPU, then M2 in some {m2:.0f} s for each line; one thread,
{rows:,} test rows, errors ± one standard error over rows; a seed is one of labels and training. Published figures are means
over choices of labels (Kingma et al., 2014, https://arxiv.org/abs/1406.5298): M2 of pixels, and M1+M2, which this is.

| labels | seed | error of q(y \\| x) | log score, nats | ECE (if calibrated) | SVM of pixels, of z1 | published: M2, M1+M2 |
|--:|--:|--:|--:|--:|--:|--:|
{lines}
{means}
The SVMs are trained on the labels alone.

By Bayes' rule, from log p(x, y) of each class with K = {k}, on the first {bayes} test rows, beside q(y | x) on the same:

| labels | seed | p(y \\| x), by Bayes' rule | q(y \\| x) | rows flagged |
|--:|--:|--:|--:|--:|
{rules}

log p(x) of {bayes} test rows, K = {k}, in nats, with {of} labels:

| | |
|---|---|
| M1 alone, a standard normal prior | {log_px_m1} |
| M1+M2, y and z2 summed and averaged out | {log_px} |
| {ends} rows between two ends | {bracket} |

![Reliability of both](semi_supervised_reliability.png)
![E[x | z1] by class](semi_supervised.png)
"""


def line(f: dict) -> str:
    q, published = f["q"], PUBLISHED.get(f["labels"])
    alone = "" if "svm_z1" not in f else f"{f['svm_pixels']:.2%}, {f['svm_z1']:.2%}"
    said = "" if published is None else f"{published[0]} %, {published[1]} %"
    return (
        f"| {f['labels']:,} | {f['seed']} | {1 - q['accuracy']:.2%} ± {q['accuracy_se']:.2%} | {q['log_score']:.3f} ± "
        f"{q['log_score_se']:.3f} | {q['ece']:.4f} ({q['ece_if_calibrated']:.4f}) | {alone} | {said} |"
    )


def rule_line(f: dict) -> str:
    rule, q = (f"{1 - f[key]['accuracy']:.2%} ± {f[key]['accuracy_se']:.2%}" for key in ("rule", "q_there"))
    return f"| {f['labels']:,} | {f['seed']} | {rule} | {q} | {f['rule_flagged']} of {f['rule']['rows']} |"


def mean_line(runs: list[dict]) -> str:
    """Errors over seeds, where there are several."""
    lines = []
    for labels in dict.fromkeys(f["labels"] for f in runs):
        errors = [100 * (1 - f["q"]["accuracy"]) for f in runs if f["labels"] == labels]
        if len(errors) > 1:
            error = statistics.stdev(errors) / len(errors) ** 0.5
            lines.append(
                f"{labels:,} labels: {statistics.fmean(errors):.2f} ± {error:.2f} % (over {len(errors)} seeds)."
            )
    return "\n" + " ".join(lines) if lines else ""


@torch.no_grad()
def digits_by_class(stacked: Stacked, shape: tuple[int, ...]):
    """Ten draws of each class."""
    torch.manual_seed(0)
    m2, y = stacked.m2, torch.eye(10).repeat_interleave(10, 0)
    z1 = m2.likelihood(m2.prior().sample((100,)), y).sample()
    x = stacked.m1.likelihood(z1).mean.numpy().reshape(10, 10, -1)
    title = "E[x | z1], z1 ~ p(z1 | z2, y), z2 ~ p(z2): a class y in each row"
    return image_grid(list(x), [str(c) for c in range(10)], shape, title)


def main(s: dict, each: list[int | None], seeds: dict[int | None, int], out: Path, command: str) -> None:
    images = load(s["data"], binarization="dynamic", verbose=False)
    x, test = images.train.x, images.test.x[: s["rows"]]
    torch.manual_seed(0)
    m1 = make_m1(x.shape[1], s)
    m1.likelihood.net[-1].bias.data.copy_(x.mean(0).clamp(1e-3, 1 - 1e-3).logit())
    cost = train(m1, x, transform=images.transform, seconds=s["m1_seconds"])
    m1.requires_grad_(False)
    print(f"M1: {cost['epochs']} epochs in {cost['cpu_seconds']:.0f} s of CPU", flush=True)
    runs, kept = [], None
    for count in each:
        for seed in range(seeds.get(count, 1)):
            stacked, found = one_run(m1, count, seed, images, test, s)
            runs.append(found)
            if kept is None:
                kept = stacked, found
    stacked, found = kept
    some, options = test[: s["bayes"]], {"num_samples": s["num_samples"], "verbose": False}
    plain = log_likelihood(m1.model, m1.guide, some, **options)
    both = log_likelihood(stacked.model, stacked.guide, some, **options)
    between = bracket(
        stacked.model, stacked.guide, some[: s["ends"]], num_temperatures=s["temperatures"], num_chains=4,
        leapfrog_steps=4, **options,
    )  # fmt: skip
    print(f"M1: {plain}\nM1+M2: {both}\n{between}")

    out.mkdir(parents=True, exist_ok=True)
    flagged = f"Bayes' rule, {found['rule_flagged']} of {found['rule']['rows']} rows flagged"
    save(reliability_diagram({"q(y | x)": found["q"], flagged: found["rule"]}), out / "semi_supervised_reliability.png")
    picture = save(digits_by_class(stacked, images.shape), out / "semi_supervised.png")
    facts = {"m1": cost, "runs": runs, "log_px_m1": plain.summary(), "log_px": both.summary()}
    (out / "semi_supervised.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")
    page = PAGE.format(
        command=command, images=f"{len(x):,}", m1=cost["cpu_seconds"],
        m2=statistics.fmean(f["cost"]["cpu_seconds"] for f in runs), rows=len(test), lines="\n".join(map(line, runs)),
        means=mean_line(runs), k=s["num_samples"], bayes=len(some), rules="\n".join(map(rule_line, runs)), ends=s["ends"],
        of=f"{found['labels']:,}", log_px_m1=str(plain).split(" | ")[0], log_px=str(both).split(" | ")[0],
        bracket=" | ".join(str(between).split(" | ")[:1]),
    )  # fmt: skip
    (out / "README.md").write_text(page, encoding="utf-8")
    print(f"Picture: {picture}")


MNIST = {
    "data": "mnist", "z1": 50, "z2": 16, "wide": 300, "narrow": 128, "alpha": 5.0, "share": 0.1, "m1_seconds": 240,
    "m2_seconds": 90, "rows": 10_000, "bayes": 500, "num_samples": 100, "ends": 10, "temperatures": 60,
}  # fmt: skip
QUICK = {
    "data": "digits", "z1": 4, "z2": 2, "wide": 16, "narrow": 16, "alpha": 5.0, "share": 0.1, "m1_seconds": 0.1,
    "m2_seconds": 0.1, "rows": 30, "bayes": 5, "num_samples": 5, "ends": 2, "temperatures": 3,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[600, 100, 1000, 0], help="of all classes together; 0: all"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of 600 labels; the others have one")
    parser.add_argument("--out", type=Path, default=Path())
    said = parser.parse_args()
    torch.set_num_threads(1)
    labels = " ".join(map(str, said.labels))
    command = f"python examples/semi_supervised.py --labels {labels} --seeds {said.seeds} --out {said.out}"
    if said.quick:
        main(QUICK, [2, None], {}, said.out, command)
    else:
        main(MNIST, [n // 10 or None for n in said.labels], {60: said.seeds}, said.out, command)
