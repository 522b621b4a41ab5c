"""Months of daily stock returns as ragged sequences: a stochastic volatility model, its log p(x) by two methods, and forecasts.

Data: daily closing prices of one stock, 2004 to 2008, which matplotlib ships (sample_data/goog.npz). A sequence is a calendar
month of returns, in per cent: 19 to 23 trading days, 10 in the last. The last twelve months, with the crash of 2008 in them,
are held out. The context c of a month is what was known on its eve: log of the mean absolute return of 20 days before.

    z_1 ~ N(a + b c, s),   z_t ~ N(m + φ (z_{t-1} - m), σ),   x_t ~ StudentT(ν, μ, exp(z_t / 2))

z_t is log volatility. The guide reads x_t, ..., x_T backwards (BackwardGRU). There is no closed form for log p(x): importance
sampling of whole paths and particle filters, step by step, are two ways to one number, and what is printed says whether they
agree. Peers: returns that are independent (normal, Student t), and Student t whose scale is an exponentially weighted mean
of absolute returns (RiskMetrics); all by maximum likelihood on the same training months.
"""

import argparse
import json
import math
import os
import platform
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.cbook import get_sample_data
from scipy import optimize, stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.plots.figures import BLUE, GREY, INK, ORANGE, figure, save
from pyro_vae.plots.forecast import forecast_fans

FULL = {
    "seeds": 2,
    "epochs": 60,
    "num_samples": 5000,
    "num_particles": 500,
    "num_runs": 32,
    "fans": 6,
    "draws": 2000,
    "fit": None,
}
QUICK = {
    "seeds": 1,
    "epochs": 1,
    "num_samples": 50,
    "num_particles": 10,
    "num_runs": 2,
    "fans": 2,
    "draws": 50,
    "fit": 9,
}
HELD_OUT, EVE, SEEN = 12, 20, 10  # months; days of context; days of a month before its forecast
COMMAND = "cd results/sequence && OMP_NUM_THREADS=1 python ../../examples/sequence.py"


def returns() -> tuple[np.ndarray, np.ndarray]:
    """Daily log returns in per cent, and the month of each."""
    with get_sample_data("goog.npz") as data:
        prices = data["price_data"]
    return 100 * np.diff(np.log(prices["adj_close"])), prices["date"][1:].astype("datetime64[M]")


def months() -> dict:
    """Each month's returns, the days before, and context; from the first month that has enough days before it."""
    r, month = returns()
    names = [m for m in np.unique(month) if (month < m).sum() >= EVE]
    x, lengths = pv.pad_sequences([torch.from_numpy(r[month == m]).float()[:, None] for m in names])
    c = [math.log(np.abs(r[month < m][-EVE:]).mean()) for m in names]
    return {"names": [str(m) for m in names], "x": x, "lengths": lengths, "c": torch.tensor(c).float()[:, None]}


