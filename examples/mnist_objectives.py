"""MNIST at equal CPU time: ELBO, IWAE with 5 particles, and IWAE's encoder gradients DReG and STL, two seeds of each.

Binarized MNIST, 784-200-200-50 with tanh both ways (the network of Burda, Grosse & Salakhutdinov, 2016). Each run gets the same
seconds of one thread's CPU time, whatever a step costs it: the learning rate follows the time spent, not the steps. Scored on
the same 1,000 test rows with K = 5,000; differences are paired, row by row, to the ELBO of the same seed.

    python examples/mnist_objectives.py --minutes 10      # --jobs N trains N at a time, a process and a thread each
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

import pyro_vae as pv
from pyro_vae import Bound, elbo, iwae
from pyro_vae.common.flagged import format_both_errors, format_difference
from pyro_vae.data import load
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.runs.registry import build

OBJECTIVES = {
    "ELBO": lambda: Bound(elbo),
    "IWAE-5": lambda: Bound(iwae, 5),
    "IWAE-5, DReG": lambda: Bound(iwae, 5, estimator=pv.dreg),
    "IWAE-5, STL": lambda: Bound(iwae, 5, estimator=pv.stl),
}
BURDA = pv.Config(data="mnist", hidden=(200, 200), activation="tanh", latent_dim=50)  # as `pyro-vae train` starts it
SMALL = pv.Config(data="digits", likelihood="bernoulli", hidden=(16,), latent_dim=4)
MNIST = {"config": BURDA, "rows": 1000, "num_samples": 5000}
QUICK = {"config": SMALL, "rows": 50, "num_samples": 50}


def job(name: str, seed: int, seconds: float, setting: dict) -> dict:
    """Trains one model for so many seconds of CPU time, and scores it."""
    torch.set_num_threads(1)  # CPU time is then the work done, however many runs share the machine
    torch.manual_seed(seed)
    config = setting["config"].resolved()
    data = load(config.data, binarization="dynamic")
    vae = build(config, data.shape, data.train.x)
    start, budget = time.process_time(), pv.TimeBudget(seconds)
    result = pv.fit(
        vae, data.train.x, validation=data.validation.x, objective=OBJECTIVES[name](), optimizer=pv.adam(6e-3),
        epochs=100_000, batch_size=500, schedule=budget.schedule(pv.warmup(pv.cosine)), transform=data.transform, seed=seed,
        on_epoch=budget, verbose=False,
    )  # fmt: skip
    trained = time.process_time() - start
    x = data.test.x[: setting["rows"]]
    evidence = pv.log_likelihood(vae.model, vae.guide, x, num_samples=setting["num_samples"], verbose=False)
    return {
        "objective": name, "seed": seed, "epochs": len(result.history), "cpu_seconds": trained,
        "active_units": latents(vae.model, vae.guide, x[:500]).active(), "log_px": evidence.log_px.tolist(),
    } | {"evidence": evidence.summary()}  # fmt: skip


def line(row: dict, baseline: dict) -> str:
    s, d = row["evidence"], torch.tensor(row["log_px"]) - torch.tensor(baseline["log_px"])
    difference = format_difference(d.mean().item(), d.std().item() / len(d) ** 0.5, s, baseline["evidence"])
    return (
        f"{row['objective']:14}{row['seed']:5}  {format_both_errors(s):24}{difference:>15}{s['elbo']:10.2f}"
        f"{s['ess_median']:6.0f}{s['rows_flagged']:9}"
        f"{row['active_units']:8}{row['epochs']:8}{row['cpu_seconds'] / row['epochs']:9.2f}{row['cpu_seconds']:9.0f}"
    )


def main(minutes: float, seeds: int, jobs: int, setting: dict) -> None:
    asked = [(name, seed, 60 * minutes, setting) for seed in range(seeds) for name in OBJECTIVES]
    path = Path("mnist_objectives.json")
    if jobs == 1:
        rows = [job(*each) for each in asked]
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            rows = [done.result() for done in as_completed([pool.submit(job, *each) for each in asked])]
    rows.sort(key=lambda row: (list(OBJECTIVES).index(row["objective"]), row["seed"]))
    print(f"{'trained':14}{'seed':>5}  {'log p(x) ± MC ± data':24}{'minus ELBO':>15}      ELBO   ESS", end="")
    print("  flagged  active  epochs  s/epoch    CPU s")
    for row in rows:
        print(line(row, next(r for r in rows if r["objective"] == "ELBO" and r["seed"] == row["seed"])))
    path.write_text(json.dumps([{k: v for k, v in row.items() if k != "log_px"} for row in rows], indent=1))
    print(f"Settings and figures: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU time of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    said = parser.parse_args()
    if said.quick:
        main(0.005, 1, 1, QUICK)
    else:
        main(said.minutes, said.seeds, said.jobs, MNIST)
