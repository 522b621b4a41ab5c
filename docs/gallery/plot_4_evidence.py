"""
Your first hour: script log-likelihoods
=======================================

For a reader whose scripts must produce numbers that hold: log p(x) of a test set, its errors, which rows not to believe, and which of two
models is better. Everything below takes any Pyro `(model, guide)` with one data plate.
"""

import tempfile
from pathlib import Path

import torch

from pyro_vae import (
    MLP,
    VAE,
    Bound,
    Conditional,
    Config,
    Evidence,
    StandardNormal,
    bernoulli,
    bracket,
    compare,
    compare_runs,
    convergence,
    defensive,
    evaluate_run,
    fit,
    gaps,
    iwae,
    load_evidence,
    load_run,
    log_likelihood,
    normal,
    quadrature,
    save_evidence,
    train_run,
)
from pyro_vae.data import load
from pyro_vae.plots.bars import gap_bars
from pyro_vae.plots.evidence import bracket_ends, convergence_curve
from pyro_vae.plots.khat import khat_histogram

digits = load("digits", binarization="static", verbose=False)
x = digits.test.x[:60]
torch.manual_seed(0)
vae = VAE(
    prior=StandardNormal(2),
    likelihood=Conditional(MLP(2, 64, hidden=(64,)), bernoulli),
    posterior=Conditional(MLP(64, 2 * 2, hidden=(64,)), normal),
)
fit(
    vae,
    digits.train.x,
    validation=digits.validation.x,
    objective=Bound(iwae, num_particles=8),
    epochs=30,
    verbose=False,
)
pair = (vae.model, vae.guide)

# %%
# A number, and what speaks against it
# ------------------------------------

evidence = log_likelihood(*pair, x, num_samples=1000, verbose=False)
print(str(evidence).replace(" | ", "\n"))

# %%
# Two errors, because they have two remedies: the Monte Carlo error shrinks with more samples, the data error with more rows. Each row
# has an effective sample size and a Pareto k̂; rows whose weights have too heavy a tail are flagged. All of it is in arrays, in
# nats, in the order of your rows.

summary = evidence.summary()
print({name: summary[name] for name in ("log_px", "log_px_mc_se", "log_px_data_se", "elbo", "gap", "rows_flagged")})
print("rows not to believe:", evidence.flagged)
worst = evidence.log_px.argsort()[:3]
print("least likely rows:", worst.tolist(), evidence.log_px[worst].tolist())
picture = khat_histogram(
    evidence.khat.numpy(), evidence.flagged.tolist(), evidence.threshold.numpy(), x.numpy(), (1, 8, 8)
)

# %%
# In your scripts: `strict=True` raises where rows are flagged, `target_se=0.01` takes as many samples as that takes, and the
# numbers do not depend on chunk sizes or on the order of evaluation. Parts that were computed elsewhere are joined to the same bits.

halves = [log_likelihood(*pair, x, particles=range(a, a + 500), verbose=False) for a in (0, 500)]
merged = Evidence.merge(halves)
assert (merged.log_px == evidence.log_px).all()
folder = Path(tempfile.mkdtemp())
save_evidence(evidence, folder / "evidence.json")
assert (load_evidence(folder / "evidence.json").log_px == evidence.log_px).all()

# %%
# Is K large enough?
# ------------------

picture = convergence_curve([e.summary() for e in convergence(*pair, x, samples=(1, 10, 100, 1000), verbose=False)])

# %%
# Between two ends
# ----------------
#
# A lower bound does not say how low it is. `bracket` bounds log p(x) from above as well, by reverse annealing: strict in expectation
# on rows that the model drew itself, approximate on real rows, and it says which. With two latents quadrature is exact, so we can
# see the truth between the ends.

exact = quadrature(*pair, x[:20], tol=1e-3)
ends = bracket(*pair, x[:20], num_temperatures=60, num_chains=16, leapfrog_steps=3, verbose=False)
print(str(ends).replace(" | ", "\n"))
print(str(exact).replace(" | ", "\n"))
picture = bracket_ends({"test rows": ends.summary()}, {"test rows": exact.summary()})

# %%
# Where the gap comes from
# ------------------------
#
# log p(x) − ELBO is the KL from q to the posterior. Part of it is the family's fault (no diagonal normal would do better), part of it
# the encoder's (another one of the same family would).

lost = gaps(*pair, x[:20], log_px=exact, steps=100, verbose=False)
print(str(lost).replace(" | ", "\n"))
picture = gap_bars({"digits, 2 latents": lost.summary()})

# %%
# Which is better?
# ----------------
#
# The same rows under another proposal, or another model: differences are paired, row by row, and each is decided, a tie, or not to
# be believed.

mixed = log_likelihood(*pair, x, num_samples=1000, proposal=defensive(0.1), verbose=False)
print(compare({"guide": evidence, "a tenth from the prior": mixed}))

# %%
# The same of runs on disk, without a line of model code: a run folder holds config, weights, evidence and pictures, and no pickle.

common = {"data": "digits", "binarization": "static", "hidden": (32,), "latent_dim": 2, "epochs": 3}
train_run(Config(**common), folder / "normal", num_samples=200)
train_run(Config(prior="mixture", **common), folder / "mixture", num_samples=200)
again = evaluate_run(folder / "mixture", num_samples=400)
print(again["log_px"], "±", again["log_px_mc_se"], "flagged:", again["rows_flagged"])
print(load_run(folder / "normal").evidence["log_px"])
print(compare_runs([folder / "normal", folder / "mixture"]))

# %%
# Where to go on: :doc:`/how_to/command_line` for the same in a shell, :doc:`/mathematics` for every estimator on this page, and
# ``examples/evidence.py`` for each of them beside the exact value.
