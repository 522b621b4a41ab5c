r"""
What a VAE maximises
====================

A variational autoencoder has three parts: a prior :math:`p(z)`, a likelihood :math:`p(x \mid z)`, and an encoder
:math:`q(z \mid x)` that guesses which :math:`z` a given :math:`x` came from. Everything in this library grew out of one line
about them:

.. math::

    \log p(x) \;=\; \underbrace{\mathbb{E}_q\!\left[\log \frac{p(x, z)}{q(z \mid x)}\right]}_{\mathrm{ELBO}(x)}
    \;+\; \underbrace{\mathrm{KL}\bigl(q(z \mid x) \,\|\, p(z \mid x)\bigr)}_{\geq\, 0}

This chapter derives it, and puts a number on every term. The latents are two, so that each integral can be done by quadrature:
nothing here is estimated where it can be computed.
"""

import math

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, binomial, fit, iwae, log_weights, normal
from pyro_vae.data import load

torch.manual_seed(0)
digits = load("digits", verbose=False)  # 8 x 8 images of counts 0..16
x = digits.test.x[:6].double()  # six of them, to look at
vae = VAE(
    prior=StandardNormal(2),  # p(z)
    likelihood=Conditional(MLP(2, 64, hidden=(64,), activation=nn.Tanh), binomial(16)),  # p(x | z)
    posterior=Conditional(MLP(64, 2 * 2, hidden=(64,)), normal),  # q(z | x)
)

# %%
# Bayes' rule
# -----------
#
# The prior and the likelihood make a joint density, :math:`p(x, z) = p(z)\, p(x \mid z)`, and Bayes' rule is what ties it to the
# density of the data and to the posterior:
#
# .. math:: p(z \mid x) = \frac{p(x, z)}{p(x)} \qquad\Longleftrightarrow\qquad \log p(x) = \log p(x, z) - \log p(z \mid x).
#
# The right side holds **at every** :math:`z`, and the left side knows nothing of :math:`z`. The trouble is that
# :math:`p(x) = \int p(z)\, p(x \mid z)\, dz` is an integral over all latents. With two of them it is a sum over a grid.

EDGE, POINTS = 7.0, 241  # the grid covers [-7, 7]², and little of p(z) lies beyond


def grid(edge, points):
    """Evenly spaced z over [-edge, edge]², of shape (points, points, 1, 2); the 1 is for images."""
    side = torch.linspace(-edge, edge, points, dtype=torch.float64)
    return torch.cartesian_prod(side, side).view(points, points, 1, 2)


def log_joint(vae, x, z):
    """log p(x, z) = log p(z) + log p(x | z), at each z for each image."""
    return torch.cat([vae.prior().log_prob(row) + vae.likelihood(row).log_prob(x) for row in z.split(4)])


def log_evidence(log_pxz, step):
    """log p(x) = log ∫ p(x, z) dz, by the trapezoid rule."""
    return log_pxz.logsumexp((0, 1)) + 2 * math.log(step)


# %%
# The three terms
# ---------------
#
# Take any distribution :math:`q(z \mid x)`. Add and subtract its log-density in Bayes' rule, and average over
# :math:`z \sim q(z \mid x)`; the left side does not depend on :math:`z`, so it stays what it is:
#
# .. math::
#
#     \log p(x) = \mathbb{E}_q\bigl[\log p(x, z) - \log q(z \mid x)\bigr]
#               + \mathbb{E}_q\bigl[\log q(z \mid x) - \log p(z \mid x)\bigr].
#
# The first term is the ELBO. It needs neither :math:`p(x)` nor the posterior, so it can be trained on. The second is the
# Kullback–Leibler divergence from :math:`q` to the posterior. Writing :math:`p(x, z) = p(z)\, p(x \mid z)` once more splits the ELBO
# into a reconstruction and a price for the code:
#
# .. math:: \mathrm{ELBO}(x) = \mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}\bigl(q(z \mid x) \,\|\, p(z)\bigr).
#
# Each of the terms gets a quadrature of its own, so that their sum is a check and not a tautology. (Even the posterior inside the
# second KL is normalised by another grid than :math:`\log p(x)` is.)


def reconstruction(vae, x, nodes=48):
    """E_q[log p(x | z)], by Gauss-Hermite quadrature in u, z = loc + scale u."""
    q = vae.posterior(x)
    node, weight = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    u = torch.cartesian_prod(node, node)[:, None]
    return torch.outer(weight, weight).flatten() @ vae.likelihood(q.mean + q.stddev * u).log_prob(x) / (2 * math.pi)


