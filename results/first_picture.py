"""Draws the README's picture: each test row of the demo by importance sampling, annealing and a bracket, flagged rows coloured.

    OMP_NUM_THREADS=1 python results/first_picture.py results/demo/figures/rows.png

It makes the demo anew in a temporary folder (seed 0, K = 5,000), as its weights are not kept, and brackets the same rows.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from pyro_vae import bracket, load_run, log_likelihood, train_run
from pyro_vae.cli.commands import DEMO
from pyro_vae.plots.figures import BLUE, GREY, INK, ORANGE, figure, save
from pyro_vae.runs.bracket_run import CHAINS, LEAPFROGS, TEMPERATURES
from pyro_vae.runs.evaluate_run import rows_of
from pyro_vae.runs.load import open_data

GREEN = "#2a7f62"


def draw(evidence, ends):
    """Above, log p(x) of each row and its ELBO; below, the other two methods less importance sampling."""
    order = evidence.log_px.argsort()
    at, log_px, elbo = np.arange(len(order)), evidence.log_px[order].numpy(), evidence.elbo[order].numpy()
    doubted = ~evidence.reliable[order].numpy()
    fig = figure(8.0, 5.0)
    above, below = fig.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    above.fill_between(at, elbo, log_px, color=GREY, alpha=0.3, lw=0, label="gap to the ELBO")
    above.plot(at[~doubted], log_px[~doubted], "o", color=BLUE, markersize=3, label="importance sampling, K = 5,000")
    above.plot(at[doubted], log_px[doubted], "o", color=ORANGE, markersize=6, label="flagged: not to be believed")
    above.set(ylabel="log p(x), nats")
    above.set_title(f"{len(at)} test digits, sorted; {int(doubted.sum())} flagged", fontsize=11, loc="left")
    annealed = (ends.annealing.log_px - evidence.log_px)[order].numpy()
    upper = (ends.upper - evidence.log_px)[order].numpy()
    below.axhline(0, color=INK, lw=0.8)
    below.errorbar(
        at, annealed, 2 * ends.annealing.mc_se[order].numpy(), fmt="none", ecolor=GREEN, elinewidth=0.5, alpha=0.6
    )
    below.plot(at, annealed, "o", color=GREEN, markersize=2.5, label="annealing (± 2 s.e.)")
    below.plot(at, upper, "v", color=INK, markersize=2.5, alpha=0.6, label="upper end, approximate")
    for row in at[doubted]:
        below.axvline(row, color=ORANGE, lw=1.2, alpha=0.8, zorder=0)
    below.set(ylabel="difference to\nimportance sampling,\nnats", xlabel="row, from the least log p(x) to the largest")
    low, high = below.get_ylim()
    below.set_ylim(low, high + 0.25 * (high - low))  # room for the legend above the bars
    for ax in (above, below):
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(
            frameon=False,
            fontsize=8,
            loc="lower right" if ax is above else "upper right",
            ncols=1 if ax is above else 2,
        )
    return fig


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = train_run(DEMO, Path(folder) / "demo", device="cpu", num_samples=100, made_by="demo")
        run = load_run(Path(folder) / "demo")
        rows = run.rows(rows_of(open_data(run), "test"))
    pair = (run.vae.model, run.vae.guide)
    evidence = log_likelihood(*pair, *rows, num_samples=5000, verbose=False)
    settings = {"num_temperatures": TEMPERATURES, "num_chains": CHAINS, "leapfrog_steps": LEAPFROGS}
    ends = bracket(*pair, *rows, **settings, verbose=False)
    print(f"{evidence}\n{ends}\nELBO {found['elbo']:.3f}; picture: {save(draw(evidence, ends), out)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
