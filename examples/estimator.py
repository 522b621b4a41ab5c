"""Outliers by log p(x): a VAE as an estimator of scikit-learn, beside IsolationForest, on data whose outliers are known.

Each model sees half of the ordinary rows and no outlier (breast cancer: benign is ordinary; digits: 0 to 4 are, 5 to 9 are
not), and scores the other half and the outliers. How well a score tells them apart is the area under the ROC curve, over 5
splits with a seed each; ± is the standard error over the splits, whose rows overlap. Settings are fixed beforehand: nobody's
test rows chose them. log p(x) is a lower bound that is loosest for what the model knows least: flagged rows are counted.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from pyro_vae import VAEEstimator, binomial
from pyro_vae.plots.figures import BLUE, GREY, ORANGE, figure, save

FULL = {"epochs": 100, "num_samples": 500, "splits": 5, "most": None}
QUICK = {"epochs": 1, "num_samples": 25, "splits": 2, "most": 30}
COMMAND = "cd results/estimator && OMP_NUM_THREADS=1 python ../../examples/estimator.py"
VAE = {"latent_dim": 4, "hidden": (64,), "learning_rate": 3e-3, "batch_size": 64}


def breast_cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return x[y == 1], x[y == 0], {"likelihood": "student_t"}


def digits():
    x, y = load_digits(return_X_y=True)
    return x[y < 5], x[y >= 5], {"likelihood": binomial(16)}


DATA = {"breast cancer": breast_cancer, "digits": digits}


def split(name: str, seed: int, plan: dict) -> dict:
    """Train on half of the ordinary rows; the areas of both models on the other half and the outliers, and log p(x)."""
    ordinary, outliers, options = DATA[name]()
    train, held_out = train_test_split(ordinary, test_size=0.5, random_state=seed)
    held_out, outliers = held_out[: plan["most"]], outliers[: plan["most"]]
    x, is_outlier = np.concatenate([held_out, outliers]), np.repeat([0, 1], [len(held_out), len(outliers)])
    vae = VAEEstimator(**VAE, **options, epochs=plan["epochs"], num_samples=plan["num_samples"], random_state=seed)
    evidence = vae.fit(train).evidence(x)  # as score_samples, with errors and flags
    forest = IsolationForest(random_state=seed).fit(train)
    log_px, flagged = evidence.log_px.numpy(), np.isin(np.arange(len(x)), evidence.flagged.numpy())
    return {
        "VAE": roc_auc_score(is_outlier, -log_px),
        "IsolationForest": roc_auc_score(is_outlier, -forest.score_samples(x)),
        "flagged, ordinary": flagged[is_outlier == 0].mean(),
        "flagged, outliers": flagged[is_outlier == 1].mean(),
        "mc_se, ordinary": float(evidence.mc_se[is_outlier == 0].median()),
        "scores": {"ordinary": log_px[is_outlier == 0].tolist(), "outliers": log_px[is_outlier == 1].tolist()},
        "rows": [len(train), len(held_out), len(outliers)],
    }


def summary(splits: list[dict]) -> dict:
    """Mean and standard error over splits, of each model and of their paired difference."""
    area = {name: np.array([s[name] for s in splits]) for name in ("VAE", "IsolationForest")}
    area["VAE - IsolationForest"] = area["VAE"] - area["IsolationForest"]
    found = {name: {"auc": a.mean(), "se": a.std(ddof=1) / len(a) ** 0.5} for name, a in area.items()}
    health = ("flagged, ordinary", "flagged, outliers", "mc_se, ordinary")
    return found | {name: float(np.mean([s[name] for s in splits])) for name in health} | {"rows": splits[0]["rows"]}


def table(results: dict) -> str:
    """Format one line a data set."""
    head = ["data", "train / ordinary / outliers", "VAE, AUC", "IsolationForest, AUC", "difference, paired"]
    head += ["rows flagged: ordinary / outliers"]
    lines = [head, ["---"] * len(head)]
    for name, s in results["data"].items():
        areas = [f"{s[m]['auc']:.3f} ± {s[m]['se']:.3f}" for m in ("VAE", "IsolationForest")]
        d = s["VAE - IsolationForest"]
        flags = f"{s['flagged, ordinary']:.0%} / {s['flagged, outliers']:.0%}"
        lines.append([name, " / ".join(map(str, s["rows"])), *areas, f"{d['auc']:+.3f} ± {d['se']:.3f}", flags])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(first: dict[str, dict]):
    """log p(x) of ordinary rows and outliers, of the first split of each data set."""
    fig = figure(4.6 * len(first), 3.4)
    for ax, (name, found) in zip(np.atleast_1d(fig.subplots(1, len(first))), first.items(), strict=True):
        every = np.concatenate(list(found["scores"].values()))
        low, bins = np.quantile(every, 0.02), np.linspace(np.quantile(every, 0.02), every.max(), 40)
        for (kind, scores), color in zip(found["scores"].items(), (BLUE, ORANGE), strict=True):
            shown = np.maximum(scores, low)  # the lowest fiftieth of all stands in the first bin
            ax.hist(shown, bins=bins, alpha=0.6, color=color, density=True, label=f"{kind} ({len(scores)})")
        ax.set(xlabel="log p(x) at least, nats", title=f"{name}, first split: AUC {found['VAE']:.3f}")
        ax.set_yticks([])
        ax.set_ylabel("share of rows per nat (area 1 each)", fontsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.axvline(
            np.quantile(found["scores"]["ordinary"], 0.05), color=GREY, lw=1, ls="--", label="5 % of ordinary rows"
        )
        ax.legend(frameon=False, fontsize=8)
    return fig


def main(plan: dict) -> None:
    start = time.process_time()
    splits = {name: [split(name, seed, plan) for seed in range(plan["splits"])] for name in DATA}
    results = {"command": COMMAND, "plan": plan, "vae": VAE, "data": {n: summary(found) for n, found in splits.items()}}
    results |= {"seconds": round(time.process_time() - start)}
    print(table(results))
    Path("results.json").write_text(json.dumps(results, indent=1) + "\n")
    Path("table.md").write_text(table(results) + "\n")
    save(draw({name: found[0] for name, found in splits.items()}), Path("estimator.png"))
    print(f"estimator.png, results.json, table.md: {results['seconds']} s of CPU time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(QUICK if parser.parse_args().quick else FULL)
