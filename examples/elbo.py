"""What a VAE maximises, in numbers: log p(x) = ELBO(x) + KL(q(z|x) ‖ p(z|x)).

Bayes' rule, p(z|x) = p(x, z) / p(x), holds at every z: log p(x) = log p(x, z) - log p(z|x). Add and subtract log q(z|x)
on the right, and average over z ~ q(z|x); the left side does not depend on z:

    log p(x) = E_q[log p(x, z) - log q(z|x)]  +  E_q[log q(z|x) - log p(z|x)]
             =             ELBO(x)            +     KL(q(z|x) ‖ p(z|x))

A KL is never negative, so the ELBO is a lower bound of log p(x), and equal to it where q is the posterior. It needs
neither p(x) nor the posterior, so it can be trained on; with log p(x, z) = log p(x|z) + log p(z) it reads

    ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) ‖ p(z))

With two latents each of these integrals can be done by quadrature. This script trains a small VAE on 8×8 digits,
computes every term by itself for a few test images, checks that the two sides agree, and draws them.

    python examples/elbo.py            # well under a minute; prints two tables and draws elbo.png
"""

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, binomial, fit, log_likelihood, normal
from pyro_vae.data import load
from pyro_vae.report.figures import BLUE, INK, ORANGE, figure, robust_limits, save, show, thin

EDGE = 8.0  # the grid for log p(x) covers [-8, 8]²: early in training, [-6, 6]² would cut off 1e-4 nats


def build() -> VAE:
    """p(z) = N(0, I) in two dimensions, p(x|z) = Binomial(16), q(z|x) = N(loc(x), diag(scale(x)²)).

    Tanh in the decoder makes log p(x|z) smooth in z: quadrature then converges much faster than across ReLU's kinks.
    """
    return VAE(
        prior=StandardNormal(2),
        likelihood=Conditional(MLP(2, 64, hidden=(64,), activation=nn.Tanh), binomial(16)),
        posterior=Conditional(MLP(64, 2 * 2, hidden=(64,)), normal),
    )


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
    q = vae.posterior(x)
    u = grid(8.0, points)
    z = q.mean + q.stddev * u
    log_posterior = log_joint(vae, x, z) - log_px
    weight = torch.exp(-u.square().sum(-1) / 2) / (2 * math.pi) * (16 / (points - 1)) ** 2
    return (weight * (q.log_prob(z) - log_posterior)).sum((0, 1))


@dataclass
class Terms:
    """Every term of the identity after an epoch, one number an image, in nats."""

    epoch: int
    log_px: Tensor
    grid_error: Tensor
    reconstruction: Tensor
    kl_prior: Tensor
    kl_posterior: Tensor

    @property
    def elbo(self) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) ‖ p(z))."""
        return self.reconstruction - self.kl_prior

    @property
    def residual(self) -> Tensor:
        """log p(x) - (ELBO(x) + KL(q(z|x) ‖ p(z|x))): nothing but the error of the quadratures."""
        return self.log_px - (self.elbo + self.kl_posterior)


@torch.no_grad()
def walk(vae: VAE, x: Tensor, epoch: int, points: int) -> Terms:
    """All terms, in float64, and the check that both sides of the identity agree.

    p(z|x) in KL(q ‖ p(z|x)) is normalised by every second grid point only: divided by the same sum as log p(x), it would
    make log p(x) drop out of the residual, and a wrong value of it would go unseen.
    """
    vae = copy.deepcopy(vae).double()
    step = 2 * EDGE / (points - 1)
    log_pxz = log_joint(vae, x, grid(EDGE, points))
    log_px, halved = log_evidence(log_pxz, step), log_evidence(log_pxz[::2, ::2], 2 * step)
    kls = kl_to_prior(vae, x), kl_to_posterior(vae, x, halved)
    terms = Terms(epoch, log_px, log_px - halved, reconstruction(vae, x), *kls)
    assert terms.residual.abs().max() < 1e-3, f"residual {terms.residual.tolist()}: the posterior needs more --points"
    return terms


HEAD = f"{'log p(x)':>12} ={'ELBO':>10} + KL(q‖p(z|x))  | ELBO = E_q log p(x|z) - KL(q‖p(z))  | residual grid error"


def line(t: Terms, rows: slice = slice(None)) -> str:
    """The terms, averaged over images, and the largest errors."""
    means = [v[rows].mean() for v in (t.log_px, t.elbo, t.kl_posterior, t.reconstruction, t.kl_prior)]
    errors = [e[rows].abs().max() for e in (t.residual, t.grid_error)]
    return "{:12.4f}{:12.4f}{:16.4f}{:25.4f}{:13.4f}{:13.0e}{:11.0e}".format(*means, *errors)


def draw_gap(ax: Axes, history: list[Terms]) -> None:
    """log p(x), the ELBO beneath it, and between them KL(q(z|x) ‖ p(z|x)): means over the images."""
    epochs = [t.epoch for t in history]
    log_px, elbo = ([v.mean().item() for v in values] for values in zip(*((t.log_px, t.elbo) for t in history)))
    ax.fill_between(epochs, elbo, log_px, color=ORANGE, alpha=0.3, lw=0, label="KL(q(z|x) ‖ p(z|x))")
    ax.plot(epochs, log_px, color=BLUE, marker="o", markersize=4, label="log p(x), by quadrature")
    ax.plot(epochs, elbo, color=INK, marker="o", markersize=4, label="ELBO")
    ax.set(xscale="log", xlabel="epoch", ylabel=f"nats, mean over {len(history[0].log_px)} test images")
    ax.set(title="log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))", ylim=robust_limits(log_px + elbo))
    ax.set_xticks(epochs, epochs)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")


def draw_posterior(ax: Axes, vae: VAE, x: Tensor, title: str) -> None:
    """p(z|x) over a window around q(z|x), as regions of highest density, and q's ellipses of the same mass."""
    q = vae.posterior(x)
    loc, scale = q.mean[0], q.stddev[0]
    z = loc + grid(5.5 * scale.max().item(), 161)
    densest, order = log_joint(vae, x, z).flatten().softmax(0).sort(descending=True)
    mass = torch.empty_like(densest).scatter(0, order, densest.cumsum(0)).view(161, 161)
    levels = [0, 1 - math.exp(-1 / 2), 1 - math.exp(-2), 0.99]  # 39% and 86%: what 1σ and 2σ hold in two dimensions
    ax.contourf(*z[:, :, 0].movedim(-1, 0), mass, levels=levels, colors=BLUE, alpha=[0.75, 0.45, 0.2])
    for sigmas in (1, 2):
        ax.add_patch(Ellipse(loc, *(2 * sigmas * scale), fill=False, color=ORANGE, lw=1.8))
    ax.set(aspect="equal", xlabel="z1", title=title)
    inset = ax.inset_axes((0.02, 0.74, 0.24, 0.24), xticks=[], yticks=[])
    show(inset, x.numpy(), (1, 8, 8))


