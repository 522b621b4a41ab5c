"""What a VAE maximises, in numbers: log p(x) = ELBO(x) + KL(q(z|x) ‖ p(z|x)).

Bayes' rule, p(z|x) = p(x, z) / p(x), holds at every z: log p(x) = log p(x, z) - log p(z|x). Add and subtract log q(z|x)
on the right, and average over z ~ q(z|x); the left side does not depend on z:

    log p(x) = E_q[log p(x, z) - log q(z|x)]  +  E_q[log q(z|x) - log p(z|x)]
             =             ELBO(x)            +     KL(q(z|x) ‖ p(z|x))

A KL is never negative, so the ELBO is a lower bound of log p(x), and equal to it where q is the posterior. It needs
neither p(x) nor the posterior, so it can be trained on; with log p(x, z) = log p(x|z) + log p(z) it reads

    ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) ‖ p(z))

With two latents each of these integrals can be done by quadrature. This script trains a small VAE on 8×8 digits,
computes every term by itself for a few test images, checks that the two sides agree, and draws them (half a minute).
"""

import argparse
import copy
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.patches import Ellipse, Patch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, binomial, fit, log_likelihood, normal
from pyro_vae.data import load
from pyro_vae.plots.figures import BLUE, INK, ORANGE, figure, save, thin

EDGE = 7.0  # the grid for log p(x) covers [-7, 7]²: early in training, [-6, 6]² would cut off 1e-4 nats


def grid(edge: float, points: int) -> Tensor:
    """Evenly spaced values over [-edge, edge]², of shape (points, points, 1, 2); the 1 is for images."""
    side = torch.linspace(-edge, edge, points, dtype=torch.float64)
    return torch.cartesian_prod(side, side).view(points, points, 1, 2)


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) = log p(x|z) + log p(z), at each point for each image: (points, points, N)."""
    return torch.cat([vae.likelihood(row).log_prob(x) + vae.prior().log_prob(row) for row in z.split(1)])


def log_evidence(log_pxz: Tensor, step: float) -> Tensor:
    """log p(x) = log ∫ p(x|z) p(z) dz, by the trapezoid rule: a plain sum, as nothing is left at the border."""
    return log_pxz.logsumexp((0, 1)) + 2 * math.log(step)


def reconstruction(vae: VAE, x: Tensor, nodes: int = 48) -> Tensor:
    """E_q[log p(x|z)] = ∫ q(z|x) log p(x|z) dz, by Gauss-Hermite quadrature over u ~ N(0, I) in z = loc + scale u."""
    q = vae.posterior(x)
    node, weight = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    u = torch.cartesian_prod(node, node)[:, None]
    log_px_z = vae.likelihood(q.mean + q.stddev * u).log_prob(x)
    return torch.outer(weight, weight).flatten() @ log_px_z / (2 * math.pi)


def kl_to_prior(vae: VAE, x: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p(z)) = ½ Σ (loc² + scale² - 1 - log scale²), the closed form for two normals."""
    return kl_divergence(vae.posterior(x), vae.prior())


def kl_to_posterior(vae: VAE, x: Tensor, log_px: Tensor, points: int = 65) -> Tensor:
    """KL(q(z|x) ‖ p(z|x)) = ∫ q(z|x) (log q(z|x) - log p(z|x)) dz, by the trapezoid rule in the same u."""
    q, u = vae.posterior(x), grid(8.0, points)
    z = q.mean + q.stddev * u
    log_posterior = log_joint(vae, x, z) - log_px
    weight = torch.exp(-u.square().sum(-1) / 2) / (2 * math.pi) * (16 / (points - 1)) ** 2
    return (weight * (q.log_prob(z) - log_posterior)).sum((0, 1))


