"""Bayesian regressions of scikit-learn's data by variational inference, beside a long NUTS run of the same posterior.

    diabetes        y_n ~ N(c_n · θ, σ²), θ ~ N(0, I), σ ~ HalfNormal(1): linear, the noise is a parameter, too
    breast cancer   y_n ~ Bernoulli(logit = c_n · θ), θ ~ N(0, I): logistic, its columns correlate up to 0.99

Each by AutoNormal (independent) and AutoMultivariateNormal (a full covariance), in mini-batches. What is compared: means and
sds of every parameter against NUTS, in units of the sds of NUTS, beside the Monte Carlo error of NUTS itself; the ELBO of the
data set, log p(X) between two ends; and the ELPD of held-out rows. Columns are in standard units of the training rows.

    python examples/bayesian.py --out results/bayesian
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.ops.stats import effective_sample_size
from sklearn.datasets import load_breast_cancer, load_diabetes

from pyro_vae import Bayesian, GlobalGuide, StandardNormal, WholeDataSet, adam, bracket, cosine, fit, predictive_density
from pyro_vae.plots.figures import BLUE, INK, ORANGE, figure, save

PAGE = """# Bayesian regressions beside NUTS

`python examples/bayesian.py --out results/bayesian`: NUTS with {samples} draws after {samples} / 4 of warm-up (seed 1), guides
trained from seed 0, one CPU thread, float64.

```
{text}
```

![means and sds](bayesian.png)
"""
DOUBLE = torch.float64
TEST = 0.25
GUIDES = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}


class LinearRegression:
    """y ~ N(c · θ, σ²) with an unknown σ: two sites outside the plate."""

    def __init__(self, width: int) -> None:
        self.width = width

    def model(self, y, c):
        theta = pyro.sample("theta", dist.Normal(c.new_zeros(self.width), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(c.new_ones(())))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((theta * c).sum(-1), sigma), obs=y)


def logistic(width: int) -> Bayesian:
    return Bayesian(
        prior=StandardNormal(width).double(),  # p(θ)
        likelihood=lambda theta, c: dist.Bernoulli(logits=(theta * c).sum(-1)),  # p(y | θ, c)
        posterior=StandardNormal(width).double(),  # an AutoGuide takes its place
    )


def standard(c: np.ndarray, train: np.ndarray) -> np.ndarray:
    return (c - c[train].mean(0)) / c[train].std(0)


def load(name: str, rows: int | None) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(y, c) of training and of held-out rows; the first column of c is the intercept's."""
    raw = load_diabetes() if name == "diabetes" else load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(raw.target))[:rows]
    train, test = np.split(order, [int((1 - TEST) * len(order))])
    c = np.column_stack([np.ones(len(raw.data)), standard(raw.data, train)])
    y = standard(raw.target, train) if name == "diabetes" else raw.target
    both = [tuple(torch.as_tensor(a[part], dtype=DOUBLE) for a in (y, c)) for part in (train, test)]
    return both[0], both[1]


def columns(draws: dict[str, torch.Tensor]) -> torch.Tensor:
    """Draws of all parameters side by side, ``(S, D)``."""
    return torch.cat([draws[name].reshape(len(draws[name]), -1) for name in sorted(draws, reverse=True)], 1)


def by_nuts(model, args, samples: int, depth: int) -> dict[str, torch.Tensor]:
    """Means and sds of the posterior, with the Monte Carlo errors of both by the effective sample size."""
    pyro.set_rng_seed(1)
    chain = MCMC(
        NUTS(model, max_tree_depth=depth), num_samples=samples, warmup_steps=samples // 4, disable_progbar=True
    )
    chain.run(*args)
    draws = columns(chain.get_samples())
    ess = effective_sample_size(draws[None]).clamp(4, samples)
    ess_of_square = effective_sample_size((draws - draws.mean(0)).square()[None]).clamp(4, samples)
    sd = draws.std(0)
    return {
        "mean": draws.mean(0),
        "sd": sd,
        "mean_se": sd / ess.sqrt(),
        "sd_se": sd / (2 * ess_of_square).sqrt(),
        "ess": ess,
    }


