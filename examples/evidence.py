"""A log p(x) one can trust: how wrong each estimate is, which rows not to believe, where the gap comes from (three minutes).

A VAE with two latents is trained on scikit-learn's digits in black and white. Two latents are few enough for quadrature,
which is exact here, so that every estimate can be held against the truth: importance sampling and its k̂ flags, annealing
(AIS), and brackets, strict on rows that the model drew and approximate on test rows. Then: how much of log p(x) − ELBO is
the family's fault and how much the encoder's, what the KL is spent on, how far the encoder is from the best trade of rate
and distortion, and whether its posteriors are calibrated. All work alike on any model and guide with continuous latents.
"""

import argparse
import time
from pathlib import Path

import torch
from pyro.infer import Trace_ELBO
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, bernoulli, fit, normal
from pyro_vae.common.flagged import format_log_px, is_loose, why_loose
from pyro_vae.data import load
from pyro_vae.diagnostics.elbo_decomposition import decompose
from pyro_vae.diagnostics.inference_gaps import gaps
from pyro_vae.diagnostics.sbc import simulation_based_calibration
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bdmc, bracket
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.importance.convergence import SAMPLES, convergence
from pyro_vae.plots import bars, evidence
from pyro_vae.plots.calibration import ecdf_differences
from pyro_vae.plots.figures import save
from pyro_vae.plots.khat import khat_histogram


def trained(epochs: int) -> tuple[VAE, Tensor, Tensor]:
    """The VAE, its training and its test rows."""
    data = load("digits")  # counts 0..16
    train, validation, test = ((split.x > 7).float() for split in (data.train, data.validation, data.test))
    vae = VAE(
        prior=StandardNormal(2),
        likelihood=Conditional(MLP(2, 64, hidden=(64, 64), activation=nn.Tanh), bernoulli),
        posterior=Conditional(MLP(64, 2 * 2, hidden=(64,), activation=nn.Tanh), normal),
    )
    fit(vae, train, validation=validation, objective=Trace_ELBO(), optimizer=adam(3e-3), epochs=epochs, verbose=False)
    return vae, train, test


def show(name: str, value: float, error: float | None, kind: str, note: str = "") -> None:
    """A line of the table."""
    said = "unknown" if error is None else f"{error:.1e}" if 0 < error < 1e-3 else f"{error:.3f}"
    print(f"{name:38}{value:9.3f} ± {said:8}{kind:14}{note}".rstrip())


def beside(estimate, exact, note: str) -> Tensor:
    """Two lines: an estimate, and how far it is from the truth, row by row; returns that."""
    s, d = estimate.summary(), estimate.log_px - exact.log_px
    if is_loose(s):
        print(f"  log p(x)  {format_log_px(s)}; {note}")
    else:
        show("  log p(x)", s["log_px"], s["log_px_mc_se"], "Monte Carlo", note)
    show("  minus exact", d.mean().item(), d.std().item() / len(d) ** 0.5, "over rows", f"largest {d.abs().max():.2f}")
    return d


def show_exact(e: dict) -> None:
    """An oracle's value with its errors; without, where it does not vouch for it."""
    if is_loose(e):
        print(f"  log p(x)  {format_log_px(e)}")
    else:
        show("  log p(x)", e["log_px"], e["log_px_error"], "grid", f"± {e['log_px_data_se']:.3f} over rows (data)")


def show_bracket(name: str, found, exact) -> None:
    """Its ends, and the truth between them."""
    s, e = found.summary(), exact.summary()
    print(f"Bracket of {s['rows']} {name}")
    if is_loose(s):
        print(f"  lower end {s['lower']:.2f} ({why_loose(s)}); upper − lower end {s['gap']:.2f}")
    else:
        show("  lower end", s["lower"], s["lower_mc_se"], "Monte Carlo", f"{s['rows_by_annealing']} rows by annealing")
        show("  upper − lower end", s["gap"], s["gap_se"], "over rows")
    show_exact(e)
    show(f"  upper end, {s['upper_is']}", s["upper"], s["upper_mc_se"], "Monte Carlo")


def show_parts(title: str, parts: dict, of: dict | None = None) -> None:
    """Means over rows, with both errors; without, where they are of a log p(x) that is loose."""
    print(title)
    for name, part in parts.items():
        if of is not None and is_loose(of) and name != "amortisation":
            print(f"  {name:36}{part['value']:9.2f} ({why_loose(of)})")
        else:
            show(f"  {name}", part["value"], part["mc_se"], "Monte Carlo", f"± {part['data_se']:.3f} over rows (data)")


