"""A hand-written Pyro model and guide, none of our classes: fit and log_likelihood take them unchanged.

x depends on two latent numbers through a small network; the scale of its noise is
a pyro.param with a constraint.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

from pyro_vae import fit, log_likelihood

decoder = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 10))
encoder = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))


def model(x):
    pyro.module("own_program.decoder", decoder)
    noise = pyro.param("own_program.noise", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)


def guide(x):
    pyro.module("own_program.encoder", encoder)
    loc, log_scale = encoder(x).chunk(2, -1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def curves(n: int, seed: int) -> torch.Tensor:
    """x_n(t) = a sin(3 t + b) + noise, at ten points."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, 1, generator=g)
    t = torch.linspace(0, 1, 10)
    return a * torch.sin(3 * t + b) + 0.1 * torch.randn(n, 10, generator=g)


def main(epochs: int = 60, num_samples: int = 1000) -> None:
    run = fit((model, guide), curves(2000, 1), validation=curves(200, 2), epochs=epochs, verbose=False)
    print(f"ELBO {run.history[0]['elbo']:.2f} after one epoch, {run.best['elbo']:.2f} at its best")
    print(f"noise {pyro.param('own_program.noise').item():.3f} (0.1 made the data)")
    print(log_likelihood(model, guide, curves(200, 3), num_samples=num_samples))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form")
    torch.manual_seed(0)
    main(**({"epochs": 2, "num_samples": 20} if parser.parse_args().quick else {}))
