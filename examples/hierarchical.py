"""Two stochastic layers against one on MNIST, at equal CPU time: log p(x), and what each layer holds.

One layer is 784-200-200-50; two are 784-200-200-100 and 100-100-100-50 (the networks of Burda, Grosse & Salakhutdinov, 2016,
tanh both ways), with a guide that goes bottom-up, q(z1 | x) q(z2 | z1), as theirs, or top-down, q(z2 | x) q(z1 | x, z2). Each
run gets the same seconds of one thread's CPU time, whatever a step costs it: the learning rate follows the time spent, not the
steps. Scored on the same test rows; differences are paired, row by row, to one layer of the same seed. So short a run says
which model learns faster, not which is the better one in the end.

    python examples/hierarchical.py --seconds 40 --seeds 2
"""

import argparse
from pathlib import Path

import torch

from pyro_vae import (
    MLP,
    VAE,
    BottomUp,
    Conditional,
    HierarchicalVAE,
    StandardNormal,
    TimeBudget,
    TopDown,
    adam,
    bernoulli,
    cosine,
    fit,
    gaps,
    latents,
    log_likelihood,
    normal,
    simulate,
    warmup,
)  # fmt: skip
from pyro_vae.common.flagged import format_both_errors, format_difference
from pyro_vae.data import load
from pyro_vae.models.networks import Tanh
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid

ONE = "one layer"
MNIST = {
    "data": "mnist",
    "wide": 200,
    "narrow": 100,
    "latents": (100, 50),
    "rows": 500,
    "num_samples": 1000,
    "gaps": (32, 400),
}
QUICK = {"data": "digits", "wide": 16, "narrow": 8, "latents": (6, 3), "rows": 20, "num_samples": 20, "gaps": (2, 20)}


def gaussian(inputs: int, latents: int, hidden: int) -> Conditional:
    """N(loc(h), diag(scale(h)²)), by a network of two hidden layers."""
    return Conditional(MLP(inputs, 2 * latents, (hidden, hidden), Tanh), normal)


def decoder(latents: int, x: torch.Tensor, wide: int) -> Conditional:
    """p(x | z1), whose output bias starts at the marginal of the pixels."""
    net = MLP(latents, x.shape[1], (wide, wide), Tanh)
    net[-1].bias.data.copy_(x.mean(0).clamp(1e-3, 1 - 1e-3).logit())
    return Conditional(net, bernoulli)


def one_layer(x: torch.Tensor, s: dict) -> VAE:
    d = s["latents"][1]
    return VAE(StandardNormal(d), decoder(d, x, s["wide"]), gaussian(x.shape[1], d, s["wide"]))


def two_layers(x: torch.Tensor, s: dict, posterior: BottomUp | TopDown) -> HierarchicalVAE:
    d1, d2 = s["latents"]
    return HierarchicalVAE(
        priors=[gaussian(d2, d1, s["narrow"]), StandardNormal(d2)],  # p(z1 | z2), p(z2)
        likelihood=decoder(d1, x, s["wide"]),  # p(x | z1)
        posterior=posterior,
    )


def bottom_up(x: torch.Tensor, s: dict) -> HierarchicalVAE:
    d1, d2 = s["latents"]
    return two_layers(x, s, BottomUp(gaussian(x.shape[1], d1, s["wide"]), gaussian(d1, d2, s["narrow"])))


def top_down(x: torch.Tensor, s: dict) -> HierarchicalVAE:
    d1, d2 = s["latents"]
    return two_layers(x, s, TopDown(gaussian(x.shape[1] + d2, d1, s["wide"]), gaussian(x.shape[1], d2, s["wide"])))


MODELS = {ONE: one_layer, "two, bottom-up": bottom_up, "two, top-down": top_down}


def train(vae, data, seed: int, seconds: float) -> int:
    """Train for so many seconds of CPU time; return the epochs."""
    budget = TimeBudget(seconds)
    result = fit(
        vae, data.train.x, optimizer=adam(3e-3), epochs=100_000, batch_size=500, seed=seed, transform=data.transform,
        schedule=budget.schedule(warmup(cosine)), on_epoch=budget, verbose=False,
    )  # fmt: skip
    return len(result.history)


def scored(name: str, seed: int, seconds: float, data, setting: dict):
    """One run: the model, its evidence, and its line of the table but for the difference."""
    torch.manual_seed(seed)
    vae, x = MODELS[name](data.train.x, setting), data.test.x[: setting["rows"]]
    epochs = train(vae, data, seed, seconds)
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=setting["num_samples"], verbose=False)
    return vae, evidence, epochs


def main(seconds: float, seeds: int, setting: dict) -> None:
    data, last = load(setting["data"], binarization="dynamic"), {}
    x = data.test.x[: setting["rows"]]
    print(
        f"{'model':16}{'seed':>4}  {'log p(x) ± MC ± data':26}{'minus one layer':>17}      ELBO   ESS  flagged  epochs"
    )
    for seed in range(seeds):
        for name in MODELS:
            vae, evidence, epochs = last[name] = scored(name, seed, seconds, data, setting)
            s, base = evidence.summary(), last[ONE][1]
            d = evidence.log_px - base.log_px
            difference = format_difference(d.mean().item(), d.std().item() / len(d) ** 0.5, s, base.summary())
            print(
                f"{name:16}{seed:4}  {format_both_errors(s):26}{difference:>17}{s['elbo']:10.2f}{s['ess_median']:6.0f}"
                f"{s['rows_flagged']:9}{epochs:8}"
            )
    for name, (vae, *_) in last.items():
        print(f"\n{name}, seed {seeds - 1}:\n{latents(vae.model, vae.guide, x[:200])}")
        rows, steps = setting["gaps"]
        print(gaps(vae.model, vae.guide, x[:rows], steps=steps, verbose=False))
    print(f"Picture: {save(picture(last, data.shape, x[:10]), Path('hierarchical.png'))}")


@torch.no_grad()
def picture(trained: dict, shape: tuple[int, ...], x: torch.Tensor):
    """Samples' means of each model; and rows of data through z1, and through z2 alone."""
    rows, labels = [], []
    for name, (vae, *_) in trained.items():
        z = next(value for site, value in simulate(vae.model, 0 * x).latents.items() if site in ("z", "z1"))
        rows.append(vae.likelihood(z).mean)
        labels.append(f"p(x), {name}")
    vae = trained["two, top-down"][0]
    z2 = vae.posterior.z2(x).mean
    z1 = vae.posterior.z1(x, z2).mean
    rows += [x, vae.likelihood(z1).mean, vae.likelihood(vae.priors.z1(z2).mean).mean]
    labels += ["x", "by z1", "by z2 alone"]
    title = "Samples' means (three rows); test rows, and what z1, and z2 alone, hold of them (top-down)"
    return image_grid([row.numpy() for row in rows], labels, shape, title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU time of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a short form, on bundled digits")
    said = parser.parse_args()
    torch.set_num_threads(1)  # CPU time is then the work done
    main(0.2, 1, QUICK) if said.quick else main(said.seconds, said.seeds, MNIST)
