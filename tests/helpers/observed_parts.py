"""Models that observe x whole, in another shape or in parts, all of one joint density: z ~ N(0, 1), x_j | z ~ N(z + 3 j, 1)."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

D = 4
MEAN = 3.0 * torch.arange(D)  # tells the columns apart


def plated(x):
    return pyro.plate("data", len(x), dim=-1)


def latent():
    return pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)


def likelihood(z, mean=MEAN):
    return dist.Normal(z + mean, 1.0).to_event(1)


def whole(x):
    with plated(x):
        pyro.sample("x", likelihood(latent()), obs=x)


def reshaped(x):
    """Of images (N, 2, 2), as in Pyro's VAE example: obs=x.reshape(-1, 784)."""
    with plated(x):
        pyro.sample("x", likelihood(latent()), obs=x.reshape(-1, D))


def columns(x):
    """Each column by itself, in a loop over time."""
    with plated(x):
        z = latent()
        for t in pyro.markov(range(D)):
            pyro.sample(f"x_{t}", dist.Normal(z.squeeze(-1) + MEAN[t], 1.0), obs=x[:, t])


def packed(x):
    """Two sites, whose columns interleave."""
    with plated(x):
        z = latent()
        pyro.sample("even", likelihood(z, MEAN[::2]), obs=x[:, ::2])
        pyro.sample("odd", likelihood(z, MEAN[1::2]), obs=x[:, 1::2])


def backwards(x):
    with plated(x):
        pyro.sample("x", likelihood(latent(), MEAN.flip(0)), obs=x.flip(-1) * 1)


def transposed(x):
    """Entries in an inner plate left of the rows."""
    with plated(x):
        z = latent().squeeze(-1)
        with pyro.plate("entries", D, dim=-2):
            pyro.sample("x", dist.Normal(z + MEAN[:, None], 1.0), obs=x.T)


def inner_plate(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", D, dim=-1):
            pyro.sample("x", dist.Normal(z + MEAN, 1.0), obs=x)


def of_wrapper(x):
    """Observed from outside, by poutine.condition."""

    def program():
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(latent()))

    return poutine.condition(program, data={"x": x})()


def exclusive(x):
    """Two sites that observe the same column, under masks that exclude each other."""
    first = torch.arange(len(x)) % 2 == 0
    with plated(x):
        z = latent()
        pyro.sample("a", likelihood(z).mask(first), obs=x)
        with poutine.mask(mask=~first):
            pyro.sample("b", likelihood(z), obs=x)


def guide(x):
    """The exact posterior, N(Σ (x - MEAN) / (D + 1), 1 / (D + 1))."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal((x.reshape(len(x), -1) - MEAN).sum(-1) / (D + 1), (D + 1) ** -0.5))


def inner_guide(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal((x - MEAN).sum(-1, keepdim=True) / (D + 1), (D + 1) ** -0.5))


PARTS = {
    "whole": (whole, guide, (D,)),
    "reshaped": (reshaped, guide, (2, 2)),
    "columns": (columns, guide, (D,)),
    "packed": (packed, guide, (D,)),
    "backwards": (backwards, guide, (D,)),
    "transposed": (transposed, guide, (D,)),
    "inner plate": (inner_plate, inner_guide, (D,)),
    "condition": (of_wrapper, guide, (D,)),
    "exclusive masks": (exclusive, guide, (D,)),
}
