"""What whole steps are made of, and compared by: grey rows, a VAE of normals, one that is not finite at a row."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, normal
from pyro_vae import fit as fit_
from pyro_vae.programs.parameters import register
from pyro_vae.training.engines.recorded_steps import STEPS

fit = partial(fit_, verbose=False, epochs=3, batch_size=8, seed=5)
ROWS = 8 * (2 * STEPS + 5) + 3  # two replays of 16, one of 4 and one of 1, an uneven one


def grey():
    return torch.rand(ROWS, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close_states(a, b, tolerance=1e-6):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, rtol=tolerance, atol=tolerance)


def black_and_white():
    return grey().round()


def of_normals(kind):
    torch.manual_seed(0)
    posterior = Conditional(MLP(6, 4, (8,)), normal)
    return kind(StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), posterior).double()


class Trap(VAE):
    """Not finite at the one row that says so, once armed."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.register_buffer("armed", torch.tensor(False))

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            bad = (x[:, :1] > 1.5) & self.armed
            pyro.sample(
                "x", dist.Normal(self.likelihood(z).base_dist.loc.masked_fill(bad, math.nan), 1).to_event(1), obs=x
            )
