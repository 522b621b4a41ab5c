"""Clusters as a prior: a GMVAE of digits beside the same VAE with a standard normal prior, at equal CPU time.

Both are 64-128-8 in black and white, trained by IWAE with K = 8. The mixture spends two fifths of its time as that VAE, has its
ten components put where a Gaussian mixture of the posterior means lies (as Jiang et al., 2017), and trains on. What is
compared: log p(x) of test rows, paired row by row; and how well clusters agree with the labels, which nobody was shown: by
normalised mutual information (NMI), and by accuracy, each cluster named after the digit that makes most of them right. The
VAE's clusters are k-means' and a Gaussian mixture's, of its posterior means.

    python examples/mixture.py --seconds 30 --seeds 3 --out results/mixture
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import confusion_matrix, normalized_mutual_info_score
from sklearn.mixture import GaussianMixture
from torch import nn

from pyro_vae import (
    GMVAE,
    MLP,
    VAE,
    Bound,
    Classes,
    Conditional,
    StandardNormal,
    StopTraining,
    TimeBudget,
    adam,
    bernoulli,
    compare,
    cosine,
    encode,
    fit,
    iwae,
    latents,
    log_likelihood,
    normal,
    warmup,
)
from pyro_vae.common.flagged import format_both_errors
from pyro_vae.data import load
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid

CLUSTERS, PRETRAINED = 10, 0.4  # the share of its time that the mixture spends without its components


def plain_vae(width: int, dims: int) -> VAE:
    return VAE(
        prior=StandardNormal(dims),
        likelihood=Conditional(MLP(dims, 64, (width,)), bernoulli),
        posterior=Conditional(MLP(64, 2 * dims, (width,)), normal),
    )


def mixture_of(vae: VAE, x: torch.Tensor, seed: int) -> GMVAE:
    """The VAE with components in the place of its prior, where a Gaussian mixture of its posterior means has them."""
    found = GaussianMixture(CLUSTERS, covariance_type="diag", random_state=seed, reg_covar=1e-2).fit(
        encode(vae, x).numpy()
    )
    table = nn.Linear(CLUSTERS, 2 * found.means_.shape[1], bias=False)  # y, one-hot, to the mean and scale of p(z | y)
    scale = torch.as_tensor(found.covariances_).sqrt()
    features = torch.cat([torch.as_tensor(found.means_), scale.expm1().log()], 1)  # normal's scale is log(1 + e^s)
    table.weight.data.copy_(features.T)
    return GMVAE(Classes(CLUSTERS, learned=True), Conditional(table, normal), vae.likelihood, vae.posterior)


def train(vae, data, seed: int, budget: TimeBudget, until: float = 1.0) -> int:
    """Train until that part of the budget is spent, the learning rate following it; return the epochs."""

    def watch(record: dict) -> None:
        if budget.spent() >= until:
            raise StopTraining(f"{until} of the time is used up")

    result = fit(
        vae, data.train.x, objective=Bound(iwae, 8), optimizer=adam(3e-3), epochs=100_000, batch_size=100, seed=seed,
        transform=data.transform, schedule=budget.schedule(warmup(cosine)), on_epoch=watch, engine="trace", verbose=False,
    )  # fmt: skip
    return len(result.history)


def agreement(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """NMI, and accuracy with its standard error over rows under the best naming of clusters."""
    table = confusion_matrix(labels, clusters, labels=range(CLUSTERS))
    right = table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)
    nmi = float(normalized_mutual_info_score(labels, clusters))
    return {"nmi": nmi, "accuracy": float(right), "accuracy_se": float((right * (1 - right) / len(labels)) ** 0.5)}


def clusters_of(name: str, vae, x: torch.Tensor, seed: int) -> dict[str, np.ndarray]:
    """A cluster for each row: of the mixture by q(y | x), of the VAE by what sklearn makes of its posterior means."""
    if name == "GMVAE":
        torch.manual_seed(seed)
        return {"GMVAE": vae.classify(x).argmax(-1).numpy()}
    means = encode(vae, x).numpy()
    mixture = GaussianMixture(CLUSTERS, covariance_type="diag", random_state=seed, reg_covar=1e-2)
    return {
        "VAE, k-means": KMeans(CLUSTERS, n_init=10, random_state=seed).fit_predict(means),
        "VAE, Gaussian mixture": mixture.fit_predict(means),
    }


def one_seed(seed: int, seconds: float, data, rows: torch.Tensor, s: dict) -> dict:
    """Both models of a seed, each trained for `seconds`, by name; with the epochs that each had."""
    torch.manual_seed(seed)
    vae = plain_vae(s["width"], s["dims"])
    first = plain_vae(s["width"], s["dims"])
    first.load_state_dict(vae.state_dict())  # both start alike
    epochs = {"VAE": train(vae, data, seed, TimeBudget(seconds))}
    budget = TimeBudget(seconds)
    epochs["GMVAE"] = train(first, data, seed, budget, PRETRAINED)
    mixed = mixture_of(first, rows, seed)
    epochs["GMVAE"] += train(mixed, data, seed, budget)
    return {"models": {"VAE": vae, "GMVAE": mixed}, "epochs": epochs}


def mean_and_error(values: list[float], digits: int = 3) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{error}"


def main(seconds: float, seeds: int, s: dict, out: Path) -> None:
    data, still = (load("digits", binarization=b, verbose=False) for b in ("dynamic", "static"))
    everything = torch.cat([still.train.x, still.validation.x, still.test.x])
    labels = np.concatenate([np.asarray(part.y) for part in (still.train, still.validation, still.test)])
    x = data.test.x[: s["rows"]]
    agreed, differences, facts = defaultdict(list), [], []
    for seed in range(seeds):
        trained = one_seed(seed, seconds, data, still.train.x, s)
        evidence = {}
        for name, vae in trained["models"].items():
            pair = vae.model, vae.guide
            evidence[name] = log_likelihood(*pair, x, num_samples=s["num_samples"], verbose=False)
            facts.append({"seed": seed, "model": name, "epochs": trained["epochs"][name], **evidence[name].summary()})
            print(
                f"seed {seed}, {name:6} {trained['epochs'][name]:4} epochs, log p(x) {format_both_errors(facts[-1])}, "
                f"ELBO {facts[-1]['elbo']:.2f}, {facts[-1]['rows_flagged']} of {len(x)} rows flagged"
            )
            for how, found in clusters_of(name, vae, everything, seed).items():
                agreed[how].append(agreement(found, labels) | {"used": len(set(found.tolist()))})
        print(compare(evidence))
        differences.append((evidence["GMVAE"].log_px - evidence["VAE"].log_px).mean().item())
    print(f"\nGMVAE minus VAE, log p(x), mean over seeds ± s.e. over seeds: {mean_and_error(differences)}")
    print(f"{len(labels)} rows, labels unseen: mean over seeds ± s.e. over seeds")
    print(f"{'':24}{'NMI':18}{'accuracy':18}{'clusters used':14}")
    for how, found in agreed.items():
        columns = [[one[key] for one in found] for key in ("nmi", "accuracy", "used")]
        print(
            f"{how:24}{mean_and_error(columns[0]):18}{mean_and_error(columns[1]):18}{statistics.fmean(columns[2]):.1f}"
        )
    mixed = trained["models"]["GMVAE"]
    print(latents(mixed.model, mixed.guide, x))
    out.mkdir(parents=True, exist_ok=True)
    found = {"runs": facts, "clusters": agreed, "differences": differences}
    (out / "mixture.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    print(f"Picture: {save(picture(mixed, data.shape), out / 'mixture.png')}")


@torch.no_grad()
def picture(vae: GMVAE, shape: tuple[int, ...]):
    """Each component: the mean of x at its centre, and at nine of its draws."""
    torch.manual_seed(0)
    p = vae.components(torch.eye(CLUSTERS))
    z = torch.cat([p.mean[None], p.sample((9,))]).transpose(0, 1)  # (C, 10, d)
    names = [f"y = {c} ({share:.0%})" for c, share in enumerate(vae.classes().probs.tolist())]
    title = "E[x | z] of each component: at its mean, and at nine draws z ~ p(z | y)"
    return image_grid(list(vae.likelihood(z).mean.numpy()), names, shape, title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU time of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--quick", action="store_true", help="a short form")
    said = parser.parse_args()
    torch.set_num_threads(1)  # CPU time is then the work done
    full = {"width": 128, "dims": 8, "rows": 180, "num_samples": 2000}
    quick = {"width": 16, "dims": 2, "rows": 10, "num_samples": 20}
    main(0.1, 1, quick, said.out) if said.quick else main(said.seconds, said.seeds, full, said.out)
