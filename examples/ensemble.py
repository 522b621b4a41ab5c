"""Is the wider network better, or was it the seed? Two architectures over several seeds each, on 8 x 8 digits.

A single run is one draw: another seed gives other weights and another log p(x). `fit_ensemble` trains all seeds of an
architecture as one graph, and `compare` puts the error over seeds beside those of particles and of test rows.
"""

import argparse

from pyro_vae import MLP, VAE, Conditional, StandardNormal, binomial, fit_ensemble, normal
from pyro_vae.data import load

D = 2  # latents


def architecture(width: int):
    """A function that makes a new VAE each time it is called: `fit_ensemble` calls it under each seed."""

    def make() -> VAE:
        return VAE(
            prior=StandardNormal(D),  # p(z)
            likelihood=Conditional(MLP(D, 64, (width,)), binomial(16)),  # p(x | z)
            posterior=Conditional(MLP(64, 2 * D, (width,)), normal),  # q(z | x)
        )

    return make


def main(seeds: int = 8, epochs: int = 40, num_samples: int = 1000, widths: tuple[int, int] = (32, 128)) -> None:
    digits = load("digits")
    options = {"validation": digits.validation.x, "epochs": epochs, "batch_size": 64, "verbose": False}
    narrow, wide = (fit_ensemble(architecture(w), digits.train.x, seeds=range(seeds), **options) for w in widths)
    print(f"{wide}\n{wide.results[0].engine}\n")
    print(wide.log_likelihood(digits.test.x, num_samples=num_samples, verbose=False), "\n")
    names = (f"{widths[1]} units", f"{widths[0]} units")
    print(wide.compare(narrow, digits.test.x, names=names, num_samples=num_samples, verbose=False))
    first = wide[0]  # a VAE like any other
    print(type(first).__name__, sum(p.numel() for p in first.parameters()), "parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form")
    short = {"seeds": 2, "epochs": 1, "num_samples": 30, "widths": (4, 8)}
    main(**(short if parser.parse_args().quick else {}))