def main(epochs=100, samples=SAMPLES, rows=180, steps=500, simulated=1000, tol=1e-4, **annealing) -> None:
    start = time.process_time()
    torch.manual_seed(0)
    vae, train, test = trained(epochs)
    pair, x, quiet = (vae.model, vae.guide), test[:rows], {"verbose": False}
    print(f"{'':38}{'nats a row':>9}   error   of what")

    exact = quadrature(*pair, x, tol=tol)
    e = exact.summary()
    print(f"Exact: {exact.method}, {exact.how}")
    show_exact(e)

    growing = convergence(*pair, x, samples=samples, **quiet)
    sampled = growing[-1]
    s = sampled.summary()
    print(f"Importance sampling, K = {samples[-1]}")
    wrong = beside(sampled, exact, f"{s['rows_flagged']} of {rows} rows flagged").abs() > 0.1
    print(f"{'  jackknife, no bound':38}{s['jackknife']:9.3f}")
    show("  ELBO", s["elbo"], s["elbo_mc_se"], "Monte Carlo")
    if 0 < (n := int(wrong.sum())) < rows:
        auc = float(roc_auc_score(wrong, sampled.khat))
        most = (auc * (1 - auc) / min(n, rows - n)) ** 0.5
        show("  AUC of k̂, for errors above 0.1 nat", auc, most, "at most", f"{n} such rows")

    annealed = ais(*pair, x, num_chains=64, **annealing, **quiet)
    print(f"Annealing from the prior, {annealed.settings.num_temperatures} temperatures, 64 chains")
    beside(annealed, exact, f"acceptance {annealed.acceptance.mean():.2f}")

    options = {"num_samples": samples[-1]} | annealing | quiet
    drawn = bdmc(*pair, x, num_rows=min(rows, 100), **options)
    brackets = {"rows the model drew": drawn, "test rows": bracket(*pair, x, **options)}
    truths = {"rows the model drew": quadrature(*pair, drawn.x, tol=tol), "test rows": exact}
    for name, found in brackets.items():
        show_bracket(name, found, truths[name])

    rows_of = {"test rows": (x, exact), "training rows": (train[:rows], quadrature(*pair, train[:rows], tol=tol))}
    lost = {name: gaps(*pair, y, log_px=truth, steps=steps, **quiet).summary() for name, (y, truth) in rows_of.items()}
    for name, found in lost.items():
        names = ("gap", "approximation", "amortisation")
        title = f"log p(x) − ELBO of {rows} {name}, and where it comes from"
        show_parts(title, {part: found[part] for part in names}, found)
    spent = decompose(*pair, x, num_samples=50, **quiet).to_dict()
    title = "ELBO = reconstruction (− distortion) − KL (rate), and what the KL is spent on"
    show_parts(title, {"reconstruction": spent["reconstruction"], "KL": spent["kl"], **spent["parts"]})
    ranks = simulation_based_calibration(*pair, x[:1], num_rows=simulated)
    print(f"Calibration: {ranks}\n{time.process_time() - start:.0f} s of CPU time")

    _, rates, distortions = annealed.rate_distortion()
    ends, middles = ({name: b.summary() for name, b in found.items()} for found in (brackets, truths))
    khat, threshold = sampled.khat.numpy(), sampled.threshold.max().item()
    pictures = {
        "bracket": evidence.bracket_ends(ends, middles),
        "khat": khat_histogram(khat, sampled.flagged.tolist(), threshold, x.numpy(), (1, 8, 8)),
        "convergence": evidence.convergence_curve([found.summary() for found in growing], e),
        "rate_distortion": evidence.rate_distortion_curve(rates, distortions, {"the encoder": spent}, e["log_px"]),
        "gaps": bars.gap_bars(lost),
        "decomposition": bars.decomposition_bars({"test rows": spent}),
        "calibration": ecdf_differences(ranks.to_dict()),
    }
    print(f"Pictures: {', '.join(save(fig, Path(f'{name}.png')).name for name, fig in pictures.items())}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    small = {"epochs": 1, "samples": (1, 5, 30), "rows": 6, "steps": 4, "simulated": 20, "tol": 0.01}
    short = small | {"num_temperatures": 4, "leapfrog_steps": 2, "step_size": 0.1}  # a given step needs no pilot run
    main(**(short if parser.parse_args().quick else {}))
