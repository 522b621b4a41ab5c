"""A gallery: each role's part swapped in turn, on scikit-learn's 8×8 digits, and what that does to log p(x) (three minutes).

Held fixed: data (counts 0..16) and splits, 8 latents, one hidden layer of 128 each way, Trace_ELBO, optimizer, schedule,
batches, epochs, seed, and K particles on the same test rows. Swapped: one part, and how many outputs its network has.

Differences to the baseline are paired, row by row: what makes a row hard for every model drops out. Their standard error is
over test rows and knows of one training run only, so the baseline is trained from two more seeds: what a seed changes is the
scale for all else. Where ESS is low, log p(x) is too low, the less so the better q(z | x) fits: compare ELBOs, too.

All score the same discrete rows, so they compare; a density of x would not, as it can be as high as one likes. So the normal
is trained on y = (x + u) / 17, u ~ U[0, 1) afresh in each batch (its encoder reads y, too). A cell has the mass
P(x) = ∫ p((x + u) / 17) 17⁻⁶⁴ du, and log P(x) ≥ E_u[log p(y)] - 64 log 17 by Jensen's inequality: the bound shown.
"""

import argparse
import time
from pathlib import Path

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae import MLP, VAE, Conditional, Evidence, adam, errors, fit, likelihoods, log_likelihood, posteriors, priors
from pyro_vae.common.flagged import format_both_errors, format_difference, is_loose
from pyro_vae.data import dequantize, load
from pyro_vae.plots.figures import BLUE, GREY, INK, ORANGE, figure, save
from pyro_vae.training.schedules import cosine, warmup

D, BOUND = 8, "normal, dequantised (bound)"  # latents, and the one part whose number is not log p(x) but below it
noised = dequantize(17)


def encoder(features: int, family=likelihoods.normal) -> Conditional:
    return Conditional(MLP(64, features, hidden=(128,)), family)


def decoder(features: int, family) -> Conditional:
    return Conditional(MLP(D, features, hidden=(128,)), family)


def make(prior=None, likelihood=None, posterior=None) -> VAE:
    """The baseline, but for the parts given."""
    likelihood = likelihood or decoder(64, likelihoods.binomial(16))
    return VAE(prior or priors.StandardNormal(D), likelihood, posterior or encoder(2 * D))


def vamp(rows: Tensor) -> VAE:
    """p(z) = 1/K Σ q(z | u_k), pseudo-inputs u starting at rows of data: one module is posterior and in the prior."""
    q = encoder(2 * D)
    return make(prior=priors.VampPrior(q, len(rows), 64, initial=rows), posterior=q)


