"""Single latent units: their KL, masks and rows."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.errors import ProgramError
from pyro_vae.programs.masks import own_mask, same_mask
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.wide_scoring import wide_kl


def univariate(fn: Any) -> Any:
    """Return the one-dimensional distribution that `fn` makes independent units of, masked as they are; None for none."""
    mask = own_mask(fn)
    while isinstance(fn, Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return None if fn.event_dim else fn if mask is True else dist.MaskedDistribution(fn, mask)


def closed_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q ‖ p) if there is a closed form, else None; in float64 where its terms cancel."""
    if isinstance(q, dist.Delta):  # Pyro's KL of a Delta leaves its density out
        return None
    mask = own_mask(q)
    if mask is False or not same_mask(mask, own_mask(p)):  # Pyro's is 0.0, and one under both masks
        return None
    try:
        return wide_kl(q, p)
    except NotImplementedError:
        return None
    except IndexError:
        # torch's KL of Bernoulli does not broadcast, and a replayed prior lacks the dimension of particles
        return wide_kl(q, p.expand(q.batch_shape))


def masked(log_prob: Tensor, mask: Any, dims: int) -> Tensor:
    """Set log-probabilities of units, `dims` dimensions of them on the right, to 0 where the rows' mask is off."""
    if isinstance(mask, Tensor):
        mask = mask.reshape(*mask.shape, *[1] * dims)
    return scale_and_mask(log_prob, mask=mask)


def by_row(tensor: Tensor, event_dim: int, plates: Plates) -> Tensor:
    """Reorder to ``(S, n, units)``, float64 on the CPU: inner plates and event dimensions become units."""
    if tensor.dim() - event_dim != plates.nesting + 1:
        raise ProgramError(
            f"a latent site has batch shape {tuple(tensor.shape[: tensor.dim() - event_dim])} under plates of "
            f"{plates.nesting + 1} dimensions (particles and data). Declare what belongs to one row with .to_event(...)."
        )
    return plates.by_unit(tensor, event_dim).to("cpu", torch.float64)