class Terms(NamedTuple):
    """Every term after an epoch, one number an image, in nats: log_px = elbo + kl_posterior."""

    epoch: int
    log_px: Tensor
    elbo: Tensor
    kl_posterior: Tensor
    reconstruction: Tensor
    kl_prior: Tensor
    residual: Tensor  # log p(x) - (ELBO + KL(q ‖ p(z|x))): nothing but the error of the quadratures
    grid_error: Tensor  # log p(x) on the grid, less log p(x) on every second point of it


@torch.no_grad()
def walk(vae: VAE, x: Tensor, epoch: int, points: int) -> Terms:
    """All terms, in float64, and the check that both sides of the identity agree.

    p(z|x) in KL(q ‖ p(z|x)) is normalised by every second grid point only: divided by the same sum as log p(x), it
    would make log p(x) drop out of the residual, and a wrong value of it would go unseen.
    """
    vae, step = copy.deepcopy(vae).double(), 2 * EDGE / (points - 1)
    log_pxz = log_joint(vae, x, grid(EDGE, points))
    log_px, halved = log_evidence(log_pxz, step), log_evidence(log_pxz[::2, ::2], 2 * step)
    expected, kl, gap = reconstruction(vae, x), kl_to_prior(vae, x), kl_to_posterior(vae, x, halved)
    residual = log_px - ((expected - kl) + gap)
    assert residual.abs().max() < 1e-3, f"residual {residual.tolist()}: p(z|x) is narrow for this grid: more --points"
    return Terms(epoch, log_px, expected - kl, gap, expected, kl, residual, log_px - halved)


HEAD = f"{'log p(x)':>12} = {'ELBO':>10} + KL(q‖p(z|x)) |     ELBO = E_q log p(x|z) - KL(q‖p(z)) | residual  grid error"


def line(terms: Terms, rows: slice = slice(None)) -> str:
    """The terms, averaged over images, and the largest errors."""
    _, *values, residual, grid_error = terms
    numbers = [v[rows].mean() for v in values] + [e[rows].abs().max() for e in (residual, grid_error)]
    return "{:12.4f}{:13.4f}{:15.4f}{:28.4f}{:13.4f}{:11.0e}{:12.0e}".format(*numbers)


def draw_gap(ax, history: list[Terms]) -> None:
    """log p(x), the ELBO beneath it, and between them KL(q(z|x) ‖ p(z|x)): means over the images."""
    epochs, log_px, elbo = zip(*((t.epoch, t.log_px.mean().item(), t.elbo.mean().item()) for t in history), strict=True)
    ax.fill_between(epochs, elbo, log_px, color=ORANGE, alpha=0.4, lw=0, label="gap: KL(q(z|x) ‖ p(z|x))")
    ax.plot(epochs, log_px, color=BLUE, marker="o", markersize=3, label="log p(x), by quadrature")
    ax.plot(epochs, elbo, color=INK, marker="o", markersize=3, label="ELBO")
    for at, low, high in zip(epochs, elbo, log_px, strict=True):
        ax.annotate(f"{high - low:.1f}", (at, low), (4, -11), textcoords="offset points", color=ORANGE)
    ax.set(xscale="log", xlabel="epoch", ylabel=f"nats, mean over {len(history[0].log_px)} test images")
    ax.set_title("log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))", fontsize=11)
    ax.margins(0.07, 0.12)
    ax.set_xticks(epochs, epochs)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")


