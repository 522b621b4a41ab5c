r"""The mass of p(z) that is not seen: p(z) integrates to 1, so a spike of it that all looking misses shows in its integral."""

from __future__ import annotations

import torch
from torch import Tensor

from .lattice import Box, Density
from .line import Line
from .peaks import find_peaks
from .trapezoid import Rule, Survey

FINER = 1e-2  # times the tolerance of log p(x), for the integral of p(z)


def unseen_mass(prior: Density, line: Line, box: Box, draws: Tensor, rows: Tensor, rule: Rule) -> tuple[Survey, Tensor]:
    """Return p(z) on the grid of a survey, and 1 − ∫ p(z) dz as far as that is above its own error, ``(R,)``.

    It is looked for as p(x, z) is: on a grid, and from draws of the prior and the guide v ``(S, R, D)``.
    """
    survey = rule.survey(prior, box, rows)
    peaks = find_peaks(survey, prior, draws, prior(draws, rows), rows, rule)
    log_mass, error, _ = rule.integrate(prior, survey, rows, peaks.hints(rule.tol, line.unseen))
    return survey, (-torch.expm1(log_mass) - error).nan_to_num(nan=0.0, neginf=0.0).clamp(min=0.0)


def missed_share(missing: Tensor, joint: Survey, prior: Survey, log_px: Tensor) -> Tensor:
    """Return what mass that p(z) has unseen may add to log p(x), at the largest likelihood on the grid: ``(R,)``."""
    likelihood = (joint.values - prior.values).masked_fill(~prior.values.isfinite(), -torch.inf).amax(0)
    return torch.log1p(missing * (likelihood - log_px).exp()).nan_to_num(nan=torch.inf).masked_fill(missing == 0, 0.0)
