"""Parts of one's own: a prior that is a lambda, and a likelihood family of three lines. Nothing is subclassed."""

import argparse

import pyro.distributions as dist
import torch
from torch.nn.functional import softplus

from pyro_vae import MLP, VAE, Conditional, fit, log_likelihood, normal
from pyro_vae.data import dequantize, load


def student_t(h):
    loc, scale = h.chunk(2, -1)
    return dist.StudentT(4.0, loc, softplus(scale) + 1e-2)


def laplace_prior(*c):
    return dist.Laplace(torch.zeros(8), torch.ones(8)).to_event(1)


def main(epochs: int = 40, num_samples: int = 1000) -> None:
    digits = load("digits")
    x, validation, test = digits.train.x, digits.validation.x, digits.test.x
    torch.manual_seed(0)
    x, validation, test = map(dequantize(17), (x, validation, test))  # counts 0..16 as a density sees them

    priors = {
        "standard normal": lambda *c: dist.Normal(torch.zeros(8), 1.0).to_event(1),
        "Laplace": laplace_prior,
    }
    for name, prior in priors.items():
        torch.manual_seed(0)
        vae = VAE(
            prior=prior,
            likelihood=Conditional(MLP(8, 2 * 64), student_t),
            posterior=Conditional(MLP(64, 2 * 8), normal),
        )
        fit(vae, x, validation=validation, epochs=epochs, verbose=False)
        print(f"{name:16}", log_likelihood(vae.model, vae.guide, test, num_samples=num_samples))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form")
    main(**({"epochs": 2, "num_samples": 20} if parser.parse_args().quick else {}))