@torch.no_grad()
def draw(vae: VAE, x: Tensor, history: list[Terms]) -> Figure:
    """The gap while training; the posterior and q for the images where it is smallest, in the middle, and largest."""
    fig = figure(12.5, 4.2)
    first, *others = fig.subplots(1, 4, width_ratios=[1.45, 1, 1, 1])
    draw_gap(first, history)
    gap = history[-1].kl_posterior
    order = gap.argsort()
    for ax, i in zip(others, (order[0], order[len(order) // 2], order[-1]), strict=True):
        draw_posterior(ax, copy.deepcopy(vae).double(), x[i : i + 1], f"KL(q(z|x) ‖ p(z|x)) = {gap[i]:.2f}")
    others[0].set_ylabel("z2")
    shades = tuple(Patch(color=BLUE, alpha=alpha, lw=0) for alpha in (0.75, 0.45, 0.2))
    handles = {"exact p(z|x): where 39, 86, 99% of it lie": shades, "q(z|x): 1σ, 2σ": Line2D([], [], color=ORANGE)}
    fig.legend(
        handles.values(), handles.keys(), handler_map={tuple: HandlerTuple(None)},
        loc="outside lower right", ncols=2, frameon=False,
    )  # fmt: skip
    return fig


def main(epochs: int = 60, out: Path = Path("elbo.png"), images: int = 6, points: int = 441) -> None:
    """Trains, printing the mean of every term; then prints the terms of each image, and draws them."""
    data = load("digits")
    x, labels = data.test.x[:images].double(), data.test.y[:images].tolist()
    torch.manual_seed(0)
    vae = build()
    history: list[Terms] = []

    def look(record: dict) -> None:
        if record["epoch"] in thin(epochs, 8):
            history.append(walk(vae, x, record["epoch"], points))
            print(f"{record['epoch']:5}{line(history[-1])}", flush=True)

    print(f"Nats, mean over {images} test images (errors: the largest)\nepoch{HEAD}")
    fit(vae, data.train.x, epochs=epochs, optimizer=adam(lr=3e-3), on_epoch=look, verbose=False)
    sampled = log_likelihood(vae.model, vae.guide, data.test.x[:images], num_samples=1000, verbose=False)
    print(
        f"\nEach image after epoch {epochs}, and log p(x) by {sampled.num_samples} importance samples\ndigit{HEAD}  sampled"
    )
    for i, (digit, log_px, se, ess) in enumerate(zip(labels, sampled.log_px, sampled.mc_se, sampled.ess, strict=True)):
        print(f"{digit:5}{line(history[-1], slice(i, i + 1))}{log_px:12.3f} ± {se:.3f} (ESS {ess:.0f})")
    print(f"\nPicture: {save(draw(vae, x, history), out)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("elbo.png"))
    parser.add_argument("--points", type=int, default=441, help="grid points a side; an odd number")
    parser.add_argument("--quick", action="store_true", help="2 epochs on a small grid, to see that it runs")
    given = parser.parse_args()
    main(2 if given.quick else given.epochs, given.out, points=121 if given.quick else given.points)