def draw_posterior(ax, vae: VAE, x: Tensor, gap: Tensor) -> None:
    """p(z|x), and the ellipses of q(z|x), where their density is exp(-σ²/2) of its peak; at σ = 1, 2 (and 3 for p)."""
    loc, scale = vae.posterior(x).mean, vae.posterior(x).stddev
    z = grid(EDGE, 101)
    log_pxz = log_joint(vae, x, z)
    low, high = torch.cat([z[log_pxz > log_pxz.max() - 8], loc - 3 * scale, loc + 3 * scale]).aminmax(dim=0)
    z = (low + high) / 2 + grid((high - low).max().item() * 0.55, 101)
    log_pxz = log_joint(vae, x, z)[:, :, 0]
    below_peak = (log_pxz - log_pxz.max()).numpy()  # of log p(x, z), and of log p(z|x), which differs by a constant
    ax.contourf(*z.numpy().T[:, 0], below_peak.T, levels=[-4.5, -2, -0.5, 0], colors=BLUE, alpha=[0.2, 0.45, 0.75])
    for sigmas in (1, 2):
        ax.add_patch(Ellipse(loc[0].tolist(), *(2 * sigmas * scale[0]).tolist(), fill=False, color=ORANGE, lw=1.8))
    ax.set(aspect="equal", xlabel="z1", ylabel="z2")
    ax.text(1, 1.03, f"KL(q(z|x) ‖ p(z|x))\n= {gap:.2f} nats", ha="right", fontsize=11, transform=ax.transAxes)
    ax.inset_axes((0, 1.03, 0.17, 0.17), xticks=[], yticks=[]).imshow(x.view(8, 8).numpy(), cmap="gray_r")


@torch.no_grad()
def draw(vae: VAE, x: Tensor, history: list[Terms]):
    """The gap while training; the posterior and q for the images where it is smallest, in the middle, and largest."""
    fig = figure(13, 4)
    first, *others = fig.subplots(1, 4, width_ratios=[1.5, 1, 1, 1])
    draw_gap(first, history)
    gap, vae = history[-1].kl_posterior, copy.deepcopy(vae).double()
    order = gap.argsort()
    for ax, i in zip(others, (order[0], order[len(order) // 2], order[-1]), strict=True):
        draw_posterior(ax, vae, x[i : i + 1], gap[i])
    posterior = Patch(facecolor=BLUE, alpha=0.6, label="exact p(z|x): 1σ, 2σ, 3σ")
    q = Patch(fill=False, edgecolor=ORANGE, lw=1.8, label="q(z|x): 1σ, 2σ")
    fig.legend(handles=[posterior, q], loc="outside lower right", ncols=2, frameon=False)
    return fig


def main(epochs: int = 60, out: Path = Path("elbo.png"), images: int = 6, points: int = 385) -> None:
    """Trains, printing the mean of every term; then prints the terms of each image, and draws them."""
    torch.manual_seed(0)
    vae = VAE(
        prior=StandardNormal(2),  # p(z)
        likelihood=Conditional(MLP(2, 64, hidden=(64,), activation=nn.Tanh), binomial(16)),  # p(x|z), smooth in z
        posterior=Conditional(MLP(64, 2 * 2, hidden=(64,)), normal),  # q(z|x)
    )
    data, history = load("digits"), []
    x = data.test.x[:images]

    def look(record):
        if record["epoch"] in thin(epochs, 7):
            history.append(walk(vae, x.double(), record["epoch"], points))
            print(f"{record['epoch']:5}{line(history[-1])}", flush=True)

    print(f"While training: nats, mean over {images} test images, and the largest error\nepoch{HEAD}")
    fit(vae, data.train.x, epochs=epochs, optimizer=adam(lr=3e-3), on_epoch=look, verbose=False)
    print(f"\nAfter training: each image, and log p(x) by 1000 importance samples\ndigit{HEAD}     sampled")
    s = log_likelihood(vae.model, vae.guide, x, num_samples=1000, verbose=False)
    for i, digit in enumerate(data.test.y[:images].tolist()):
        print(f"{digit:5}{line(history[-1], slice(i, i + 1))}", end="")
        error = f"± {s.mc_se[i]:.3f}" if s.reliable[i] else "or more (flagged)"
        print(f"{s.log_px[i]:12.3f} {error} (ESS {s.ess[i]:.0f})")
    print(f"\nPicture: {save(draw(vae, x.double(), history), out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("elbo.png"))
    parser.add_argument("--points", type=int, default=385, help="grid points a side, odd; more for more epochs")
    parser.add_argument("--quick", action="store_true", help="2 epochs on a small grid, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(2 if given.quick else given.epochs, given.out, points=121 if given.quick else given.points)
