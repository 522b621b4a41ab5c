"""What is timed: a VAE on binary rows, its size, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PIXELS, ROWS = 784, 8192
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


SIZES = [Case(hidden, batch=batch) for hidden in (400, 2000) for batch in (20, 128, 1024, 4096)]
KINDS = [Case(kind="vamp"), Case(kind="flow"), Case(kind="iwae", particles=8)]
QUICK = [Case(32, 4, 16), Case(32, 4, 16, "iwae", 2)]


def data(device: torch.device) -> torch.Tensor:
    """Binary rows, the same for everybody."""
    draws = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.full((ROWS, PIXELS), 0.13), generator=draws).to(device)
