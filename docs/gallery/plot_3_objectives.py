r"""
Your first hour: try objectives
===============================

For a reader who wants to know what a bound, a gradient estimator or a schedule does. They are three choices that do not know of one
another, nor the model of them:

- a **bound** is a function of log weights, `(K, N) -> (N,)`;
- an **estimator** says how the particles weigh in the gradient;
- what is done to the KL is an effect **handler** around both programs.

Whatever is trained, the history holds the true ELBO in nats, so runs compare.
"""

import torch
from matplotlib import pyplot as plt
from pyro.infer import Trace_ELBO

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Conditional,
    StandardNormal,
    bernoulli,
    constant,
    cyclical,
    dreg,
    elbo,
    fit,
    gradient_report,
    iwae,
    log_likelihood,
    normal,
    pathwise,
    renyi,
    stl,
    warmup,
)
from pyro_vae.data import load

digits = load("digits", binarization="dynamic", verbose=False)  # zeros and ones, drawn anew each epoch
x = digits.test.x


def make():
    torch.manual_seed(0)
    return VAE(
        prior=StandardNormal(8),
        likelihood=Conditional(MLP(8, 64, hidden=(64,)), bernoulli),
        posterior=Conditional(MLP(64, 2 * 8, hidden=(64,)), normal),
    )


# %%
# One model under several objectives
# ----------------------------------
#
# Pyro's own ELBOs go in unchanged, and so does every `Bound`, which is a `pyro.infer.ELBO` itself.

objectives = {
    "ELBO": Trace_ELBO(),
    "IWAE, K = 8": Bound(iwae, num_particles=8),
    "IWAE, K = 8, DReG": Bound(iwae, num_particles=8, estimator=dreg),
    "Rényi, α = 0.5": Bound(renyi(0.5), num_particles=8),
}
history = {}
for name, objective in objectives.items():
    vae = make()
    run = fit(
        vae, digits.train.x, validation=digits.validation.x, transform=digits.transform, objective=objective, epochs=20,
        verbose=False,
    )  # fmt: skip
    history[name] = [record["elbo"] for record in run.history]
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=1000, verbose=False)
    print(f"{name}:", str(evidence).replace(" | ", "\n    "))

# %%
# The ELBO of the validation rows, under each objective. IWAE does not maximise it, and need not: look at log p(x) above, which is
# higher by more than a nat, and at the gap, which is wider. A bound of several weights lets the encoder be further from the posterior,
# as the weights make up for it. (One seed each: :doc:`/how_to/ensembles` says what a seed does.)

figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for name, values in history.items():
    ax.plot(range(1, len(values) + 1), values, label=name)
ax.set(xlabel="epoch", ylabel="ELBO of validation rows, nats")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)

# %%
# A bound of your own
# -------------------
#
# A bound is any function of log weights; here a median of groups, which is no named bound at all. What you train with it is up to
# you; what is logged stays the ELBO.


def median_of_means(log_w):
    """The median over 4 groups of log mean w."""
    groups = log_w.reshape(4, -1, log_w.shape[-1])
    return (groups.logsumexp(1) - torch.tensor(float(groups.shape[1])).log()).median(0).values


vae = make()
run = fit(
    vae,
    digits.train.x,
    transform=digits.transform,
    objective=Bound(median_of_means, num_particles=8),
    epochs=2,
    verbose=False,
)
print({name: round(value, 2) for name, value in run.history[-1].items() if name in ("loss", "elbo", "active_units")})

# %%
# How noisy is the gradient?
# --------------------------
#
# `gradient_report` takes the same gradient many times. As K grows, the encoder's signal-to-noise ratio falls under the pathwise
# estimator, and rises under DReG (Rainforth et al., 2018; Tucker et al., 2019).

reports = {
    f"{name}, K = {k}": Bound(iwae, num_particles=k, estimator=estimator)
    for name, estimator in {"pathwise": pathwise, "DReG": dreg, "STL": stl}.items()
    for k in (1, 16)
}
print(gradient_report(vae, digits.validation.x[:32], objectives=reports, draws=60))

# %%
# β and its schedules
# -------------------
#
# β is a handler around the pair, so it goes with every bound. `scheduled=` moves it while training.

for name, beta in {
    "β = 1": Beta(1.0),
    "warm-up over half": Beta(1.0, warmup(constant, 0.5)),
    "cyclical": Beta(1.0, cyclical(2)),
    "β = 4": Beta(4.0),
}.items():
    vae = make()
    run = fit(
        beta.pair(vae),
        digits.train.x,
        transform=digits.transform,
        objective=Bound(elbo),
        scheduled=[beta],
        epochs=8,
        verbose=False,
    )
    last = run.history[-1]
    print(f"{name:20} ELBO {last['elbo']:7.2f}   active units {last['active_units']}")

# %%
# Where to go on: :doc:`/mathematics` (each estimator, with its formula), :doc:`/parts` for the names on the command line, and
# ``examples/objectives.py`` for thirteen objectives over longer runs.
