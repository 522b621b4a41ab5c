"""The VAE and the data that most tests take: 2 latents, 6 columns of zeros and ones."""

from contextlib import nullcontext

import pyro
import torch
from torch import Tensor, nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal


def small_vae(
    prior=None,
    likelihood=bernoulli,
    posterior=normal,
    *,
    kind=VAE,
    width=6,
    hidden=8,
    features=1,
    device="cpu",
    seed=None,
):
    """Build a VAE whose encoder and decoder have one hidden layer.

    Args:
        prior: p(z) of 2 latents; None for N(0, I).
        likelihood: the family of x, of `features` features an element.
        posterior: the family of z, of 4 features, or a whole q(z | x).
        kind: VAE or a subclass.
        width: the columns of x.
        hidden: the units of the hidden layers.
        seed: of the starting weights, apart from the test's own random stream; None draws them from that.
    """
    with nullcontext() if seed is None else torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        p = Conditional(MLP(2, features * width, (hidden,)), likelihood)
        q = posterior if isinstance(posterior, nn.Module) else Conditional(MLP(width, 4, (hidden,)), posterior)
    return kind(StandardNormal(2) if prior is None else prior, p, q).to(device)


def binary(rows=40, device="cpu", dtype=torch.float32, seed=0) -> Tensor:
    """Draw zeros and ones, three in ten of them ones: ``(rows, 6)``."""
    draws = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((rows, 6), 0.3), generator=draws).to(device, dtype)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy the weights and buffers of a module."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def encoder(out_features):
    return MLP(6, out_features, (16,), nn.Tanh)


class FixedName(VAE):
    """Broken: both instances under one name, as in Pyro's own example."""

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))
