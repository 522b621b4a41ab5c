"""Dynamically binarized MNIST beside published figures, at equal time: `python -m benchmarks.published_rows`.

784-300-300-40 with ReLU both ways, the widths of Tomczak & Welling (2018); standard normal prior, VampPrior of 500 components
that begin at training rows, flow prior, and that with an IAF posterior. Each run trains for as many minutes, of CPU time on a
CPU (other work on the machine does not use it up) and on the wall on a GPU, the learning rate following the time spent, and is
scored on all test rows with K = 5,000. A page of the rows, mean over seeds ± their standard error, and a JSON file of what each
run said; runs that the file holds are not run again.

    python -m benchmarks.published_rows --minutes 5 --threads 1 --out results/published_rows      # on a CPU, three hours
    python -m benchmarks.published_rows --minutes 0.5 --device cuda --out results/published_rows  # on a GPU
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.common.environment import machine
from pyro_vae.common.flagged import format_both_errors
from pyro_vae.data import load
from pyro_vae.posteriors import FlowPosterior
from pyro_vae.priors import FlowPrior, VampPrior

PAPER = "VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120"
PUBLISHED = {"standard normal prior": -84.50, "VampPrior": -82.38}  # its one-layer rows, thousands of epochs
PIXELS, WIDTHS, LATENT, COMPONENTS = 784, (300, 300), 40, 500


def network(inputs: int, outputs: int) -> pv.MLP:
    """A network of ReLU: under tanh at a rate of 2e-3 the VampPrior fell to KL = 0 in the first epoch, and stayed."""
    return pv.MLP(inputs, outputs, hidden=WIDTHS)


def vae(row: str, x: Tensor) -> pv.VAE:
    """Make the model of a row of the table; x are pixels in [0, 1]."""
    posterior: Any = pv.Conditional(network(PIXELS, 2 * LATENT), pv.normal)
    if row.endswith("IAF posterior"):
        posterior = FlowPosterior(network(PIXELS, 64), LATENT, context_features=64)
    priors: dict[str, Callable[[], Any]] = {
        "standard": lambda: pv.StandardNormal(LATENT),
        "VampPrior": lambda: VampPrior(posterior, COMPONENTS, PIXELS, x[:COMPONENTS].float(), bounds=(0.0, 1.0)),
        "flow": lambda: FlowPrior(LATENT),
    }
    return pv.VAE(
        priors[row.split(" ")[0].rstrip(",")](), pv.Conditional(network(LATENT, PIXELS), pv.bernoulli), posterior
    )


ROWS = ("standard normal prior", "VampPrior", "flow prior", "flow prior, IAF posterior")


def train_and_score(row: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model for its time, and score it."""
    torch.manual_seed(seed)
    data = load(options.data, binarization="dynamic")
    x, test = (part.x.flatten(1)[: 256 if options.quick else None] for part in (data.train, data.test))
    model = vae(row, x).to(options.device)
    start, clock = time.perf_counter(), time.perf_counter if options.device.startswith("cuda") else time.process_time
    budget = pv.TimeBudget(60 * options.minutes, clock)
    result = pv.fit(
        model, x, optimizer=pv.adam(1e-3), epochs=100_000, batch_size=128, transform=data.transform,
        schedule=budget.schedule(pv.warmup(pv.cosine)), seed=seed, engine=options.engine, device=options.device,
        on_epoch=budget, verbose=False,
    )  # fmt: skip
    trained = time.perf_counter() - start
    evidence = pv.log_likelihood(
        model.model, model.guide, test, num_samples=options.samples, device=options.device, verbose=False
    )
    said = evidence.summary() | {"seconds_of_evaluation": time.perf_counter() - start - trained}
    asked = {
        "row": row,
        "seed": seed,
        "minutes": options.minutes,
        "samples": options.samples,
        "threads": options.threads,
    }
    told = {"epochs": len(result.history), "seconds_of_training": trained, "warnings": result.warnings}
    return asked | told | {"evidence": said}


