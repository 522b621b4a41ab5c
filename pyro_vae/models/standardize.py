r"""Data in standard units inside a VAE: its networks see (x − mean) / std, its densities are those of x.

    log p(x | z) = log p_u((x − loc) / scale | z) − Σ_j log scale_j,    q(z | x) = q_u(z | (x − loc) / scale)

loc and scale are buffers of the model: they are saved, moved and loaded with its weights, and log p(x), samples and
reconstructions are in the units of x wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.picklable import Picklable
from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.distributions.units import in_units, real_elements
from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import like_parameters, quiet
from pyro_vae.programs.sites import trace_pair

FEW = 16  # rows that the density is checked on
TOLERANCE = 1e-3


class Roles(Protocol):
    """A model whose x is drawn from its `likelihood`, and seen by its `posterior`."""

    likelihood: Any
    posterior: Any

    def model(self, x: Tensor, *c: Tensor) -> Any: ...

    def guide(self, x: Tensor, *c: Tensor) -> Any: ...


class Units(Picklable):
    """loc and scale of each element of x, ``(*event)``."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(x − loc) / scale."""
        return (x - self.loc) / self.scale


class InUnits(Picklable):
    """p(x | z) in the units of x, of a likelihood of standardized x."""

    def __init__(self, likelihood: Callable[..., Any], units: Units) -> None:
        super().__init__()
        self.base, self.units = likelihood, units

    def forward(self, *parents: Tensor) -> Any:
        return in_units(self.base(*parents), self.units.loc, self.units.scale)


class OfStandardized(Picklable):
    """q(z | x) of a posterior that sees standardized x; or what an encoder, which is no density, makes of it."""

    def __init__(self, posterior: Callable[..., Any], units: Units) -> None:
        super().__init__()
        self.base, self.units = posterior, units

    def forward(self, x: Tensor, *c: Tensor) -> Any:
        return self.base(self.units(x), *c)


def column_units(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each element of x over its rows, NaN left out; 0 and 1 where it is not `real`.

    Elements that do not vary have scale 1 (a Jacobian of log 0 would be no number).

    Example:
        >>> column_units(torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, 5.0]]), torch.tensor(True))
        (tensor([2., 5.]), tensor([1., 1.]))
    """
    if isinstance(x, LazyRows):
        loc, std = units_in_one_pass(x.chunks())
    else:
        loc = x.double().nanmean(0).nan_to_num()  # of nothing observed: 0
        std = (x.double() - loc).square().nanmean(0).nan_to_num().sqrt()
    varies = real & (std > torch.finfo(x.dtype).eps * loc.abs())
    return torch.where(real, loc, 0.0).to(x.device, x.dtype), torch.where(varies, std, 1.0).to(x.device, x.dtype)


def units_in_one_pass(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each element over rows that come part by part, in float64.

    The parts' moments are joined as they come, each about its own mean, so that large means take no digits of the deviations.

    References:
        Algorithms for computing the sample variance (Chan, Golub & LeVeque, 1983), https://doi.org/10.1080/00031305.1983.10483115

    Example:
        >>> [unit.tolist() for unit in units_in_one_pass(torch.tensor([[1.0], [2.0], [6.0], [torch.nan]]).split(2))]
        [[3.0], [2.160246899469287]]
    """
    count = mean = squares = torch.zeros((), dtype=torch.float64)
    for part in parts:
        x = part.double()
        n = (~x.isnan()).sum(0).double()
        own = x.nanmean(0).nan_to_num()
        apart, both = own - mean, (count + n).clamp(min=1)
        squares = squares + (x - own).square().nansum(0) + apart.square() * count * n / both
        mean, count = mean + apart * n / both, count + n
    return mean, (squares / count.clamp(min=1)).sqrt()


