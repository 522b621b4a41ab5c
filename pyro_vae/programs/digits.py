"""How many digits the log-probabilities of sites have left, in the arithmetic that they are scored in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.widen import HALF, NotWidenedError, in_dtype, to_dtype
from pyro_vae.errors import NoWeightError

from .findings import Finding
from .sites import Site
from .wide_scoring import own_dtype, wide_enough, width_of
from .wrapped import base_name, parts

WANTED = 1e-5  # of a log-probability, or of one nat where it is smaller: from here on a word is said
ARGUMENTS = ("total_count", "concentration", "df")
BITS = {torch.bfloat16: 8, torch.float16: 11}


def few_digits(program: str, sites: Mapping[str, Site]) -> Iterator[Finding]:
    """Find the sites whose log-probabilities lose digits all the same, or are of parameters in half precision."""
    for name, site in sites.items():
        where = f"site {name!r} of the {program}"
        own = own_dtype(site["fn"])
        if own in HALF:
            what = (
                f"its parameters are in {short(own)}, {BITS[own]} bits: they are scored in float32, rounded as they are"
            )
            yield Finding("half", where, what, "call float() on the modules before they are evaluated", "warning")
        lost = error_of(site["fn"], site["value"], not site["is_observed"])
        if lost > WANTED:
            digits = max(0.0, -math.log10(lost))
            what = f"log-probabilities of its {base_name(site['fn'])} keep {digits:.1f} digits here"
            fix = "compute its parameters and its log_prob in float64 (x.double()), or the whole pair (module.double())"
            yield Finding("digits", where, what, fix, "warning")


@torch.no_grad()
def error_of(fn: Any, value: Tensor, latent: bool) -> float:
    """Estimate the largest error of a log-probability as it is scored, relative to it or to one nat; 0 if unknown."""
    try:
        if width_of(fn, latent) == torch.float64:
            return torch.finfo(torch.float64).eps * largest_log_gamma(fn, value)
        scored, widened = wide_enough(fn, value, latent)
        log_prob = scored.log_prob(widened).double()
        error = (log_prob - in_float64_or_beside(fn, value)).abs() / log_prob.abs().clamp_min(1)
    except Exception:  # of a program's own class: it is met, and shown, where it is scored
        return 0.0
    return float(error.nan_to_num(0, 0, 0).amax()) if error.numel() else 0.0


def in_float64_or_beside(fn: Any, value: Tensor) -> Tensor:
    """log p(value) in float64; through a network, whose weights stay float32, in float32 at the next float.

    The next float is as far off as a value is whose first sum was rounded: what a network makes of it, it makes of rounding.
    """
    try:
        return in_dtype(fn, torch.float64).log_prob(to_dtype(value, torch.float64)).double()
    except (NotWidenedError, RuntimeError):
        return fn.log_prob(torch.nextafter(value, torch.full_like(value, math.inf))).double()


def largest_log_gamma(fn: Any, value: Tensor) -> float:
    """log Γ of the largest count, degree of freedom or concentration that a distribution holds, or is scored at."""
    held = [t for part in parts(fn) for n, t in vars(part).items() if isinstance(t, Tensor) and n.startswith(ARGUMENTS)]
    if getattr(fn.support, "is_discrete", False):
        held.append(value)
    largest = max((float(t.abs().max()) for t in held if t.numel()), default=0.0)
    return math.lgamma(max(2.0, largest)) if math.isfinite(largest) else 0.0


def refuse_coarse_draws(sites: Mapping[str, Site]) -> None:
    """Refuse draws in half precision whose steps are wider than what they are drawn from: they have another density.

    Raises:
        NoWeightError: naming the site, the step and the scale.
    """
    for name, site in sites.items():
        value, fn = site["value"], site["fn"]
        if value.dtype not in HALF:
            continue
        try:
            if fn.support.is_discrete:
                continue
            scale = fn.stddev.float()
        except (NotImplementedError, AttributeError):
            continue
        step = torch.finfo(value.dtype).eps * value.abs().float()
        if is_doubtful((coarse := step > scale).any()):
            step, scale = (t.expand(coarse.shape)[coarse][0].item() for t in torch.broadcast_tensors(step, scale))
            raise NoWeightError(
                f"site {name!r}: its draws are in {short(value.dtype)}, in steps of {step:.2g}, and its scale is {scale:.2g}: "
                "so rounded, they have another density than the one they are weighed by. Score the pair in float32 "
                "(module.float())."
            )


def short(dtype: torch.dtype) -> str:
    """Name a dtype as users do."""
    return str(dtype).removeprefix("torch.")
