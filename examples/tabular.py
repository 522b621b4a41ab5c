"""Real tables with holes: log p(x_obs) and imputation on scikit-learn's wine and breast-cancer data, next to its own models.

Fifths of the rows are held out in turn (all five of wine, three of the larger set, for the time they take); a fifth of the
other rows validates. Of all entries 0, 10 or 30 % are removed completely at random, in all rows, the same for all models. A
row's score is log p of what is left: of x_j / s_j, with s_j the standard deviation of column j over the training rows.

VAEs: `columns(...)`, each column normal, student_t or log_normal, whichever fits the training column best on its own; or
student_t for all. SkipMissing scores what is observed, WithMask tells the encoder. Both networks add a linear map to an MLP, so
that factor analysis is the case without the MLP. IWAE, no early stopping: few epochs with much weight decay or more with less,
whichever is better on validation rows, nothing removed. log p(x_obs) is by importance sampling: a lower bound in expectation.

Peers: FactorAnalysis and GaussianMixture, which take no NaN: fitted to training rows that IterativeImputer completed, scored by
their exact Gaussian marginals. They have their pick, by validation log p(x_obs), of number, shape and floor of covariances, of
the logarithm for the columns that are log_normal to the VAE, and of imputation by mean or by draw.
"""

import argparse
import json
import math
import os
import platform
import time
import warnings
from functools import partial
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import sklearn
import torch
from scipy import stats
from sklearn import datasets, decomposition, impute, mixture, model_selection
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (impute.IterativeImputer is there only with it)
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.common.flagged import MOST
from pyro_vae.plots.figures import BLUE, GREY, INK, ORANGE, figure, save
from pyro_vae.training.schedules import cosine, warmup

DATA = {"wine": (datasets.load_wine, 5), "breast cancer": (datasets.load_breast_cancer, 3)}  # and folds held out, of 5
FAMILY = {"normal": dist.Normal, "student_t": partial(dist.StudentT, 5.0), "log_normal": dist.LogNormal}
SETTINGS = ({"epochs": 30, "weight_decay": 1.0}, {"epochs": 60, "weight_decay": 0.1})
FULL = {"rates": (0.0, 0.1, 0.3), "folds": 5, "settings": SETTINGS, "num_samples": 5000, "every": 1, "rounds": 10}
QUICK = {"rates": (0.1,), "folds": 1, "settings": ({"epochs": 1},), "num_samples": 10, "every": 29, "rounds": 1}
VAES, PEERS = ("VAE, columns", "VAE, student_t"), ("FactorAnalysis", "GaussianMixture")
MODELS = (*VAES, *PEERS, "IterativeImputer", "mean")
MARKS = dict(zip(MODELS, "ovoDsX", strict=True))  # beside the colours, for readers to whom these look alike
COLORS = dict(zip(MODELS, (BLUE, "#63b3ed", ORANGE, "#9c4221", INK, GREY), strict=True))
COMMAND = "cd results/tabular && OMP_NUM_THREADS=1 python ../../examples/tabular.py"