def line(row: str, runs: list[dict[str, Any]], ours: dict[str, list[float]]) -> str:
    """Format a row: each seed's number, their mean, and the published figure."""
    means = ours[row]
    error = f" ± {statistics.stdev(means) / len(means) ** 0.5:.2f}" if len(means) > 1 else ""
    flagged = statistics.fmean(run["evidence"]["rows_flagged"] / run["evidence"]["rows"] for run in runs)
    elbo = statistics.fmean(run["evidence"]["elbo"] for run in runs)
    each = "; ".join(format_both_errors(run["evidence"]) for run in runs)
    epochs = statistics.fmean(run["epochs"] for run in runs)
    sign = "≥ " if flagged > 0.1 else ""
    return (
        f"| {row} | {PUBLISHED.get(row, '')} | {sign}{statistics.fmean(means):.2f}{error} | {elbo:.2f} | {flagged:.0%} "
        f"| {epochs:.0f} | {each} |"
    )


def page(runs: list[dict[str, Any]], options: argparse.Namespace, command: str) -> str:
    """Format the table."""
    rows = list(dict.fromkeys(run["row"] for run in runs))
    ours = {row: [run["evidence"]["log_px"] for run in runs if run["row"] == row] for row in rows}
    lines = [line(row, [run for run in runs if run["row"] == row], ours) for row in rows]
    return PAGE.format(
        lines="\n".join(lines), command=command, minutes=options.minutes, k=options.samples, paper=PAPER,
        seeds=",".join(map(str, dict.fromkeys(run["seed"] for run in runs))), torch=torch.__version__.split("+")[0],
        clock="" if options.device.startswith("cuda") else "of CPU time ", machine=machine(torch.device(options.device)),
        pyro=pyro.__version__, rows=runs[0]["evidence"]["rows"],
        warnings="".join(f"\n{run['row']}, seed {run['seed']}: {w}." for run in runs for w in run.get("warnings", ())),
    )  # fmt: skip


PAGE = """# MNIST beside published figures

Dynamic binarization, 784-300-300-40, {minutes:g} minutes {clock}of training a run (batches of 128, Adam), seeds {seeds};
log p(x) by importance sampling on {rows} test rows with K = {k}, in nats. Written by `{command}`:
torch {torch}, pyro {pyro}, {machine}.

| | published, K = 5,000 | mean over seeds ± s.e. over seeds | ELBO | rows flagged | epochs | each seed ± Monte Carlo ± data |
|---|--:|--:|--:|--:|--:|---|
{lines}

Published: {paper},
one stochastic layer of gated units, trained until no better for 50 epochs. Where more than a tenth of the rows is flagged the
number is a lower bound, loose by an amount that nobody knows.
{warnings}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published_rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of each run")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=";".join(ROWS), help="which, by semicolons")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of CPU arithmetic")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--out", type=Path, help="name of the page and of the JSON file, without their endings")
    parser.add_argument("--quick", action="store_true", help="a second a run, few rows")
    options = parser.parse_args()
    options.data = "mnist"
    asked = f"--minutes {options.minutes:g} --device {options.device} --threads {options.threads}"
    asked += f' --seeds {options.seeds} --rows "{options.rows}"'
    command = f"python -m benchmarks.published_rows {asked}"
    if options.quick:
        options.minutes, options.samples, options.seeds = 0.01, 50, "0"
        command += " --quick"
    torch.set_num_threads(options.threads)
    kept = options.out.with_suffix(".json") if options.out is not None else None
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if kept is not None and kept.is_file() else []
    if any((run["minutes"], run["samples"]) != (options.minutes, options.samples) for run in runs):
        parser.error(f"{kept} holds runs of other minutes or samples: move it away, or ask for the same")
    for seed in map(int, options.seeds.split(",")):
        for row in options.rows.split(";"):
            if any((run["row"], run["seed"]) == (row, seed) for run in runs):
                continue
            runs.append(train_and_score(row, seed, options))
            print(row, seed, runs[-1]["epochs"], runs[-1]["evidence"]["log_px"], flush=True)
            if kept is not None:  # after each run: what is there is kept
                kept.write_text(json.dumps(runs, indent=1))
                options.out.with_suffix(".md").write_text(page(runs, options, command), encoding="utf-8")
    print(page(runs, options, command))


if __name__ == "__main__":
    main()
