"""A label-conditional VAE on 8×8 digits: p(x | c) = ∫ p(x | z, c) p(z | c) dz, with the label c as a one-hot vector.

The same three roles, each with c as one more input: the prior p(z | c) is a Conditional like the others. What follows from
log p(x | c): how much the label tells about the image, images of a given digit, and a classifier by Bayes' rule,
p(c | x) ∝ p(x | c) p(c), that was never trained as one.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import one_hot

from pyro_vae import MLP, VAE, Conditional, StandardNormal, binomial, fit, log_likelihood, normal, sample
from pyro_vae.common.flagged import format_difference
from pyro_vae.data import load
from pyro_vae.plots.figures import save
from pyro_vae.plots.images import image_grid

D = 8  # latents
WIDE = (128,)  # hidden layers


def conditional() -> VAE:
    return VAE(
        prior=Conditional(MLP(10, 2 * D, WIDE), normal),  # p(z | c)
        likelihood=Conditional(MLP(D + 10, 64, WIDE), binomial(16)),  # p(x | z, c)
        posterior=Conditional(MLP(64 + 10, 2 * D, WIDE), normal),  # q(z | x, c)
    )


def unconditional() -> VAE:
    return VAE(
        prior=StandardNormal(D),
        likelihood=Conditional(MLP(D, 64, WIDE), binomial(16)),
        posterior=Conditional(MLP(64, 2 * D, WIDE), normal),
    )


def say(name: str, difference: torch.Tensor, *bounds: dict) -> None:
    """A paired difference with its error, unless a log p(x) that it is of is loose: too many of its rows are flagged."""
    error = difference.std().item() / len(difference) ** 0.5
    print(f"{name:38}{format_difference(difference.mean().item(), error, *bounds)} nats a row (paired)")


def main(epochs: int = 100, num_samples: int = 1000, particles: int = 100, columns: int = 12) -> None:
    digits = load("digits")
    x, validation, test = (part.x for part in (digits.train, digits.validation, digits.test))
    y, y_validation, y_test = (torch.as_tensor(p.y).long() for p in (digits.train, digits.validation, digits.test))
    c, c_validation, c_test = (one_hot(labels, 10).float() for labels in (y, y_validation, y_test))

    torch.manual_seed(0)
    vae, plain = conditional(), unconditional()
    fit(vae, x, c, validation=(validation, c_validation), epochs=epochs, verbose=False)
    fit(plain, x, validation=validation, epochs=epochs, verbose=False)

    given = log_likelihood(vae.model, vae.guide, test, c_test, num_samples=num_samples)  # of log p(x | c)
    alone = log_likelihood(plain.model, plain.guide, test, num_samples=num_samples)
    print(f"with the label:    {given}\nwithout the label: {alone}")
    say("log p(x | c) - log p(x)", given.log_px - alone.log_px, given.summary(), alone.summary())

    # every row under every label, (10, N): log p(x | c) + log p(c)
    labels = torch.eye(10)
    under = [
        log_likelihood(vae.model, vae.guide, test, one.expand(len(test), 10), num_samples=particles) for one in labels
    ]
    log_joint = torch.stack([e.log_px for e in under]) + c.mean(0).log()[:, None]
    best = log_joint.argmax(0)  # nearly all of the sum, whose flags are its own
    reliable = torch.stack([e.reliable for e in under]).gather(0, best[None])
    summed = {"rows": len(test), "rows_flagged": int((~reliable).sum())}
    say("log Σ p(x | c) p(c) - log p(x)", log_joint.logsumexp(0) - alone.log_px, summed, alone.summary())
    right = (best == y_test).double()
    accuracy = right.mean().item()
    error = (accuracy * (1 - accuracy) / len(right)) ** 0.5
    print(f"label by Bayes' rule, K = {particles}: accuracy {accuracy:.3f} ± {error:.3f} on {len(right)} test rows")

    drawn = sample(vae, 10 * columns, labels.repeat_interleave(columns, 0))
    rows, title = drawn.numpy().reshape(10, columns, 64), "x ~ p(x | z, c), z ~ p(z | c): a label c in each row"
    print(
        f"Picture: {save(image_grid(list(rows), [str(i) for i in range(10)], (1, 8, 8), title), Path('conditional.png'))}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short form")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # on tensors this small, threads wait for each other more than they help
    main(**({"epochs": 2, "num_samples": 20, "particles": 5} if quick else {}))