def kl_to_posterior(vae, x, log_px, points=65):
    """E_q[log q(z | x) − log p(z | x)], by the trapezoid rule in the same u."""
    q, u = vae.posterior(x), grid(8.0, points)
    z = q.mean + q.stddev * u
    weight = torch.exp(-u.square().sum(-1) / 2) / (2 * math.pi) * (16 / (points - 1)) ** 2
    return (weight * (q.log_prob(z) - (log_joint(vae, x, z) - log_px))).sum((0, 1))


@torch.no_grad()
def terms(vae, x):
    """log p(x), the reconstruction, KL to the prior, and KL to the posterior: a number an image, in nats."""
    step = 2 * EDGE / (POINTS - 1)
    log_pxz = log_joint(vae, x, grid(EDGE, POINTS))
    log_px, coarser = log_evidence(log_pxz, step), log_evidence(log_pxz[::2, ::2], 2 * step)
    kl_to_prior = kl_divergence(vae.posterior(x), vae.prior())  # two normals: in closed form
    return log_px, reconstruction(vae, x), kl_to_prior, kl_to_posterior(vae, x, coarser)


# %%
# Before training, and after it. The last column is what the identity leaves unexplained: the error of the quadratures.

history = []


def look(record):
    """Keep the terms after some epochs: of the same model in float64."""
    if record["epoch"] in (1, 2, 4, 8, 15, 30):
        vae.double()
        history.append((record["epoch"], *terms(vae, x)))
        vae.float()


fit(vae, digits.train.x, epochs=30, optimizer=adam(lr=3e-3), on_epoch=look, verbose=False)
print("epoch   log p(x) =     ELBO + KL(q‖p(z|x)) |   ELBO =  E log p(x|z) − KL(q‖p(z)) | residual")
for epoch, log_px, rec, kl_prior, kl_post in history:
    left = (log_px - (rec - kl_prior + kl_post)).abs().max()
    numbers = [t.mean() for t in (log_px, rec - kl_prior, kl_post, rec, kl_prior)]
    print("{:5}{:11.3f}{:11.3f}{:12.3f}{:26.3f}{:12.3f}{:15.0e}".format(epoch, *numbers, left))
    assert left < 1e-3

# %%
# Why the KL cannot be negative
# -----------------------------
#
# For every positive number :math:`r`, :math:`\log r \leq r - 1`: the logarithm lies below its tangent at 1. Put
# :math:`r = p(z \mid x) / q(z \mid x)` and average over :math:`q`. Under :math:`q` the ratio averages to one, whatever it is,
# because it turns an average over :math:`q` into the integral of a density:
#
# .. math::
#
#     -\mathrm{KL} = \mathbb{E}_q[\log r] \;\leq\; \mathbb{E}_q[r] - 1 = \int p(z \mid x)\, dz - 1 = 0.
#
# Here are ratios of the first image, drawn from its trained encoder.

vae.double()
with torch.no_grad():
    q = vae.posterior(x[:1])
    z = q.sample((4000,))
    log_r = (log_joint(vae, x[:1], z) - history[-1][1][0] - q.log_prob(z)).flatten()
r = log_r.exp()
print(
    f"E[r] = {r.mean():.3f} ± {r.std() / 4000**0.5:.3f}; E[log r] = {log_r.mean():.3f}; −KL = {-history[-1][4][0]:.3f}"
)

figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
line = torch.linspace(0.02, 4, 200)
ax.plot(line, line - 1, color="#888888", label="r − 1")
ax.plot(line, line.log(), color="#1f5f99", label="log r, below it everywhere")
ax.plot(r[:300], log_r[:300], ".", color="#d9822b", markersize=3, label="r = p(z|x) / q(z|x), z ~ q")
ax.set(xlabel="r", ylim=(-4, 3.2), xlim=(0, 4))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)

# %%
# The gap
# -------
#
# So the ELBO is a lower bound of :math:`\log p(x)`, and the distance between them, *the gap*, is how far the encoder is from the
# posterior: zero where :math:`q(z \mid x) = p(z \mid x)`. A higher ELBO may come from a better model, or from a smaller gap; the
# ELBO alone does not tell which. This is why the library always prints :math:`\log p(x)` and the gap beside it.

figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
epochs = [h[0] for h in history]
log_px, elbo = ([v.mean().item() for v in vs] for vs in ([h[1] for h in history], [h[2] - h[3] for h in history]))
ax.fill_between(epochs, elbo, log_px, color="#d9822b", alpha=0.35, lw=0, label="gap: KL(q(z|x) ‖ p(z|x))")
ax.plot(epochs, log_px, color="#1f5f99", marker="o", markersize=3, label="log p(x), by quadrature")
ax.plot(epochs, elbo, color="#222222", marker="o", markersize=3, label="ELBO")
for at, low, high in zip(epochs, elbo, log_px, strict=True):
    ax.annotate(f"{high - low:.1f}", (at, low), (3, -12), textcoords="offset points", color="#b3651c", fontsize=9)
