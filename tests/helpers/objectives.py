"""What objectives are compared by: a loss and its gradients."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_vae import Bound, iwae
from pyro_vae.errors import ProgramError
from pyro_vae.programs.parameters import register

DOUBLE = torch.float64


def close(a, b, atol=1e-10, rtol=1e-10):
    torch.testing.assert_close(
        torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=rtol, check_dtype=False, check_device=False
    )


def loss_and_grads(objective, pair, *args, seed=3, modules=None):
    """A loss and the gradients of all parameters, under one seed."""
    model, guide = pair if isinstance(pair, tuple) else (pair.model, pair.guide)
    parameters = list((modules or pair).parameters())
    for p in parameters:
        p.grad = None
    torch.manual_seed(seed)
    loss = objective.loss_and_grads(model, guide, *args)
    return torch.as_tensor(loss, dtype=DOUBLE), [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def scaled(pair, scale):
    return tuple(poutine.scale(program, scale=scale) for program in pair)


def plated(vae, total):
    """The programs of a `VAE` whose plate says that the rows it is given are a subsample of `total`."""

    def model(x):
        register(vae)
        with pyro.plate("data", total, subsample=torch.arange(len(x), device=x.device)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)

    def guide(x):
        register(vae)
        with pyro.plate("data", total, subsample=torch.arange(len(x), device=x.device)):
            pyro.sample("z", vae.posterior(x))

    return model, guide


def mean_se(values):
    values = torch.stack(values)
    return values.mean(0), values.std(0) / len(values) ** 0.5


def raises(match, model, guide, *args, error=ProgramError, objective=None):
    with pytest.raises(error, match=match):
        (objective or Bound(iwae, 2)).loss_and_grads(model, guide, *args)
