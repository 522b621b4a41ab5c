"""The README's script: a VAE on digits, and its log p(x). A few seconds."""

import argparse

import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, binomial, fit, log_likelihood, normal
from pyro_vae.data import load


def main(epochs: int = 40, num_samples: int = 1000) -> None:
    torch.manual_seed(0)
    digits = load("digits")  # 8 x 8 images of counts 0..16

    vae = VAE(
        prior=StandardNormal(8),  # p(z)
        likelihood=Conditional(MLP(8, 64), binomial(16)),  # p(x | z)
        posterior=Conditional(MLP(64, 2 * 8), normal),  # q(z | x)
    )
    run = fit(vae, digits.train.x, validation=digits.validation.x, epochs=epochs)
    evidence = log_likelihood(vae.model, vae.guide, digits.test.x, num_samples=num_samples)
    print(f"best epoch {run.best_epoch}, validation ELBO {run.best['elbo']:.2f} nats")
    print(evidence)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form")
    main(**({"epochs": 2, "num_samples": 20} if parser.parse_args().quick else {}))