def of_guide(guide, args, draws: int = 4000) -> dict[str, torch.Tensor]:
    """Means and sds of q(θ), by draws."""
    with torch.no_grad(), pyro.plate("draws", draws, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace(*args)
    found = columns({n: trace.nodes[n]["value"] for n in ("theta", "sigma") if n in trace.nodes})
    return {"mean": found.mean(0), "sd": found.std(0)}


def compare(name: str, q: dict, nuts: dict) -> dict:
    """Differences of q from NUTS in sds of the posterior, and how many are within 4 Monte Carlo errors (q's draws counted)."""
    q_se = q["sd"] / 4000**0.5
    shift, shift_se = (
        (q["mean"] - nuts["mean"]) / nuts["sd"],
        (nuts["mean_se"].square() + q_se.square()).sqrt() / nuts["sd"],
    )
    ratio, ratio_se = q["sd"] / nuts["sd"], (nuts["sd_se"].square() + q_se.square() / 2).sqrt() / nuts["sd"]
    return {
        "guide": name,
        "largest_shift": shift.abs().max().item(),
        "shifts_within": int((shift.abs() < 4 * shift_se).sum()),
        "sd_ratio": [ratio.min().item(), ratio.mean().item(), ratio.max().item()],
        "ratios_within": int(((ratio - 1).abs() < 4 * ratio_se).sum()),
        "parameters": len(shift),
        "mean_error_of_shift": shift_se.mean().item(),
        "mean_error_of_ratio": ratio_se.mean().item(),
    }


@dataclass(frozen=True)
class Settings:
    """How much is done: by default what the printed page was made with."""

    rows: int | None = None  # all there are
    epochs: int = 250
    samples: int = 1200
    temperatures: int = 30
    depth: int = 10  # of the trees of NUTS
    step_size: float | None = None  # of annealing: tuned by a pilot run


QUICK = Settings(rows=60, epochs=3, samples=20, temperatures=5, depth=3, step_size=0.1)


def run(name: str, s: Settings) -> tuple[list[dict], dict]:
    train, test = load(name, s.rows)
    width = train[1].shape[1]
    model = (LinearRegression(width) if name == "diabetes" else logistic(width)).model
    nuts = by_nuts(model, train, s.samples, s.depth)
    table, moments = [], {"NUTS": nuts}
    for kind, auto in GUIDES.items():
        torch.manual_seed(0)
        pyro.clear_param_store()
        guide = GlobalGuide(model, auto)
        objective = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
        options = {"objective": objective, "optimizer": adam(lr=0.05), "schedule": cosine, "verbose": False}
        history = fit((model, guide), *train, epochs=s.epochs, batch_size=min(100, len(train[0])), **options).history
        moments[kind] = of_guide(guide, train)
        record = {"data": name, **compare(kind, moments[kind], nuts)}
        record |= {key: history[-1].get(key) for key in ("elbo_data_set", "elbo_data_set_se")}
        try:
            elpd = predictive_density(model, guide, *test, num_samples=2000 if s.rows is None else 50)
            whole = WholeDataSet(model, guide)
            annealing = {"num_temperatures": s.temperatures, "step_size": s.step_size, "verbose": False}
            ends = bracket(whole.model, whole.guide, *whole.rows(*train), **annealing)
            record |= {"elpd": elpd.summary()}
            record |= {k: getattr(ends, k).item() for k in ("lower", "lower_se", "upper", "upper_se")}
        except ValueError as refused:
            record["refused"] = str(refused).split(". ")[0]
        table.append(record)
        print(format_record(record))
    return table, moments


def format_record(r: dict) -> str:
    low, mean, high = r["sd_ratio"]
    lines = [
        f"{r['data']}, {r['guide']}: ELBO of the data set {r['elbo_data_set']:.2f}"
        + (f" ± {r['elbo_data_set_se']:.2f}" if r["elbo_data_set_se"] else ""),
        f"  means: off by {r['largest_shift']:.3f} sd at most, {r['shifts_within']} of {r['parameters']} within 4 Monte "
        f"Carlo errors (of {r['mean_error_of_shift']:.3f} sd)",
        f"  sds: {low:.3f} to {high:.3f} of NUTS's, {mean:.3f} in the mean, {r['ratios_within']} of {r['parameters']} within 4 "
        f"errors (of {r['mean_error_of_ratio']:.3f})",
    ]
    if "refused" in r:
        return "\n".join([*lines, f"  no log p(X), no ELPD: {r['refused']}"])
    return "\n".join(
        [
            *lines,
            f"  log p(X) between {r['lower']:.2f} ± {r['lower_se']:.2f} and {r['upper']:.2f} ± {r['upper_se']:.2f} nats",
            f"  ELPD of {r['elpd']['rows']} new rows {r['elpd']['elpd']:.2f} ± {r['elpd']['elpd_mc_se']:.2f} (Monte Carlo) "
            f"± {r['elpd']['elpd_data_se']:.2f} (data) nats, {r['elpd']['rows_flagged']} flagged",
        ]
    )


def picture(moments: dict[str, dict], path: Path) -> Path:
    """Means and sds of q(θ) against those of NUTS, a panel a data set and a row a moment."""
    fig = figure(8.0, 7.0)
    for i, (name, found) in enumerate(moments.items()):
        for j, key in enumerate(("mean", "sd")):
            ax = fig.add_subplot(2, 2, 1 + i + 2 * j)
            ax.spines[["top", "right"]].set_visible(False)
            true = found["NUTS"][key]
            ends = [min(true.min().item(), 0 if key == "sd" else true.min().item()), true.max().item()]
            ax.plot(ends, ends, color=INK, linewidth=0.8)
            for kind, color in zip(GUIDES, (ORANGE, BLUE), strict=True):
                ax.errorbar(
                    true, found[kind][key], xerr=2 * found["NUTS"][f"{key}_se"], fmt="o", ms=4, color=color, label=kind
                )
            ax.set(xlabel=f"{key} by NUTS (± 2 Monte Carlo errors)", ylabel=f"{key} of q", title=name if j == 0 else "")
            ax.legend(frameon=False, fontsize=8)
    return save(fig, path)


def main(out: Path, s: Settings) -> None:
    tables, moments = [], {}
    out.mkdir(parents=True, exist_ok=True)
    for name in ("diabetes", "breast cancer"):
        table, moments[name] = run(name, s)
        tables += table
    print(f"Picture: {picture(moments, out / 'bayesian.png')}")
    (out / "bayesian.json").write_text(json.dumps(tables, indent=1) + "\n")
    (out / "table.md").write_text(PAGE.format(samples=s.samples, text="\n".join(map(format_record, tables))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--quick", action="store_true", help="a short form")
    given = parser.parse_args()
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(given.out, QUICK if given.quick else Settings())