def marginal(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log π_k + log N(x_obs; μ_k, Σ_k), ``(N, K)``; x - μ_k with 0 where x is NaN, and Σ_k with the identity there."""
    seen = ~x.isnan()[:, None]
    cov = torch.where(seen[..., None] & seen[..., None, :], covariances, torch.eye(x.shape[-1], dtype=x.dtype))
    residual = torch.where(seen, x[:, None] - means, 0.0)
    log_p = dist.MultivariateNormal(torch.zeros_like(residual), cov, validate_args=False).log_prob(residual)
    holes = (~seen).sum(-1).to(x)  # each has added log N(0; 0, 1)
    return weights.log() + log_p + holes * math.log(2 * math.pi) / 2, residual, cov


def mixture_log_prob(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """log p(x_obs) = log Σ_k π_k N(x_obs; μ_k, Σ_k) for each row; NaN is what was not observed."""
    return marginal(x, weights, means, covariances)[0].logsumexp(-1)


def mixture_mean(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor, logs: Tensor) -> Tensor:
    """E[x | x_obs], or E[e^x | x_obs] in the columns `logs`, ``(N, d)``: a mean of each component's, by responsibility."""
    log_joint, residual, cov = marginal(x, weights, means, covariances)
    cross = torch.where(~x.isnan()[:, None, :, None], covariances, 0.0)  # Σ_k from observed rows to all columns
    gain = torch.linalg.solve(cov, cross)
    loc = means + (gain * residual[..., None]).sum(-2)
    var = covariances.diagonal(dim1=-2, dim2=-1) - (gain * cross).sum(-2)
    each = torch.where(logs, (loc + var / 2).exp(), loc)
    return (log_joint.softmax(-1)[..., None] * each).sum(1)


def gaussians(model) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, d) and covariances (K, d, d) of a fitted FactorAnalysis or GaussianMixture."""
    if isinstance(model, decomposition.FactorAnalysis):
        parts = np.ones(1), model.mean_[None], model.get_covariance()[None]
    else:
        shape = {"full": lambda c: c, "diag": lambda c: c[:, :, None] * np.eye(c.shape[1]), "tied": lambda c: c[None]}
        covariances = shape[model.covariance_type](model.covariances_)
        parts = model.weights_, model.means_, np.broadcast_to(covariances, (len(model.means_), *covariances.shape[1:]))
    return tuple(torch.tensor(p, dtype=torch.float64) for p in parts)


def to_logs(rows: np.ndarray, logs: np.ndarray) -> np.ndarray:
    return np.where(logs, np.log(np.where(logs, rows, 1.0)), rows)


def candidates(kind: str) -> list:
    if kind == "FactorAnalysis":
        return [decomposition.FactorAnalysis(k, max_iter=1000, random_state=0) for k in (1, 2, 4, 8, 12, 16)]
    grid = [("full", k, r) for k in (1, 2, 3, 4, 6) for r in (1e-4, 1e-3, 1e-2, 1e-1)]
    grid += [("tied", k, 1e-4) for k in (2, 3, 4, 6)] + [("diag", k, 1e-2) for k in (2, 3, 4, 6, 10)]
    return [mixture.GaussianMixture(k, covariance_type=c, reg_covar=r, random_state=0) for c, k, r in grid]


def peers(part: dict, every: int, rounds: int) -> dict:
    """Each peer's candidate of the best validation log p(x_obs): its held-out log p(x_obs), imputations and settings."""
    best, done = dict.fromkeys(PEERS, (-math.inf, None)), {}
    for log, draw in product((False, True), (False, True)[: 1 + np.isnan(part["train"]).any()]):
        logs = log & (part["names"] == "log_normal")
        train, validation, test = (to_logs(part[name], logs) for name in ("train", "validation", "test"))
        imputer = impute.IterativeImputer(sample_posterior=draw, max_iter=rounds, random_state=0)
        completed = imputer.fit_transform(train) if np.isnan(train).any() else train
        for kind, model in [(k, model) for k in PEERS for model in candidates(k)[::every]]:
            gaussian = gaussians(model.fit(completed))
            value = log_density(validation, gaussian, logs).mean()
            if value > best[kind][0]:
                said = f"{model}, logs={log}, imputed by {'draw' if draw else 'mean'}"
                best[kind] = value, (test, gaussian, logs, " ".join(said.split()))
    for kind, (_, (test, gaussian, logs, settings)) in best.items():
        filled = mixture_mean(torch.from_numpy(test), *gaussian, torch.from_numpy(logs)).numpy()
        done[kind] = {"log_px": log_density(test, gaussian, logs), "filled": filled, "settings": settings}
    return done


def log_density(rows: np.ndarray, gaussian: tuple, logs: np.ndarray) -> np.ndarray:
    """log p(x_obs) for rows of x, or of y = log x in the columns `logs`: p(x) = p(y) / x."""
    return mixture_log_prob(torch.from_numpy(rows), *gaussian).numpy() - np.nansum(rows[:, logs], 1)


def best_family(column: np.ndarray) -> str:
    """Which of the families fits a training column best on its own, by maximum likelihood (a log_normal needs x > 0)."""
    x = column[~np.isnan(column)]
    y = np.log(np.where(x > 0, x, np.nan))
    normal, log_normal = (stats.norm.logpdf(c, c.mean(), c.std()).sum() for c in (x, y))
    student_t = stats.t.logpdf(x, *stats.t.fit(x, fix_df=5.0)).sum()
    return list(FAMILY)[np.nanargmax([normal, student_t, log_normal - y.sum()])]


