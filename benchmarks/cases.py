"""What is timed: a VAE on binary rows, its size, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PIXELS, ROWS = 784, 60_000  # as many as MNIST has: 469 steps of 128 an epoch
COMPONENTS, FLOW_HIDDEN = 500, 64  # of the VampPrior, of the flow's network


@dataclass(frozen=True)
class Case:
    """784-hidden-latent, softplus, Bernoulli rows, Adam at 1e-3, the KL taken at the draw.

    Attributes:
        hidden: width of the one hidden layer of encoder and decoder.
        latent: dimensions of z.
        batch: rows a step.
        kind: "elbo" (standard normal prior, diagonal posterior), "vamp", "flow" or "iwae".
        particles: of the IWAE bound.
    """

    hidden: int = 400
    latent: int = 20
    batch: int = 128
    kind: str = "elbo"
    particles: int = 1

    @property
    def name(self) -> str:
        what = {"elbo": "", "vamp": " VampPrior", "flow": " flow posterior", "iwae": f" IWAE-{self.particles}"}[
            self.kind
        ]
        return f"784-{self.hidden}-{self.latent}{what}, batch {self.batch}"

    @property
    def steps(self) -> int:
        """Steps of an epoch, on as many rows as MNIST has, or 600 of them where batches are small."""
        return min(600, -(-ROWS // self.batch))


SIZES = [Case(hidden, batch=batch) for hidden in (400, 2000) for batch in (20, 128, 1024, 4096)]
KINDS = [Case(kind="vamp"), Case(kind="flow"), Case(kind="iwae", particles=8)]
ON_CUDA = [Case(batch=batch) for batch in (20, 128, 1024)] + [
    Case(2000),
    *KINDS,
]  # compiled once each: four minutes in all
QUICK = [Case(32, 4, 16), Case(32, 4, 16, "iwae", 2)]


def cases_for(device: torch.device, quick: bool) -> list[Case]:
    """What is timed on a device."""
    return QUICK if quick else ON_CUDA if device.type == "cuda" else SIZES + KINDS


def data(device: torch.device, rows: int = ROWS) -> torch.Tensor:
    """Binary rows, the same for everybody."""
    draws = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.full((rows, PIXELS), 0.13), generator=draws).to(device)
