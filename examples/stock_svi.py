"""The same VAE under stock Pyro: SVI, a Pyro optimizer and any ELBO. Two models in one process, and both train."""

import argparse

import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from pyro_vae import MLP, VAE, Conditional, StandardNormal, binomial, log_likelihood, normal
from pyro_vae.data import load


def build() -> VAE:
    torch.manual_seed(0)
    return VAE(StandardNormal(8), Conditional(MLP(8, 64), binomial(16)), Conditional(MLP(64, 16), normal))


def main(epochs: int = 20, num_samples: int = 1000) -> None:
    digits = load("digits")
    objectives = {
        "ELBO": Trace_ELBO(),
        "ELBO, analytic KL": TraceMeanField_ELBO(),
        "IWAE, K = 5": RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1),
    }
    for name, objective in objectives.items():
        vae = build()
        svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), objective)
        for _ in range(epochs):
            for x in digits.train.x[torch.randperm(len(digits.train))].split(64):
                svi.step(x)
        print(f"{name:18}", log_likelihood(vae.model, vae.guide, digits.test.x, num_samples=num_samples))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form")
    main(**({"epochs": 1, "num_samples": 20} if parser.parse_args().quick else {}))
