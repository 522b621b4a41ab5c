"""Where an integrand lies: a first box around draws of the prior and the guide, and what these draws say of log p(x)."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import Program, latent_sites, sample_sites, sum_terms

from .joint import Joint
from .lattice import Box

DRAWS = {"prior": 256, "guide": 32}
DIFFERENT = 5.0  # standard errors that sampling may lie above quadrature
ENOUGH = 16.0  # effective draws, from which on a standard error is one


@dataclass(frozen=True)
class Scout:
    """Draws u ``(S, R, D)`` of some rows, log p(x, z) there ``(S, R)``, and estimates of log p(x) with errors ``(k, R)``."""

    u: Tensor
    log_p: Tensor
    estimates: Tensor
    errors: Tensor

    @classmethod
    def of(cls, joint: Joint, guide: Program | None, rows: Tensor) -> Scout:
        """Draw from the prior and, if there is one, from the guide."""
        some = joint.rows(rows)
        programs = {"prior": some.guide} | ({} if guide is None else {"guide": guide})
        parts = [drawn(joint, some, program, DRAWS[name]) for name, program in programs.items()]
        u, log_p = torch.cat([part.u for part in parts]), torch.cat([part.log_p for part in parts])
        return cls(u, log_p, torch.cat([part.estimates for part in parts]), torch.cat([part.errors for part in parts]))

    def box(self, u: Tensor, together: bool) -> Box:
        """Lay a box around these draws, in whichever coordinates, and half their range more on either side."""
        low = torch.where(u.isfinite(), u, math.inf).amin(0)
        high = torch.where(u.isfinite(), u, -math.inf).amax(0)
        if together:
            low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        margin = (high - low).clamp_min(1e-6) / 2
        return Box(low - margin, high + margin)

    def quartiles(self, together: bool) -> Tensor:
        """Return where a quarter, half and three quarters of the draws are: ``(3, R, D)``."""
        u = self.u.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        u = u.flatten(0, 1).unsqueeze(1) if together else u
        return torch.stack([u.sort(0).values[int(len(u) * part)] for part in (0.25, 0.5, 0.75)])

    def missed(self, log_px: Tensor) -> Tensor:
        """Return how much more sampling sees than this, ``(R,)``: 0 within its own errors."""
        more = (self.estimates - log_px).nan_to_num(nan=0.0)
        return torch.where(more > DIFFERENT * self.errors, more, 0.0).amax(0)


def drawn(joint: Joint, some: Problem, program: Program, count: int) -> Scout:
    """Draw from one program; there is no estimate where it has no density of just the model's latents."""
    trace = some.trace(program, count)
    p, q = some.sites(some.model, count, trace), latent_sites(sample_sites(trace))
    u = torch.cat([layout.unconstrain(p[layout.name], torch.float64) for layout in joint.layouts], -1)
    log_p = torch.full(u.shape[:2], -math.inf, dtype=torch.float64, device=u.device)
    nothing = Scout(u, log_p, log_p[:1], -log_p[:1])
    with suppress(ProgramError):  # parameters that are no numbers at a draw, or a guide without a density
        log_p = sum_terms(some.score(p, "model")).double()
        if set(q) == set(joint.latents):
            estimate, error = sampled(log_p - sum_terms(some.score(q, "guide")).double())
            return Scout(u, log_p, estimate.unsqueeze(0), error.unsqueeze(0))
    return replace(nothing, log_p=log_p)


def sampled(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight and its standard error, ``(R,)``; ∞ where too few weights count for one."""
    estimate = log_w.logsumexp(0) - math.log(len(log_w))
    share = (log_w - estimate).exp().nan_to_num()
    ess = len(log_w) / share.square().mean(0)
    error = torch.where(ess > ENOUGH, share.std(0) / math.sqrt(len(log_w)), math.inf)
    return estimate.nan_to_num(nan=-math.inf), error
