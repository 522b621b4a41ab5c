"""What tests of this folder start from."""

import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal


@pytest.fixture(scope="module")
def neural():
    """Matrix products and 150 rows: three blocks, of 64, 64 and 22 rows, whose particles come 64, 64 and 186 at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(StandardNormal(3), Conditional(MLP(3, 20, (16,)), bernoulli), Conditional(MLP(20, 6, (16,)), normal))
        return vae, torch.bernoulli(torch.full((150, 20), 0.3))
