"""Models that observe x whole, in another shape or in parts, all of one joint: z ~ N(0, 1), x_j | z ~ N(z + 3 j, s_j²)."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

D = 4
MEAN = 3.0 * torch.arange(D)  # these tell the columns apart
SD = torch.tensor([0.5, 1.0, 1.0, 2.0])
WEIGHT = SD**-2
COV = torch.diag(SD**2) + 1
EVERY = slice(None)


def plated(x):
    return pyro.plate("data", len(x), dim=-1)


def latent():
    return pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)


def likelihood(z, at=EVERY):
    return dist.Normal(z + MEAN[at], SD[at]).to_event(1)


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
            pyro.sample(f"x_{t}", dist.Normal(z.squeeze(-1) + MEAN[t], SD[t]), obs=x[:, t])


def packed(x):
    """Two sites, whose columns interleave."""
    with plated(x):
        z = latent()
        pyro.sample("even", likelihood(z, slice(0, D, 2)), obs=x[:, ::2])
        pyro.sample("odd", likelihood(z, slice(1, D, 2)), obs=x[:, 1::2])


def backwards(x):
    with plated(x):
        pyro.sample("x", likelihood(latent(), [3, 2, 1, 0]), obs=x.flip(-1) * 1)


def transposed(x):
    """Entries in an inner plate left of the rows."""
    with plated(x):
        z = latent().squeeze(-1)
        with pyro.plate("entries", D, dim=-2):
            pyro.sample("x", dist.Normal(z + MEAN[:, None], SD[:, None]), obs=x.T)


def inner_plate(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", D, dim=-1):
            pyro.sample("x", dist.Normal(z + MEAN, SD), obs=x)


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


def posterior(x):
    """N(m, v) of z given the entries ``(N, D)`` that are not NaN: v = 1 / (1 + Σ 1 / s_j²), m = v Σ (x_j - 3 j) / s_j²."""
    off = (x.reshape(len(x), -1) - MEAN) * WEIGHT
    v = 1 / (1 + torch.where(off.isnan(), 0.0, WEIGHT).sum(-1))
    return dist.Normal(v * off.nansum(-1), v.sqrt())


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", posterior(x))


def inner_guide(x):
    q = posterior(x)
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(q.loc.unsqueeze(-1), q.scale.unsqueeze(-1)))


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
