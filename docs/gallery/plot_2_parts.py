"""
Your first hour: swap priors and likelihoods
============================================

For a reader who has a model in mind and wants to change it. A VAE here is three callables that return Pyro distributions, so a
change is another callable: nothing is subclassed and nothing is registered. The data are scikit-learn's digits, 8 x 8 images of
counts from 0 to 16, and each model is small and trained for a few seconds only; what matters is how each swap is written, and how its effect is
measured.
"""

import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    StandardNormal,
    check,
    compare,
    fit,
    likelihoods,
    log_likelihood,
    posterior_predictive_check,
    priors,
    sample,
)
from pyro_vae.data import load

digits = load("digits", verbose=False)
D = 4  # latents

# %%
# A model, by its parts
# ---------------------
#
# `Conditional(network, family)` is a network, and a function that makes a distribution of its features. A family says how many
# features it needs for each element: a binomial one (a logit), a normal two.


def make(prior=None, family=None, features=64):
    """p(z) p(x | z) with q(z | x): the baseline, but for what is given."""
    torch.manual_seed(0)  # each model starts from the same seed
    return VAE(
        prior=prior or StandardNormal(D),
        likelihood=Conditional(MLP(D, features, hidden=(64,)), family or likelihoods.binomial(16)),
        posterior=Conditional(MLP(64, 2 * D, hidden=(64,)), likelihoods.normal),
    )


vae = make()
print(check(vae.model, vae.guide, digits.train.x[:50]))

# %%
# `check` found nothing wrong: sites, plates, supports and gradients of the two programs match. It is worth a call whenever you write
# something of your own; :doc:`/what_can_go_wrong` has the list of what it finds.
#
# Swap the prior
# --------------
#
# One from the library, one that is a lambda, and one with parameters of its own. The last is a module because it has something to
# learn.


class LearnedStudent(torch.nn.Module):
    """p(z) = Π t_5(loc, scale), with loc and scale learned."""

    def __init__(self, dim):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(dim))
        self.log_scale = torch.nn.Parameter(torch.zeros(dim))

    def forward(self, *context):
        return dist.StudentT(5.0, self.loc, self.log_scale.exp()).to_event(1)


def scored(vae):
    """Trained for a few epochs on the training rows, and log p(x) of the test rows."""
    fit(vae, digits.train.x, validation=digits.validation.x, epochs=15, verbose=False)
    return log_likelihood(vae.model, vae.guide, digits.test.x, num_samples=500, verbose=False)


found = {
    "standard normal": scored(make()),
    "mixture of 5": scored(make(priors.Mixture(D, components=5))),
    "Laplace, a lambda": scored(make(lambda *c: dist.Laplace(torch.zeros(D), 1.0).to_event(1))),
    "Student t, a module": scored(make(LearnedStudent(D))),
}
print(compare(found))

# %%
# `compare` pairs the rows: what makes a row hard under every model drops out of a difference. It also says what is not to be
# believed. Where the weights of more than a tenth of the rows have too heavy a tail, a number is a lower bound, printed with `≥` and
# without an error, and no difference is decided. Fifteen epochs of a diagonal encoder earn just that.
#
# Swap the likelihood
# -------------------
#
# The same counts under other families. All of them are probabilities of the same discrete rows, so they compare; a density would
# not, and `compare` would refuse it by name.


def overdispersed(h):
    """A beta-binomial of 16 trials: a family of one's own is a function from features to a distribution."""
    a, b = torch.nn.functional.softplus(h.float()).clamp(min=1e-2).chunk(2, -1)
    return dist.BetaBinomial(a, b, total_count=16)


models = {
    "binomial": make(),
    "beta-binomial, own": make(family=overdispersed, features=2 * 64),
    "discretized logistic": make(family=likelihoods.discretized_logistic(17), features=2 * 64),
}
by_family = {name: scored(vae) for name, vae in models.items()}
print(compare(by_family))

# %%
# Digits have edges that are always 0 and strokes that saturate at 16; a family that can say "0 or 16" gains nats by the dozen.
#
# Look at what each model draws
# -----------------------------

figure, axes = plt.subplots(len(models), 10, figsize=(8, 0.95 * len(models)), layout="constrained")
for row, (name, vae) in zip(axes, models.items(), strict=True):
    for ax, image in zip(row, sample(vae, 10, seed=0), strict=True):
        ax.imshow(image.view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    row[0].set_title(name, loc="left", fontsize=9)

# %%
# And ask the data whether such draws look like them, by statistics that you choose: here how many pixels are exactly zero.

for name, vae in models.items():
    report = posterior_predictive_check(
        vae.model,
        vae.guide,
        digits.test.x,
        statistics={"zeros": lambda x: (x == 0).float().mean(-1)},
        num_draws=50,
    )
    print(name, report, sep="\n")

# %%
# Where to go on: :doc:`/choosing_a_likelihood`, :doc:`/parts` (every part that has a name) and :doc:`/how_to/own_program` for a
# Pyro model that is not a VAE of these three roles.