def standardised(make, m: Tensor, s: Tensor):
    """The family `make(m + s loc, s scale)`: m and s are the training moments of x, or of log x for a log_normal."""

    def family(h: Tensor):
        loc, scale = h.chunk(2, -1)
        return make(m + s * loc, s * (nn.functional.softplus(scale) + 1e-3))

    return family


class Sum(nn.ModuleList):
    """A linear map plus an MLP."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__([nn.Linear(inputs, outputs), pv.MLP(inputs, outputs, hidden=(hidden,))])

    def forward(self, h: Tensor) -> Tensor:
        return self[0](h) + self[1](h)


class Standardise(nn.Module):
    """asinh (y - m) / s, y = x or log x: what the encoder sees; asinh brings outliers nearer."""

    def __init__(self, posterior: nn.Module, logs: Tensor, m: Tensor, s: Tensor) -> None:
        super().__init__()
        self.posterior, self.logs, self.m, self.s = posterior, logs, m, s

    def forward(self, x: Tensor):
        return self.posterior(((torch.where(self.logs, x.log(), x) - self.m) / self.s).asinh())


def make(names: np.ndarray, train: np.ndarray, latents: int = 12, hidden: int = 64) -> pv.VAE:
    d, logs = len(names), names == "log_normal"
    y = to_logs(train, logs)
    m, s = (torch.from_numpy(moment(y, 0)).float() for moment in (np.nanmean, np.nanstd))
    runs = [(name, list(run)) for name, run in groupby(range(d), names.__getitem__)]  # neighbours alike are one block
    table = pv.likelihoods.columns(
        [(standardised(FAMILY[n], m[run], s[run]), 2 * len(run), len(run)) for n, run in runs]
    )
    encoder = pv.Conditional(pv.WithMask(Sum(2 * d, 2 * latents, hidden)), pv.likelihoods.normal)
    return pv.VAE(
        prior=pv.StandardNormal(latents),
        likelihood=pv.SkipMissing(pv.Conditional(Sum(latents, 2 * d, hidden), table)),
        posterior=Standardise(encoder, torch.from_numpy(logs), m, s),
    )


def trained(names: np.ndarray, train: np.ndarray, epochs: int, weight_decay: float = 1.0) -> pv.VAE:
    torch.manual_seed(0)
    vae, objective = make(names, train), pv.Bound(pv.iwae, 8, estimator=pv.dreg)
    rows, optimizer = torch.from_numpy(train).float(), partial(torch.optim.AdamW, lr=0.01, weight_decay=weight_decay)
    how = {"epochs": epochs, "batch_size": 32, "schedule": warmup(cosine), "verbose": False}
    pv.fit(vae, rows, objective=objective, optimizer=optimizer, **how)
    return vae


def score(vae: pv.VAE, rows: np.ndarray, num_samples: int):
    x = torch.from_numpy(rows).float()
    return pv.log_likelihood(vae.model, vae.guide, x, num_samples=num_samples, verbose=False)


def best_vae(names: np.ndarray, part: dict, settings: tuple[dict, ...]) -> tuple[pv.VAE, dict]:
    """Of VAEs trained by each of the settings, the one of the best validation log p(x_obs)."""
    tried = [(trained(names, part["train"], **each), each) for each in settings]
    return max(tried, key=lambda t: score(t[0], part["validation"], 1000).log_px.mean())


def split(x: np.ndarray, hole: np.ndarray, fold: int) -> dict:
    """The rows of a fold, in training standard deviations, with holes and (the held-out ones) without; each column's family."""
    rest, test = list(model_selection.KFold(5, shuffle=True, random_state=0).split(x))[fold]
    rest = np.random.default_rng(fold).permutation(rest)
    train, validation = rest[len(rest) // 5 :], rest[: len(rest) // 5]
    x = x / x[train].std(0)  # the unit: the same for every rate of holes
    holed = np.where(hole, np.nan, x)
    names = np.array([best_family(column) for column in holed[train].T])
    rows = {"train": holed[train], "validation": holed[validation], "test": holed[test], "whole": x[test]}
    return rows | {"names": names, "rows": test}


def run_fold(part: dict, chosen: dict, plan: dict) -> dict:
    """Each model's held-out log p(x_obs) and imputations."""
    done = peers(part, plan["every"], plan["rounds"])
    for name, names in zip(VAES, (part["names"], np.full(len(part["names"]), "student_t")), strict=True):
        vae, best = best_vae(names, part, chosen.get(name, plan["settings"]))
        chosen[name] = (best,)  # what nothing removed has chosen stays
        e = score(vae, part["test"], plan["num_samples"])
        filled = pv.impute_mean(vae, torch.from_numpy(part["test"]).float(), num_samples=plan["num_samples"])
        done[name] = {f: getattr(e, f).numpy() for f in ("log_px", "mc_se", "ess", "elbo")}
        done[name]["flagged"] = (~e.reliable).numpy()
        done[name] |= {"filled": filled.double().numpy(), "settings": str(best)}
    imputer = impute.IterativeImputer(max_iter=plan["rounds"], random_state=0).fit(part["train"])
    done["IterativeImputer"] = {"filled": imputer.transform(part["test"])}
    done["mean"] = {"filled": np.nanmean(part["train"], 0) + 0 * part["whole"]}
    missing = np.isnan(part["test"])
    for model in done.values():
        model["square"] = np.where(missing, (model.pop("filled") - part["whole"]) ** 2, 0.0).sum(1)
        model["holes"] = missing.sum(1)
    return done


def summary(folds: list[dict]) -> dict:
    """Means over all held-out rows, with their errors; differences are paired, row by row, to the better peer."""
    rows = {m: {k: np.concatenate([f[m][k] for f in folds]) for k in folds[0][m] if k != "settings"} for m in folds[0]}
    best = max(PEERS, key=lambda m: rows[m]["log_px"].mean())
    models = {name: scores(r, rows[best]) for name, r in rows.items()}
    for name in (*PEERS, *VAES):
        models[name]["folds"] = [f[name]["log_px"].mean() for f in folds]
        models[name]["settings"] = [f[name]["settings"] for f in folds]
    return {"rows": len(rows[best]["log_px"]), "best_peer": best, "models": models}


def scores(r: dict, best: dict) -> dict:
    """Means over rows, and their errors (the RMSE's is that of a ratio of sums, to first order)."""
    out = {}
    if "log_px" in r:
        difference = r["log_px"] - best["log_px"]
        out |= {"log_px": r["log_px"].mean(), "data_se": stats.sem(r["log_px"]), "mc_se": 0.0}
        out |= {"difference": difference.mean(), "difference_se": stats.sem(difference)}
    if "ess" in r:  # exact densities have none
        out |= {"mc_se": np.sqrt((r["mc_se"] ** 2).sum()) / len(r["mc_se"]), "elbo": r["elbo"].mean()}
        out |= {"ess_median": np.median(r["ess"]), "rows_flagged": int(r["flagged"].sum())}
    if holes := r["holes"].sum():
        rmse = math.sqrt(r["square"].sum() / holes)
        mse_se = stats.sem(r["square"] - rmse**2 * r["holes"]) * len(r["holes"]) / holes
        out |= {"rmse": rmse, "rmse_se": mse_se / (2 * rmse)}
    return out


def run(name: str, plan: dict) -> list[dict]:
    load, folds = DATA[name]
    x, cells, chosen = load().data, [], [{} for _ in range(folds)]
    noise = np.random.default_rng(0).random(x.shape)  # what is missing at 10 % is missing at 30 %
    for rate in plan["rates"]:
        start = time.process_time()
        parts = [split(x, noise < rate, fold) for fold in range(min(folds, plan["folds"]))]
        done = [run_fold(part, chosen[fold], plan) for fold, part in enumerate(parts)]
        kinds = {"families": [" ".join(part["names"]) for part in parts]}
        cells.append({"data": name, "missing": rate} | summary(done) | kinds)
        print("\n".join(lines(cells[-1])), f"[{time.process_time() - start:.0f} s]", flush=True)
    return cells


HEAD = ["data", "missing", "model", "log p(x_obs)", "± data", "± Monte Carlo", "minus best peer (paired)", "ELBO"]
HEAD += ["ESS median (rows flagged)", "RMSE of removed entries"]


def is_loose(cell: dict, s: dict) -> bool:
    """More than a tenth of the rows is flagged: a bound, loose by an amount that nobody knows."""
    return s.get("rows_flagged", 0) > MOST * cell["rows"]


def lines(cell: dict) -> list[str]:
    """A cell's lines of the table."""
    out = []
    for name, s in cell["models"].items():
        log_px = [f"{s['log_px']:.2f}", f"{s['data_se']:.2f}", f"{s['mc_se']:.2f}"] if "log_px" in s else [""] * 3
        paired = f"{s['difference']:+.2f} ± {s['difference_se']:.2f}" if s.get("difference") else ""
        if is_loose(cell, s):
            log_px, paired = [f"≥ {s['log_px']:.2f} (loose)", "", ""], f"{s['difference']:+.2f} (loose)"
        health = [f"{s['elbo']:.2f}", f"{s['ess_median']:.0f} ({s['rows_flagged']})"] if "elbo" in s else ["", ""]
        rmse = f"{s['rmse']:.3f} ± {s['rmse_se']:.3f}" if "rmse" in s else ""
        row = [cell["data"], f"{cell['missing']:.0%}", name, *log_px, paired, *health, rmse]
        if log_px[0] or rmse:
            out.append(f"| {' | '.join(row)} |")
    return out


def table(results: dict) -> str:
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join(head + [line for cell in results["cells"] for line in lines(cell)])


def draw(results: dict):
    """Above: log p(x_obs) minus the best peer's (hollow: a loose bound); below: RMSE of the removed entries; ± 2 s.e."""
    names = list(dict.fromkeys(c["data"] for c in results["cells"]))
    fig = figure(9.5, 6.4)
    axes = fig.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        cells = [c for c in results["cells"] if c["data"] == name]
        for ax, key, error in zip(axes[:, column], ("difference", "rmse"), ("difference_se", "rmse_se"), strict=True):
            here = [c for c in cells if key in c["models"]["VAE, columns"]]
            for i, cell in enumerate(here):
                models = {m: s for m, s in cell["models"].items() if key in s}
                for j, (m, s) in enumerate(models.items()):
                    at = i + 0.11 * (j - (len(models) - 1) / 2)
                    bound = key == "difference" and is_loose(cell, s)
                    bar, look = (
                        (None, {"marker": "^", "mfc": "white"}) if bound else (2 * s[error], {"marker": MARKS[m]})
                    )
                    ax.errorbar(at, s[key], bar, color=COLORS[m], ms=5, capsize=3, label=m, **look)
            ax.set_xticks(range(len(here)), [f"{c['missing']:.0%} missing" for c in here])
            ax.spines[["top", "right"]].set_visible(False)
        axes[0, column].axhline(0, color=GREY, lw=1, ls="--", zorder=0)
        axes[0, column].set_title(f"{name}: {cells[0]['rows']} held-out rows", fontsize=10)
    axes[0, 0].set_ylabel("log p(x_obs) minus best peer's,\nnats per row (hollow: at least)")
    axes[1, 0].set_ylabel("RMSE of removed entries,\nin standard deviations: lower is better")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return fig


def main(plan: dict) -> None:
    start = time.process_time()
    print(f"| {' | '.join(HEAD)} |")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=sklearn.exceptions.ConvergenceWarning)  # validation rows decide
        cells = [cell for name in DATA for cell in run(name, plan)]
    machine = f"CPU ({platform.machine()}), {os.cpu_count()} cores, {torch.get_num_threads()} thread"
    versions = {"torch": torch.__version__, "sklearn": sklearn.__version__}
    results = {"command": COMMAND, "seed": 0, "num_samples": plan["num_samples"]} | {
        "machine": machine,
        "versions": versions,
    }
    results |= {"seconds": round(time.process_time() - start), "unit": "nats per row, of x_j / s_j", "cells": cells}
    Path("results.json").write_text(json.dumps(results, indent=1, default=float) + "\n")
    Path("table.md").write_text(table(results) + "\n")
    save(draw(results), Path("tabular.png"))
    print(f"tabular.png, results.json, table.md: {results['seconds']} s of CPU time, {machine}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(QUICK if parser.parse_args().quick else FULL)
