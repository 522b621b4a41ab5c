"""Bring your own program: a model and two guides in plain Pyro, and every question that one can ask of them.

The program is a factor analysis that outliers do not bend: two factors a wine, Student t noise on its 13 measurements, all
parameters `pyro.param`s. One guide is Pyro's AutoNormal, with a mean and a scale of its own for each wine; the other is an
encoder, written by hand. Nothing in them knows of this library, and none of its functions is told what they are: `check`,
`fit`, importance sampling beside the exact log p(x), annealing, brackets, what the guide costs, calibration, and pictures.

    python examples/bring_your_own.py --out results/bring_your_own > results/bring_your_own/table.txt
"""

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_wine
from torch import nn
from torch.distributions import constraints

from pyro_vae import (
    adam,
    ais,
    bracket,
    check,
    compare,
    fit,
    gaps,
    log_likelihood,
    quadrature,
    simulation_based_calibration,
)
from pyro_vae.errors import ProgramError
from pyro_vae.plots.bars import gap_bars
from pyro_vae.plots.calibration import ecdf_differences
from pyro_vae.plots.evidence import bracket_ends
from pyro_vae.plots.figures import save

# --- the program: plain Pyro ---


def model(x):
    width = x.shape[-1]
    loadings = pyro.param("loadings", lambda: torch.randn(2, width))
    loc = pyro.param("loc", lambda: torch.zeros(width))
    scale = pyro.param("scale", lambda: torch.ones(width), constraint=constraints.positive)
    with pyro.plate("wines", len(x)):
        factors = pyro.sample("factors", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.StudentT(4.0, loc + factors @ loadings, scale).to_event(1), obs=x)


encoder = nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 4))


def guide(x):
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x).chunk(2, -1)
    with pyro.plate("wines", len(x)):
        pyro.sample("factors", dist.Normal(loc, log_scale.exp()).to_event(1))


# --- the questions ---


def ask(guide, x, batch_size: int, epochs: int, num_samples: int, chains: dict, steps: int, simulated: int) -> dict:
    """Train the model with one guide, print what there is to know of the pair, and return what is drawn."""
    pair, quiet = (model, guide), {"verbose": False}
    print(check(*pair, x))
    run = fit(pair, x, batch_size=batch_size, epochs=epochs, optimizer=adam(1e-2), verbose=False)
    print(f"ELBO {run.history[0]['elbo']:.2f} after one epoch, {run.history[-1]['elbo']:.2f} at the end; {run.engine}")
    sampled = log_likelihood(*pair, x, num_samples=num_samples, **quiet)
    exact = quadrature(*pair, x, tol=1e-3)
    ends = bracket(*pair, x, num_samples=num_samples, **chains, **quiet)
    lost = gaps(*pair, x, log_px=exact, steps=steps, **quiet)
    for name, found in {
        "importance sampling": sampled,
        "annealing": ais(*pair, x, **chains, **quiet),
        "exact, by quadrature": exact,
        "bracket": ends,
        "where the ELBO's gap comes from": lost,
    }.items():
        print(f"{name}: {found}")
    try:
        calibrated = simulation_based_calibration(*pair, x, num_rows=simulated)
        print(f"calibration: {calibrated}")
    except ProgramError as refusal:  # AutoNormal has parameters for these wines alone
        calibrated = None
        print(f"calibration, refused: {refusal}")
    return {"exact": exact, "bracket": ends, "gaps": lost, "calibration": calibrated}


def main(out: Path, rows: int = 60, epochs: int = 800, num_samples: int = 1000, steps: int = 300, simulated: int = 1000,
         chains: dict | None = None) -> None:  # fmt: skip
    wines = torch.as_tensor(load_wine().data, dtype=torch.float32)
    wines = (wines - wines.mean(0)) / wines.std(0)
    # log p(x) is computed in blocks of 64 rows, and a guide with parameters for each row takes them all at once
    x = wines[torch.randperm(len(wines), generator=torch.Generator().manual_seed(0))[:rows]]
    asked = {}
    for name, (theirs, batch_size) in {
        "AutoNormal": (AutoNormal(model), len(x)),
        "encoder": (guide, len(x) // 4),
    }.items():
        print(f"\n--- {name} ---")
        pyro.clear_param_store()  # each guide trains a model of its own
        torch.manual_seed(0)
        asked[name] = ask(theirs, x, batch_size, epochs, num_samples, chains or {}, steps, simulated)
    print(
        f"\nThe models beside each other, on their exact log p(x):\n{compare({n: a['exact'] for n, a in asked.items()})}"
    )
    out.mkdir(parents=True, exist_ok=True)
    summaries = {part: {n: a[part].summary() for n, a in asked.items()} for part in ("bracket", "exact", "gaps")}
    ends, exact = ({f"rows under {n}": s for n, s in summaries[part].items()} for part in ("bracket", "exact"))
    for name, picture in {
        "bracket": bracket_ends(ends, exact),
        "gaps": gap_bars(summaries["gaps"]),
        "calibration": ecdf_differences(asked["encoder"]["calibration"].to_dict()),
    }.items():
        print(f"Picture: {save(picture, out / f'{name}.png')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    parser.add_argument("--out", type=Path, default=Path())
    said = parser.parse_args()
    torch.set_num_threads(1)
    few = {"num_temperatures": 4, "num_chains": 2, "leapfrog_steps": 2, "step_size": 0.1}
    short = {"rows": 12, "epochs": 3, "num_samples": 20, "steps": 4, "simulated": 20, "chains": few}
    main(said.out, **(short if said.quick else {}))