ax.set(xscale="log", xlabel="epoch", ylabel="nats, mean over 6 test images")
ax.set_xticks(epochs, epochs)
ax.minorticks_off()
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="lower right")

# %%
# And here is the gap in the latent plane: the exact posterior (blue, at 1, 2 and 3 standard deviations' worth of density) and the
# encoder's ellipse at 1 and 2, for the three images where the gap is smallest, in the middle, and largest.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
order = history[-1][4].argsort()
with torch.no_grad():
    for ax, i in zip(axes, (order[0], order[len(order) // 2], order[-1]), strict=True):
        q = vae.posterior(x[i : i + 1])
        coarse = grid(EDGE, 121)
        peak = coarse.view(-1, 2)[log_joint(vae, x[i : i + 1], coarse).argmax()]  # of the posterior
        wide = (peak - q.mean).abs().max() / 2 + 4 * q.stddev.max()
        z = (peak + q.mean) / 2 + grid(wide.item(), 121)
        density = log_joint(vae, x[i : i + 1], z)[..., 0]
        plane = z[:, :, 0].permute(2, 0, 1)
        ax.contourf(
            *plane, density - density.max(), levels=[-4.5, -2, -0.5, 0.01], colors=["#cfe0ef", "#7fb0d8", "#1f5f99"]
        )
        turn = torch.linspace(0, 2 * math.pi, 100)
        for sigmas in (1, 2):
            ring = q.mean + sigmas * q.stddev * torch.stack([turn.cos(), turn.sin()], -1)
            ax.plot(*ring.T, color="#d9822b")
        ax.set(title=f"KL = {history[-1][4][i]:.2f} nats", xlabel="z1", ylabel="z2", aspect="equal")

# %%
# Reparameterisation
# ------------------
#
# To train, we need the gradient of an average over :math:`q` with respect to :math:`q`'s own parameters :math:`\phi`. There are two
# ways. The *score function* works for any :math:`q`; the *path* works where a draw can be written :math:`z = \mu + \sigma\epsilon`
# with noise that knows no parameters, and then the gradient passes through the draw:
#
# .. math::
#
#     \nabla_\phi\, \mathbb{E}_q[f(z)] \;=\; \mathbb{E}_q\bigl[f(z)\, \nabla_\phi \log q(z)\bigr]
#     \;=\; \mathbb{E}_\epsilon\bigl[\nabla_z f(z)\, \nabla_\phi z\bigr], \qquad z = \mu + \sigma\epsilon .
#
# Both have the same mean. Their noise is another matter: here is :math:`\partial/\partial\mu_1` of
# :math:`\mathbb{E}_q[\log p(x \mid z)]` for the first image, from a thousand single draws of each.

with torch.no_grad():
    q = vae.posterior(x[:1])
loc, scale = q.mean[0].requires_grad_(), q.stddev[0]
z = loc + scale * torch.randn(1000, 2, dtype=torch.float64)  # reparameterised
f = vae.likelihood(z).log_prob(x[0])
path = torch.autograd.grad(f.sum(), z)[0][:, 0]  # ∂f/∂z1 · ∂z1/∂μ1, and the latter is 1
score = (f * (z[:, 0] - loc[0]) / scale[0] ** 2).detach()  # f · ∂ log q / ∂μ1
for name, g in {"path": path, "score function": score}.items():
    print(
        f"{name:15} mean {g.mean():8.2f} ± {g.std() / 1000**0.5:6.2f}   standard deviation of one draw {g.std():8.2f}"
    )

# %%
# From one draw to many
# ---------------------
#
# The line at the top of this page is about one quantity, :math:`\log w = \log p(x, z) - \log q(z \mid x)`. Its mean under :math:`q`
# is the ELBO. The mean of :math:`w` itself is exactly :math:`p(x)`, so the logarithm of an average of many weights rises towards
# :math:`\log p(x)`: importance sampling, and the bound that IWAE trains. In the library this quantity is one tensor, `(K, N)`, for
# any model and guide; everything that it says about fit is computed from it.

vae.float()
with torch.no_grad():
    for particles in (1, 10, 100, 1000):
        bound = iwae(log_weights(vae.model, vae.guide, x.float(), num_particles=particles)).mean()
        print(f"K = {particles:4}: {bound:.3f}     exact log p(x): {history[-1][1].mean():.3f}")

# %%
# Where to go on: :doc:`plot_2_parts`, :doc:`plot_3_objectives` or :doc:`plot_4_evidence`, whichever is your question. The script
# ``examples/elbo.py`` is a longer form of this page, with more images and points.
