"""log p(x) of saved MNIST runs by every method: against quadrature where there are two latents, between brackets where not.

    pyro-vae train --run runs/two --data mnist --latent-dim 2 ...
    python examples/mnist_evidence.py --two runs/two --run runs/fifty

With two latents, quadrature knows log p(x) of each row of a trained decoder: what importance sampling and annealing miss of it
is measured, and whether k̂ told. With fifty, nothing is exact: on rows that the model drew, importance sampling and reverse
annealing enclose log p(x) (bidirectional Monte Carlo); on test rows annealing from the guide is set beside importance
sampling, row by row.
"""

import argparse
import time
from pathlib import Path

import torch

import pyro_vae as pv
from pyro_vae.common.flagged import format_difference
from pyro_vae.data import load
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bdmc, bracket
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.plots.evidence import bracket_ends
from pyro_vae.plots.figures import save
from pyro_vae.runs.load import load_run, open_data

BAD = 0.1  # nats: an error of importance sampling that k̂ should have told


def paired(difference, *bounds: dict) -> str:
    """Mean over rows ± its standard error; without, where a log p(x) that it is of is loose."""
    error = difference.std().item() / len(difference) ** 0.5
    return format_difference(difference.mean().item(), error, *bounds, digits=3)


def auc(score, event) -> str:
    """The chance that a row with the event has the higher score, and its standard error (Hanley & McNeil, 1982)."""
    yes, no = score[event], score[~event]
    if not len(yes) or not len(no):
        return "not defined: all rows are alike"
    a = ((yes[:, None] > no).double() + 0.5 * (yes[:, None] == no).double()).mean().item()
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = a * (1 - a) + (len(yes) - 1) * (q1 - a * a) + (len(no) - 1) * (q2 - a * a)
    return f"{a:.3f} ± {(variance / (len(yes) * len(no))) ** 0.5:.3f}"


class Clock:
    """CPU seconds since it was last asked."""

    def __init__(self) -> None:
        self.at = time.process_time()

    def __call__(self) -> str:
        before, self.at = self.at, time.process_time()
        return f"[{self.at - before:.0f} s]"


def two_latents(vae, x, num_samples: int, annealing: dict) -> None:
    """Importance sampling and annealing against quadrature."""
    clock, model, guide = Clock(), vae.model, vae.guide
    exact = quadrature(model, guide, x)
    print(f"quadrature:  {exact} {clock()}")
    sampled = pv.log_likelihood(model, guide, x, num_samples=num_samples, verbose=False)
    print(f"importance:  {sampled} {clock()}")
    annealed = ais(model, guide, x, start="prior", verbose=False, **annealing)
    print(f"annealing:   {annealed} {clock()}")
    off = sampled.log_px - exact.log_px
    above = (off / sampled.mc_se.clamp_min(1e-3)).max()
    print(
        f"importance − exact: {paired(off)} over rows; from {off.min():+.2f} to {off.max():+.2f} nats in a row", end=""
    )
    print(f", at most {above:.1f} Monte Carlo standard errors above it")
    print(f"annealing − exact:  {paired(annealed.log_px - exact.log_px)} over rows")
    wrong, flagged = off.abs() > BAD, sampled.khat > 0.7
    print(f"{int(wrong.sum())} of {len(x)} rows err by more than {BAD} nat; k̂ > 0.7 in {int(flagged.sum())}, ", end="")
    print(f"{int((flagged & wrong).sum())} of them among these; AUC of k̂ {auc(sampled.khat, wrong)}", flush=True)


def many_latents(vae, x, rows: int, num_samples: int, annealing: dict, path: Path) -> None:
    """A bracket on rows that the model draws, and annealing beside importance sampling on test rows."""
    clock, model, guide = Clock(), vae.model, vae.guide
    drawn = bdmc(model, guide, x, num_rows=rows, num_samples=num_samples, verbose=False, **annealing)
    print(f"simulated rows: {drawn} {clock()}")
    real = bracket(model, guide, x[:rows], num_samples=num_samples, verbose=False, **annealing)
    print(f"test rows:      {real} {clock()}")
    difference = real.annealing.log_px - real.importance.log_px
    print(
        f"test rows, annealing from the guide − importance sampling (K = {num_samples}): "
        f"{paired(difference, real.annealing.summary(), real.importance.summary())} over rows"
    )
    found = {"rows that the model drew": drawn.summary(), "test rows": real.summary()}
    print(f"Picture: {save(bracket_ends(found), path)}")


def short_vae(latent_dim: int):
    """A small model of digits in black and white, for the short form."""
    torch.manual_seed(0)
    data = load("digits", binarization="static")
    vae = pv.VAE(
        prior=pv.StandardNormal(latent_dim),
        likelihood=pv.Conditional(pv.MLP(latent_dim, 64, hidden=(16,)), pv.bernoulli),
        posterior=pv.Conditional(pv.MLP(64, 2 * latent_dim, hidden=(16,)), pv.normal),
    )
    pv.fit(vae, data.train.x, epochs=1, verbose=False)
    return vae, data.test.x


def opened(path: Path):
    """The model of a run and its test rows."""
    run = load_run(path)
    return run.vae, open_data(run).test.x


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--two", type=Path, help="a run with two latents")
    parser.add_argument("--run", type=Path, help="a run with more")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="a short form, on models of digits made on the spot")
    said = parser.parse_args()
    torch.set_num_threads(1)
    if said.quick:
        short = {"num_temperatures": 5, "num_chains": 4, "leapfrog_steps": 2, "step_size": 0.1}  # no pilot run
        vae, x = short_vae(2)
        two_latents(vae, x[:4], 50, short)
        vae, x = short_vae(8)
        many_latents(vae, x, 8, 50, short, Path("mnist_bracket.png"))
    if said.two:
        vae, x = opened(said.two)
        settings = {"num_temperatures": 1000, "num_chains": 64, "leapfrog_steps": 2}
        two_latents(vae, x[: said.rows], 5000, settings)
    if said.run:
        vae, x = opened(said.run)
        settings = {"start": "guide", "num_temperatures": 200, "num_chains": 16}
        many_latents(vae, x, said.rows, 5000, settings, Path("mnist_bracket.png"))