class Volatility(nn.Module):
    """Log volatility that returns to its mean; the roles of a state-space model."""

    def __init__(self) -> None:
        super().__init__()
        self.level, self.mean, self.pull = (nn.Parameter(torch.tensor(v)) for v in (1.0, 0.0, 2.0))
        self.log_step, self.log_degrees = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(2.0))
        self.start = nn.Parameter(torch.tensor([0.5, 1.0, -0.5]))

    def initial(self, c: Tensor) -> dist.TorchDistribution:
        a, b, log_sd = self.start
        return dist.Normal(a + b * c, log_sd.exp()).to_event(1)

    def transition(self, z: Tensor, c: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.level + self.pull.sigmoid() * (z - self.level), self.log_step.exp()).to_event(1)

    def likelihood(self, z: Tensor, c: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(2 + self.log_degrees.exp(), self.mean, (z / 2).exp()).to_event(1)


class LogSize(nn.Module):
    """An encoder that sees log |x_t| and the sign, as what tells of volatility, and the context."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.gru = pv.BackwardGRU(3, hidden)

    def forward(self, x: Tensor, lengths: Tensor, c: Tensor) -> Tensor:
        return self.gru(torch.cat([(x.abs() + 0.1).log(), x.sign()], -1), lengths, c)


def make() -> pv.StateSpaceModel:
    v = Volatility()
    posterior = pv.Conditional(pv.MLP(1 + 16 + 1, 2, (32,)), pv.normal)
    return pv.StateSpaceModel(v.initial, v.transition, v.likelihood, LogSize(), posterior)


def trained(train: tuple[Tensor, ...], seed: int, epochs: int) -> pv.StateSpaceModel:
    torch.manual_seed(seed)
    model = make()
    pv.fit(
        model,
        *train,
        epochs=epochs,
        batch_size=20,
        seed=seed,
        objective=pv.Bound(pv.iwae, 10, estimator=pv.dreg),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        schedule=pv.cosine,
        engine="eager",
        verbose=False,
    )  # fmt: skip (a graph of 23 steps takes longer to compile than these few epochs)
    return model


# --- peers ----------------------------------------------------------------------------------------------------------------


def weighted_scales(r: np.ndarray, decay: float) -> np.ndarray:
    """The scale of each day by the days before it: an exponentially weighted mean of absolute returns."""
    scale, out = np.abs(r[:EVE]).mean(), []
    for value in r:
        out.append(scale)
        scale = decay * scale + (1 - decay) * abs(value)
    return np.array(out)


def peer_density(name: str, p: np.ndarray, r: np.ndarray) -> np.ndarray:
    """log p(x_t | x_<t) of every day, by the parameters of a peer."""
    if name == "normal, independent":
        return stats.norm.logpdf(r, p[0], math.exp(p[1]))
    scale = math.exp(p[1]) * (weighted_scales(r, 1 / (1 + math.exp(-p[3]))) if "weighted" in name else 1.0)
    return stats.t.logpdf(r, 2 + math.exp(p[2]), p[0], scale)


PEERS = ("normal, independent", "Student t, independent", "Student t, weighted scale")


def peers(names: list[str], steps: int | None) -> dict[str, np.ndarray]:
    """Each peer's log p(x) of each month, fitted to the training months (in so many steps; None: to the end)."""
    r, month = returns()
    first, cut = np.datetime64(names[0]), np.datetime64(names[-HELD_OUT])
    train = (month >= first) & (month < cut)
    out = {}
    for name in PEERS:
        fitted = optimize.minimize(
            lambda p, n=name: -peer_density(n, p, r)[train].sum(), [0, 0, 1, 2], method="Nelder-Mead",
            options={"maxiter": steps},
        )  # fmt: skip
        daily = peer_density(name, fitted.x, r)
        out[name] = np.array([daily[month == np.datetime64(m)].sum() for m in names[-HELD_OUT:]])
    return out


# --- what is printed --------------------------------------------------------------------------------------------------------


def ratio(total: np.ndarray, days: np.ndarray) -> tuple[float, float]:
    """Sums over sums, with the error over months."""
    mean = total.sum() / days.sum()
    return mean, (total - mean * days).std(ddof=1) * len(days) ** 0.5 / days.sum()


def evaluate(model: pv.StateSpaceModel, test: tuple[Tensor, ...], plan: dict) -> dict:
    """log p(x) of the held-out months by importance sampling and by both filters."""
    how = {"num_particles": plan["num_particles"], "num_runs": plan["num_runs"]}
    sampled = pv.log_likelihood(model.model, model.guide, *test, num_samples=plan["num_samples"], verbose=False)
    guided = pv.particle_filter(model, *test, **how)
    bootstrap = pv.particle_filter(model, *test, proposal="prior", **how)
    print(f"importance sampling: {sampled}\n{guided}\n{bootstrap}")
    for name, filtered in (("guided", guided), ("bootstrap", bootstrap)):
        gap, error = filtered.difference(sampled)
        print(f"chain rule: {name} filter - importance sampling = {gap:+.4f} ± {error:.4f} nats a month (Monte Carlo)")
    return {"sampled": sampled, "guided": guided, "bootstrap": bootstrap}


def coverage(model: pv.StateSpaceModel, test: tuple[Tensor, ...], plan: dict) -> tuple[pv.Forecast, dict]:
    """Forecasts of the days after the first ten of each month, and how many of the days that came lie within the fans."""
    x, lengths, c = test
    ahead = x.shape[1] - SEEN
    seen = x[:, :SEEN], torch.full_like(lengths, SEEN), c
    drawn = pv.forecast(model, *seen, steps=ahead, num_samples=plan["draws"], num_particles=plan["num_particles"])
    came, there = x[:, SEEN:], torch.arange(ahead) < (lengths - SEEN)[:, None]
    rank = drawn.probability_below(came)[..., 0]
    inside = {share: ((rank - 0.5).abs() < share / 2) & there for share in (0.5, 0.9)}
    days = there.sum(1).double().numpy()
    return drawn, {f"{share:.0%}": ratio(hit.sum(1).double().numpy(), days) for share, hit in inside.items()}


def pictures(model: pv.StateSpaceModel, data: dict, test: tuple[Tensor, ...], drawn: pv.Forecast, plan: dict) -> None:
    x, lengths, _ = test
    quantiles, names = drawn.quantiles()[..., 0], data["names"][-HELD_OUT:]
    panels = {
        names[n]: (x[n, :SEEN, 0].tolist(), quantiles[:, n].tolist(), x[n, SEEN : int(lengths[n]), 0].tolist())
        for n in range(HELD_OUT - 1 - plan["fans"], HELD_OUT - 1)  # the data end in the last month
    }
    save(forecast_fans(panels, ylabel="daily return, per cent"), Path("forecasts.png"))
    how = {"num_particles": min(200, plan["num_particles"]), "num_runs": plan["num_runs"]}
    smoothed = pv.smooth(model, *test, **how)
    filtered = pv.particle_filter(model, *test, **how)
    fig = figure(9.0, 3.6)
    ax = fig.add_subplot()
    start = 0
    for n, days in enumerate(lengths.tolist()):
        at = start + np.arange(days)
        ax.plot(at, x[n, :days, 0].abs(), ".", color=GREY, ms=3, label="|return|" if n == 0 else None)
        ax.plot(at, (filtered.mean[n, :days, 0] / 2).exp(), color=ORANGE, lw=1, label="filtered" if n == 0 else None)
        ax.plot(at, (smoothed.mean[n, :days, 0] / 2).exp(), color=BLUE, lw=1.5, label="smoothed" if n == 0 else None)
        if n % 2 == 0:  # every second month: a band, and room for its name
            ax.axvspan(start - 0.5, start + days - 0.5, color=GREY, alpha=0.12, lw=0)
        ax.annotate(
            names[n], (start + days / 2, 1), xycoords=("data", "axes fraction"), fontsize=7, color=INK, ha="center"
        )
        start += days
    ax.set(ylabel="scale of a day's return,\nexp(E[z_t] / 2), per cent", xlabel="trading days of the held-out months")
    ax.spines[["top", "right"]].set_visible(False)
    fig.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    save(fig, Path("volatility.png"))


def main(plan: dict) -> None:
    start = time.process_time()
    data = months()
    parts = [(a[:-HELD_OUT], a[-HELD_OUT:]) for a in (data["x"], data["lengths"], data["c"])]
    train, test = (tuple(p[i] for p in parts) for i in (0, 1))
    days = test[1].double().numpy()
    print(
        f"{len(train[0])} months to train on, {HELD_OUT} held out ({int(days.sum())} days), {data['names'][-HELD_OUT]} on"
    )
    models = [trained(train, seed, plan["epochs"]) for seed in range(plan["seeds"])]
    runs = [evaluate(model, test, plan) for model in models]
    results: dict = {"months": data["names"][-HELD_OUT:], "days": int(days.sum()), "models": {}, "checks": {}}
    of_seed = [run["guided"].log_px.numpy() for run in runs]
    rows = {"stochastic volatility": np.mean(of_seed, 0), **peers(data["names"], plan["fit"])}
    for name, total in rows.items():
        mean, error = ratio(total, days)
        gap, gap_se = ratio(rows["stochastic volatility"] - total, days)
        results["models"][name] = {"log_px_per_day": mean, "data_se": error, "behind": gap, "behind_se": gap_se}
    whole = pv.per_step(runs[0]["guided"], test[1])
    seeds = [total.sum() / days.sum() for total in of_seed]
    results["seeds"] = {"log_px_per_day": seeds, "mc_se": whole.mc_se}
    for name in ("guided", "bootstrap"):
        results["checks"][name] = [run[name].difference(run["sampled"]) for run in runs]
        results["checks"][f"{name}, rows flagged"] = [len(run[name].flagged) for run in runs]
    results["checks"]["importance sampling, rows flagged"] = [len(run["sampled"].flagged) for run in runs]
    drawn, results["coverage"] = coverage(models[0], test, plan)
    pictures(models[0], data, test, drawn, plan)
    machine = f"CPU ({platform.machine()}), {os.cpu_count()} cores, {torch.get_num_threads()} thread"
    results |= {"command": COMMAND, "plan": plan, "machine": machine, "torch": torch.__version__}
    results["seconds"] = round(time.process_time() - start)
    Path("results.json").write_text(json.dumps(results, indent=1, default=float) + "\n")
    Path("table.md").write_text(table(results) + "\n")
    print(table(results))


def table(results: dict) -> str:
    """The figures, as a page."""
    days, seeds = results["days"], results["seeds"]
    lines = [
        "| model | log p(x_t given x_<t), nats a day | ± data | behind stochastic volatility (paired) |",
        "|---|---|---|---|",
    ]
    for name, s in results["models"].items():
        paired = f"{s['behind']:+.4f} ± {s['behind_se']:.4f}" if s["behind_se"] else ""
        lines.append(f"| {name} | {s['log_px_per_day']:.4f} | {s['data_se']:.4f} | {paired} |")
    sd = f", sd of seeds {np.std(seeds['log_px_per_day'], ddof=1):.4f}" if len(seeds["log_px_per_day"]) > 1 else ""
    lines += [
        "",
        f"{len(results['months'])} held-out months, {days} days; errors over months. Stochastic volatility: mean of ",
    ]
    lines[-1] += (
        f"{len(seeds['log_px_per_day'])} training seeds{sd}, Monte Carlo error {seeds['mc_se']:.4f} of a seed's."
    )
    lines += [
        "",
        "| chain rule: filter minus importance sampling, nats a month | by seed ± Monte Carlo | months flagged |",
    ]
    lines.append("|---|---|---|")
    for name in ("guided", "bootstrap"):
        gaps = ", ".join(f"{gap:+.4f} ± {error:.4f}" for gap, error in results["checks"][name])
        lines.append(f"| {name} | {gaps} | {results['checks'][f'{name}, rows flagged']} |")
    flagged = results["checks"]["importance sampling, rows flagged"]
    lines += [
        "",
        f"Importance sampling flags {flagged} of {len(results['months'])} months. Forecasts from day {SEEN} on:",
    ]
    for share, (hit, error) in results["coverage"].items():
        lines.append(f"{hit:.1%} ± {error:.1%} (over months) of the days that came lie within the fan of {share};")
    lines += ["", f"Made by `{results['command']}`: {results['seconds']} s of CPU time, {results['machine']}, torch "]
    lines[-1] += f"{results['torch']}, seeds 0 to {len(seeds['log_px_per_day']) - 1}."
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)
    main(QUICK if parser.parse_args().quick else FULL)