def gallery(x: Tensor) -> list[tuple]:
    """Role, part, and how to make the model: a function, for each to start from the same seed."""
    full, mixture, logistic = D + D * (D + 1) // 2, 5 * (1 + 2 * D), likelihoods.discretized_logistic(17)
    return [
        ("prior", "standard normal", make),
        ("prior", "mixture of 10 normals", lambda: make(prior=priors.Mixture(D, components=10))),
        ("prior", "VampPrior, 50 inputs", lambda: vamp(x[:: len(x) // 50][:50])),
        ("prior", "flow (NSF)", lambda: make(prior=priors.FlowPrior(D))),
        ("likelihood", "binomial(16)", make),
        ("likelihood", "categorical(17)", lambda: make(likelihood=decoder(17 * 64, likelihoods.categorical(17)))),
        ("likelihood", "discretized_logistic(17)", lambda: make(likelihood=decoder(2 * 64, logistic))),
        ("likelihood", BOUND, lambda: make(likelihood=decoder(2 * 64, likelihoods.normal))),
        ("posterior", "diagonal normal", make),
        ("posterior", "low-rank normal", lambda: make(posterior=encoder(D * (2 + 2), posteriors.low_rank_normal(2)))),
        ("posterior", "full normal", lambda: make(posterior=encoder(full, posteriors.full_normal(D)))),
        ("posterior", "flow (IAF)", lambda: make(posterior=posteriors.FlowPosterior(MLP(64, 64, hidden=(128,)), D))),
        ("posterior", "mixture of 5 normals", lambda: make(posterior=encoder(mixture, posteriors.mixture_normal(5)))),
        *(("seed", f"baseline, seed {seed}", make) for seed in (1, 2)),
    ]


def score_bound(vae: VAE, x: Tensor, num_samples: int, draws: int = 8) -> Evidence:
    """E_u[log p(y)] - 64 log 17, averaged over draws of u; their spread holds the noise of u and of z."""
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([noised(x, generator) for _ in range(draws)])
    e = log_likelihood(vae.model, vae.guide, y, num_samples=num_samples, verbose=False).of_counts(17, 64)
    log_px, ess, elbo = (values.view(draws, -1) for values in (e.log_px, e.ess, e.elbo))
    mean, se = (torch.stack((log_px, elbo, ess)).mean(1), torch.stack((log_px, elbo)).std(1) / draws**0.5)
    return Evidence(mean[0], se[0], mean[2], mean[1], se[1], num_samples, seed=0)


def train_and_score(build, data, part: str, epochs: int, num_samples: int) -> Evidence:
    """One model, on the budget that all have."""
    noisy, seed = part == BOUND, int(part[-1]) if "seed" in part else 0
    torch.manual_seed(seed)
    vae, test, noise = build(), data.test.x, torch.Generator().manual_seed(1)
    fit(
        vae, data.train.x, validation=noised(data.validation.x, noise) if noisy else data.validation.x,
        transform=noised if noisy else None, objective=Trace_ELBO(), optimizer=adam(2e-3), schedule=warmup(cosine),
        batch_size=128, epochs=epochs, seed=seed, verbose=False,
    )  # fmt: skip
    if noisy:
        return score_bound(vae, test, num_samples)
    return log_likelihood(vae.model, vae.guide, test, num_samples=num_samples, verbose=False)


def draw(rows: list[tuple], num_samples: int):
    """log p(x) of each part, twice the paired error of its difference to the baseline, and the ELBO below it."""
    fig = figure(9.5, 5.4)
    ax, y, before, ticks = fig.add_subplot(), 0.0, None, []
    ax.axvline(rows[0][2]["log_px"], color=GREY, lw=1, ls="--", zorder=0)
    beside = {"va": "center", "transform": ax.get_yaxis_transform()}
    for role, part, s, mean, se in rows:
        y += 1 if role == before else 2
        if role != before:
            ax.text(-0.01, y - 0.9, role, weight="bold", ha="right", **beside)
        color = INK if role == "seed" else ORANGE if part == BOUND else BLUE
        ax.plot([s["elbo"], s["log_px"]], [y, y], color=GREY, lw=1, marker="|", ms=7, markevery=[0], zorder=1)
        loose = is_loose(s) or is_loose(rows[0][2])
        bar = None if loose else 2 * se
        ax.errorbar(s["log_px"], y, xerr=bar, color=color, marker="o", ms=5, capsize=3, mfc="white" if loose else color)
        said = format_difference(mean, se, s, rows[0][2], digits=1) if se else "baseline"
        ax.text(1.02, y, said, color=color, **beside)
        before, ticks = role, [*ticks, y]
    ax.text(1.02, 1.1, "difference ± s.e.", color=GREY, **beside)
    ax.set_yticks(ticks, [row[1] for row in rows])
    ax.set(ylim=(y + 0.7, 0.7), xlabel=f"nats per test row, K = {num_samples}: higher is better")
    title = (
        "log p(x) (dot; hollow: a loose bound, without error), ± 2 s.e. of its paired difference; and its ELBO (tick)"
    )
    ax.set_title(title, fontsize=10)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return fig


def main(epochs: int = 150, num_samples: int = 1000) -> None:
    data, rows, done = load("digits"), [], {}
    print(f"{'role':11}{'part':28}{'log p(x) ± MC ± data':24}{'minus baseline':>15}       ELBO   gap  ESS  seconds")
    for role, part, build in gallery(data.train.x):
        start, key = time.perf_counter(), "baseline" if build is make and role != "seed" else part
        if key not in done:
            done[key] = train_and_score(build, data, part, epochs, num_samples), time.perf_counter() - start
        (score, seconds), (base, _), s = done[key], done["baseline"], done[key][0].summary()
        difference = score.log_px - base.log_px
        mean, se = difference.mean().item(), difference.std().item() / len(difference) ** 0.5
        rows.append((role, part, s, mean, se))
        logs = f"{format_both_errors(s):24}{format_difference(mean, se, s, base.summary()):>15}"
        print(f"{role:11}{part:28}{logs}{s['elbo']:11.2f}{s['gap']:6.2f}{s['ess_median']:5.0f}{seconds:9.1f}")
    print(f"Picture: {save(draw(rows, num_samples), Path('swap_parts.png'))}")
    try:
        fit(make(likelihood=decoder(64, likelihoods.bernoulli)), data.train.x / 16, epochs=epochs)
    except errors.SupportError as error:
        print(f"Refused: Bernoulli on grey pixels: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(**({"epochs": 1, "num_samples": 10} if parser.parse_args().quick else {}))
