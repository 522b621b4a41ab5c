"""The same VAEs without Pyro, as one writes them in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_vae.distributions.flows import make_flow

from .cases import COMPONENTS, FLOW_HIDDEN, PIXELS, Case


def normal_log_prob(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * ((z - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class ByHand(nn.Module):
    """−Σ_n F_n of the case, as one number."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        features = FLOW_HIDDEN if case.kind == "flow" else 2 * case.latent
        self.encoder = nn.Sequential(nn.Linear(PIXELS, case.hidden), nn.Softplus(), nn.Linear(case.hidden, features))
        self.decoder = nn.Sequential(nn.Linear(case.latent, case.hidden), nn.Softplus(), nn.Linear(case.hidden, PIXELS))
        if case.kind == "flow":
            self.flow = make_flow("iaf", case.latent, FLOW_HIDDEN, 2, (FLOW_HIDDEN,))  # zuko's
        if case.kind == "vamp":
            self.pseudo = nn.Parameter(torch.rand(COMPONENTS, PIXELS))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, softplus(raw) + 1e-4

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log q(z | x), with particles on the left."""
        if self.case.kind == "flow":
            return self.flow(self.encoder(x)).rsample_and_log_prob()
        loc, scale = self.posterior(x)
        z = loc + scale * torch.randn(self.case.particles, *loc.shape, device=x.device)
        return z, normal_log_prob(z, loc, scale)

    def log_prior(self, z: Tensor) -> Tensor:
        if self.case.kind != "vamp":
            return normal_log_prob(z, torch.zeros_like(z), torch.ones_like(z))
        loc, scale = self.posterior(self.pseudo)
        precision = scale**-2  # two matrix products in place of (rows, components, dims)
        square = z.square() @ precision.T - 2 * z @ (loc * precision).T + (loc.square() * precision).sum(-1)
        each = -0.5 * square - (scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return each.logsumexp(-1) - math.log(COMPONENTS)

    def forward(self, x: Tensor) -> Tensor:
        z, log_q = self.draw(x)
        logits = self.decoder(z)
        log_px = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = log_px + self.log_prior(z) - log_q
        return -(log_w.logsumexp(0) - math.log(len(log_w)) if self.case.kind == "iwae" else log_w).sum()
