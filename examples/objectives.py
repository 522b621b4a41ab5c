"""What is trained, and what it is worth: one VAE on scikit-learn's 8×8 digits under thirteen objectives (three minutes).

Held fixed: data (counts 0..16), 16 latents, one hidden layer of 128 each way, optimizer, schedule, batches, epochs and
seed; the last weights are scored, all by the same importance sampling on the same test rows. Swapped: the objective that
`fit` is given, and nothing else; a β is a handler around model and guide.

"Loss" is each objective's own and does not compare. Differences of log p(x) to the ELBO's are paired, row by row. Their
standard error is over test rows and knows of one training run only: the ELBO is trained from two more seeds, as the scale
for all else. Where ESS is low, log p(x) is too low, the less so the better q(z | x) fits: compare the ELBOs, too. Objectives
with K > 1 draw K times as much a step, so equal epochs are not equal time.
"""

import argparse
import time
from pathlib import Path

import torch

import pyro_vae as pv
from pyro_vae import Bound, elbo, iwae
from pyro_vae.common.flagged import format_both_errors, format_difference, is_loose
from pyro_vae.data import load
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.plots.figures import BLUE, GREY, INK, figure, save

D = 16  # latents


def objectives(rows: int) -> dict[str, tuple[Bound, float]]:
    """Each objective, and the β that stands beside it."""
    return {
        "ELBO": (Bound(elbo), 1.0),
        "IWAE, K = 8": (Bound(iwae, 8), 1.0),
        "IWAE, K = 8, DReG": (Bound(iwae, 8, estimator=pv.dreg), 1.0),
        "IWAE, K = 8, STL": (Bound(iwae, 8, estimator=pv.stl), 1.0),
        "Rényi, α = 0.5, K = 8": (Bound(pv.renyi(0.5), 8), 1.0),
        "CIWAE, β = 0.5, K = 8": (Bound(pv.ciwae(0.5), 8), 1.0),
        "MIWAE, 4 × 4": (Bound(pv.miwae, 4, num_groups=4), 1.0),
        "PIWAE, 4 × 4": (Bound(pv.piwae, 4, num_groups=4), 1.0),
        "TVO, K = 8": (Bound(pv.tvo(5), 8), 1.0),
        "ELBO, β = 4": (Bound(elbo), 4.0),
        "ELBO, free bits of 1": (Bound(elbo, terms=[pv.free_bits(1.0)]), 1.0),
        "ELBO, TC weighed by 4": (Bound(elbo, terms=[pv.total_correlation(4.0, dataset_size=rows)]), 1.0),
        "ELBO − 10 MMD²": (Bound(elbo, terms=[pv.mmd(10.0)]), 1.0),
        "ELBO, seed 1": (Bound(elbo), 1.0),
        "ELBO, seed 2": (Bound(elbo), 1.0),
    }


def train(x: torch.Tensor, objective: Bound, beta: float, epochs: int, seed: int) -> tuple[pv.VAE, float]:
    """A model, and the loss per row that its training ended with."""
    torch.manual_seed(seed)
    vae = pv.VAE(
        prior=pv.StandardNormal(D),
        likelihood=pv.Conditional(pv.MLP(D, 64, hidden=(128,)), pv.binomial(16)),
        posterior=pv.Conditional(pv.MLP(64, 2 * D, hidden=(128,)), pv.normal),
    )
    run = pv.fit(
        pv.Beta(beta).pair(vae), x, objective=objective, optimizer=pv.adam(2e-3), schedule=pv.warmup(pv.cosine),
        batch_size=128, epochs=epochs, seed=seed, verbose=False,
    )  # fmt: skip
    return vae, run.history[-1]["loss"]


def draw(rows: list[tuple], num_samples: int):
    """log p(x) of each, twice the paired error of its difference to the ELBO's, and the ELBO below it."""
    fig = figure(9.5, 5.0)
    ax = fig.add_subplot()
    ax.axvline(rows[0][1]["log_px"], color=GREY, lw=1, ls="--", zorder=0)
    for y, (name, s, mean, se) in enumerate(rows):
        color = INK if "seed" in name else BLUE
        ax.plot([s["elbo"], s["log_px"]], [y, y], color=GREY, lw=1, marker="|", ms=7, markevery=[0], zorder=1)
        loose = is_loose(s) or is_loose(rows[0][1])
        bar = None if loose else 2 * se
        ax.errorbar(s["log_px"], y, xerr=bar, color=color, marker="o", ms=5, capsize=3, mfc="white" if loose else color)
        said = format_difference(mean, se, s, rows[0][1], digits=1) if se else "baseline"
        ax.text(1.02, y, said, color=color, va="center", transform=ax.get_yaxis_transform())
    ax.text(1.02, -1, "difference ± s.e.", color=GREY, va="center", transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"nats per test row, K = {num_samples}: higher is better")
    ax.set_title(
        "log p(x) (dot; hollow: a loose bound, without error), ± 2 s.e. of its paired difference; and the true ELBO (tick)",
        fontsize=10,
        loc="right",  # the column of differences has its own words on the right
    )
    ax.spines[["top", "right", "left"]].set_visible(False)
    return fig


def main(epochs: int = 100, num_samples: int = 1000, train_rows: int | None = None) -> None:
    data, rows, first = load("digits"), [], None
    x = data.train.x[:train_rows]
    print(
        f"{'trained':24}{'loss':>8}{'ELBO':>9}  {'log p(x) ± MC ± data':24}{'minus ELBO':>15}      ESS  active  CPU seconds"
    )
    for name, (objective, beta) in objectives(len(x)).items():
        start = time.process_time()
        vae, loss = train(x, objective, beta, epochs, seed=int(name[-1]) if "seed" in name else 0)
        seconds = time.process_time() - start
        score = pv.log_likelihood(vae.model, vae.guide, data.test.x, num_samples=num_samples, verbose=False)
        active = latents(vae.model, vae.guide, data.test.x).active()
        first, s = first or score, score.summary()
        difference = score.log_px - first.log_px
        mean, se = difference.mean().item(), difference.std().item() / len(difference) ** 0.5
        rows.append((name, s, mean, se))
        logs = f"  {format_both_errors(s):24}{format_difference(mean, se, s, rows[0][1]):>15}"
        print(f"{name:24}{loss:8.2f}{s['elbo']:9.2f}{logs}{s['ess_median']:9.0f}{active:8}{seconds:9.1f}", flush=True)
    print(f"Picture: {save(draw(rows, num_samples), Path('objectives.png'))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(**({"epochs": 1, "num_samples": 10, "train_rows": 256} if parser.parse_args().quick else {}))