def units_by_shape(x: Tensor, real: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of training rows, ``(elements,)``: of each column of a table, of all pixels of images.

    0 and 1 for elements that are not `real`. A pixel of its own scale, such as one that is hardly ever on, would be blown up.
    """
    if len(shape) < 3:
        return column_units(x, real.to(x.device))
    loc, scale = column_units(x.reshape(-1, 1), real.any().to(x.device))
    return loc.expand(x.shape[1]).clone(), scale.expand(x.shape[1]).clone()


def wrap_roles(vae: Roles, loc: Tensor, scale: Tensor) -> None:
    """Have the roles of a model take and give x in these units."""
    vae.likelihood = InUnits(vae.likelihood, Units(loc, scale))
    vae.posterior = OfStandardized(vae.posterior, Units(loc, scale))  # of its own: a file holds no tensor twice


def unwrap_roles(vae: Roles) -> None:
    """Undo :func:`wrap_roles`."""
    if is_standardized(vae):
        vae.likelihood, vae.posterior = vae.likelihood.base, vae.posterior.base


def is_standardized(vae: Roles) -> bool:
    """Return whether the roles of a model are in units of their own."""
    return isinstance(vae.likelihood, InUnits) and isinstance(vae.posterior, OfStandardized)


def give_units(vae: Roles, x: Tensor, *c: Tensor) -> None:
    """Have the networks see (x − mean) / std of each element over these rows, while the densities stay those of x.

    Elements whose likelihood is not of real numbers (counts, classes, proportions) stay as they are, and so do contexts.
    Units that the model had are replaced.

    Args:
        x, *c: rows, ``(N, *event)``, and contexts, as the model takes them; NaN counts in neither mean nor std.

    Raises:
        UsageError: no element of x is a real number, or the model's programs do not use its roles in the way that this needs.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> vae.standardize(100 + 20 * torch.randn(50, 3))
        >>> vae.standardized, bool((vae.likelihood(torch.zeros(1)).mean > 50).all())
        (True, True)
    """
    like = like_parameters(vae)
    device = x.device if like is None else like.device
    first = tuple(a[:FEW].to(device) for a in (x, *c))
    unwrap_roles(vae)
    with quiet(vae, seed=0, device=device):
        site: Any = poutine.trace(vae.model).get_trace(*first).nodes["x"]
        real = real_elements(site["fn"])
        if not real.any():
            raise UsageError(
                f"standardize=True: the likelihood of x is no density of real numbers ({site['fn'].support}), so x has no "
                "other units. Leave it out, or choose such a likelihood (normal, student_t)."
            )
        loc, scale = (unit.to(device) for unit in column_units(x, real.to(x.device)))
        log_p, log_q = scores(vae, (first[0] - loc) / scale, *first[1:])
        wrap_roles(vae, loc, scale)
        wanted = log_p - log_scale(first[0], scale), log_q
        if not all(map(close, scores(vae, *first), wanted)):
            unwrap_roles(vae)
            raise UsageError(
                f"standardize=True: {type(vae).__name__} does not draw x from self.likelihood(z, *c) and z from "
                "self.posterior(x, *c) alone, so its density does not follow their units. Standardize x by hand, and subtract "
                "the sum of log(std) from log p of the standardized x."
            )


def log_scale(x: Tensor, scale: Tensor) -> Tensor:
    """Σ log scale over the elements of each row that are observed, ``(N,)``."""
    return torch.where(x.isnan(), 0.0, scale.log()).reshape(len(x), -1).sum(1)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * (1 + b.abs().max().item()))


def scores(vae: Roles, *batch: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x | z) and log q(z | x) of each row, at the same draw of each call."""
    torch.manual_seed(0)
    q, p = trace_pair(vae.model, vae.guide, *batch)
    log_q = [s["fn"].log_prob(s["value"]) for s in q.values()]
    return p["x"]["fn"].log_prob(p["x"]["value"]), torch.stack(
        [t.reshape(len(batch[0]), -1).sum(1) for t in log_q]
    ).sum(0)
