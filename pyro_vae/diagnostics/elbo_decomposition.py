r"""ELBO decomposition over all rows: reconstruction, and KL = mutual information + total correlation + dimension-wise KL."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError
from pyro_vae.evidence.estimate import format_nats
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.row_coupling import refuse_guide_reading_rows
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors

from .aggregate_posterior import Chunk, PosteriorForm, aggregate, common_form, form_of, posteriors, scored
from .latent_usage import ACTIVE, Units, join, moments
from .mutual_information import as_particles

ROWS = 2048  # that the guide is run on at a time


@dataclass(frozen=True)
class Quantity:
    """A mean over rows in nats, its Monte Carlo error for these rows (more draws shrink it), and its data error (more rows do).

    The data error is sd / √N over rows; it holds the Monte Carlo error already, and is first-order for what depends on q(z).
    """

    value: float
    mc_se: float
    data_se: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {format_nats(self.mc_se)} ± {format_nats(self.data_se)}"


@dataclass(frozen=True)
class ElboDecomposition:
    r"""ELBO = reconstruction − KL and KL = mutual information + marginal KL, over all N rows: made by :func:`decompose`.

    Attributes:
        reconstruction: E log p(x | z).
        kl: E log q(z | x) − log p(z), at the draws, so that its parts add up to it exactly.
        mutual_information: I_q(n; z) = E log q(z | x_n) − log q(z), between row numbers and latents; at most log N.
        marginal_kl: KL(q(z) ‖ p(z)) = E log q(z) − log p(z).
        total_correlation: KL(q(z) ‖ Π_u q(z_u)); None where q(z | x) is no product over units.
        dimension_wise_kl: Σ_u KL(q(z_u) ‖ p(z_u)); None where p(z) is no product, either. Then `marginal_kl` stands whole.
        per_unit: KL(q(z_u) ‖ p(z_u)) of each unit; None where `dimension_wise_kl` is.
        why_fewer_parts: why there is no more than `marginal_kl`; None where there is.
        sites: what :func:`~pyro_vae.latents` says of units: KL in closed form where there is one, Var_x(E[z_u | x]).
        rows, num_samples, seed: N; S, draws a row; of the draws.
        measure: that the ELBO and its reconstruction are densities with respect to; "score" for one of no distribution.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):   # the posterior: the second unit is closed, q = p
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x / 2, torch.zeros_like(x)], -1)
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))
        >>> split = decompose(model, guide, torch.linspace(-2, 2, 50))
        >>> list(split.parts()), split.active()
        (['mutual information', 'total correlation', 'dimension-wise KL'], 1)
        >>> bool(abs(sum(part.value for part in split.parts().values()) - split.rate) < 1e-6)
        True
        >>> bool(abs(split.elbo + split.distortion + split.rate) < 1e-6)
        True
    """

    reconstruction: Quantity
    kl: Quantity
    mutual_information: Quantity
    marginal_kl: Quantity
    total_correlation: Quantity | None
    dimension_wise_kl: Quantity | None
    per_unit: Tensor | None
    why_fewer_parts: str | None
    sites: dict[str, Units]
    rows: int
    num_samples: int
    seed: int
    measure: str | None = None

    @property
    def rate(self) -> float:
        """R = KL(q(z | x) ‖ p(z)), nats a row."""
        return self.kl.value

    @property
    def distortion(self) -> float:
        """D = −E log p(x | z), nats a row: ELBO = −D − R."""
        return -self.reconstruction.value

    @property
    def elbo(self) -> float:
        """Reconstruction − KL."""
        return self.reconstruction.value - self.kl.value

    def active(self, threshold: float = ACTIVE) -> int:
        """Count the units with Var_x(E[z_u | x]) > threshold."""
        return sum(int((units.activity > threshold).sum()) for units in self.sites.values())

    def parts(self) -> dict[str, Quantity]:
        """Return the terms that KL is the sum of."""
        tc, each = self.total_correlation, self.dimension_wise_kl
        if tc is None or each is None:
            return {"mutual information": self.mutual_information, "marginal KL": self.marginal_kl}
        return {"mutual information": self.mutual_information, "total correlation": tc, "dimension-wise KL": each}

    def to_dict(self) -> dict[str, Any]:
        """Return plain names and numbers, for JSON and for :func:`~pyro_vae.plots.bars.decomposition_bars`."""
        return {
            "elbo": self.elbo,
            "reconstruction": asdict(self.reconstruction),
            "kl": asdict(self.kl),
            "parts": {name: asdict(quantity) for name, quantity in self.parts().items()},
            "total_correlation": self.total_correlation and asdict(self.total_correlation),
            "marginal_kl": asdict(self.marginal_kl),
            "marginal_kl_per_unit": None if self.per_unit is None else self.per_unit.tolist(),
            "why_no_more_parts": self.why_fewer_parts,
            "active_units": self.active(),
            "units": sum(len(units.activity) for units in self.sites.values()),
            **{name: getattr(self, name) for name in ("rows", "num_samples", "seed", "measure")},
            "unit": "nats per row",
        }

    def plot(self) -> Any:
        """Plot what KL(q(z | x) ‖ p(z)) is spent on (a matplotlib figure)."""
        from pyro_vae.plots.bars import decomposition_bars

        return decomposition_bars({"rows": self.to_dict()})

    def __str__(self) -> str:
        units = sum(len(u.activity) for u in self.sites.values())
        parts = " + ".join(f"{name} {quantity}" for name, quantity in self.parts().items())
        return (
            f"ELBO {self.elbo:.3f} = reconstruction {self.reconstruction} − KL {self.kl} | KL = {parts} nats (± Monte Carlo "
            f"± data) | information at most log {self.rows} = {math.log(self.rows):.2f} | {self.active()} of {units} units "
            f"active | {self.num_samples} draws a row{f' | {self.why_fewer_parts}' if self.why_fewer_parts else ''}"
            f"{f' | {self.measure}' if self.measure else ''}"
        )

    __repr__ = __str__


@suggest_keywords
def decompose(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    num_samples: int = 4,
    seed: int = 0,
    chunk_size: int = 4096,
    missing: bool = False,
    verbose: bool = True,
) -> ElboDecomposition:
    r"""E KL(q(z | x) ‖ p(z)) = I_q(n; z) + KL(q(z) ‖ Π_u q(z_u)) + Σ_u KL(q(z_u) ‖ p(z_u)), with q(z) = 1/N Σ_n q(z | x_n).

        I_q(n; z)            = E log q(z | x_n) − log q(z)            mutual information (index-code)
        KL(q(z) ‖ Π q(z_u))  = E log q(z) − Σ_u log q(z_u)            total correlation
        Σ KL(q(z_u) ‖ p(z_u)) = Σ_u E log q(z_u) − log p(z_u)          dimension-wise KL

    over draws z ~ q(z | x_n) of every row n. q(z) is exact for the given rows: every draw is scored under every row's
    posterior, S · N · N · units log-probabilities in blocks (a minibatch in place of all rows would be biased). So the
    estimates are unbiased for these rows, and the three add up to the KL at the draws exactly. As figures of the
    *population* of rows they depend on N: I_q is at most log N, and one near it says only that N is too small to tell.

    Total correlation needs a q(z | x) that is a product of one-dimensional distributions, dimension-wise KL a p(z) that
    is, too. Otherwise there is KL(q(z) ‖ p(z)) whole, and `why_fewer_parts` says why. Of a hierarchy, z is all latents, and
    the guide runs once for every block of draws. Changes no parameter, no module's mode and no global random state.

    Args:
        model, guide, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`; the prior p(z) the same for every row.
        num_samples: S, draws of z a row; 2 at least, so that their noise is known.
        seed: of the draws.
        chunk_size: (row, draw) pairs the programs are run on at a time.
        verbose: a progress bar on a terminal; elsewhere a line of how long is to go, where that is long.

    Raises:
        ProgramError: a prior that differs between rows (there is no KL(q(z) ‖ p(z))), masked latents, or a pair that cannot be
            treated row by row.
        SupportError, DataError: as :func:`~pyro_vae.log_likelihood`.

    References:
        ELBO surgery (Hoffman & Johnson, 2016), http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        Isolating Sources of Disentanglement in VAEs (Chen et al., 2018), https://arxiv.org/abs/1802.04942
        Fixing a Broken ELBO (Alemi et al., 2018; rate and distortion), https://arxiv.org/abs/1711.00464

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):   # four posteriors far apart in the first unit; the second is collapsed
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.stack([x, 0 * x], -1), torch.tensor([0.1, 1.0])).to_event(1))
        >>> terms = decompose(model, guide, torch.tensor([-3.0, -1.0, 1.0, 3.0]), num_samples=50)
        >>> print(f"{terms.mutual_information.value:.4f}, log 4 = {math.log(4):.4f}, {terms.active()} active")
        1.3863, log 4 = 1.3863, 1 active
        >>> abs(sum(part.value for part in terms.parts().values()) - terms.kl.value) < 1e-9
        True
    """
    check_whole(num_samples=num_samples, chunk_size=chunk_size, seed=seed)
    if num_samples < 2 or chunk_size < 1:
        raise UsageError(
            f"num_samples must be at least 2 (for its own error) and chunk_size 1, got {num_samples}, {chunk_size}"
        )
    model, guide, args = on_tensors(model, guide, x, *context)
    args = rows_of(model, guide, *args, missing=missing)
    with quiet(model, guide, seed=seed, device=args[0].device):
        problem = Problem.checked(model, guide, *args)
        refuse_guide_reading_rows(problem, "the aggregate posterior, mean of q(z | x) over rows, compares")
        form = form_of(problem)
        chunks = [scored(some, num_samples, form) for some in problem.split(chunk_size // num_samples)]
        form = common_form([form, *(chunk.form for chunk in chunks)])
        z = {name: as_particles([c.values[name] for c in chunks], dim) for name, dim in form.dims.items()}
        mixture = [posteriors(some, form, seed) for some in problem.split(ROWS)]
        log_q, units = aggregate(mixture, z, len(problem), min(ROWS, len(problem)), form.q_product, verbose)
    return replace(assembled(chunks, log_q, units, form, num_samples, seed), measure=problem.measure)


def assembled(
    chunks: list[Chunk], log_q: Tensor, units: Tensor | None, form: PosteriorForm, num_samples: int, seed: int
) -> ElboDecomposition:
    """Average the terms, ``(S, N)`` each, with their errors."""
    reconstruction, log_qx = (torch.cat([getattr(c, name) for c in chunks], 1) for name in ("reconstruction", "log_qx"))
    p_units = torch.cat([c.log_p for c in chunks], 1)
    log_p, log_q = p_units.sum(-1), log_q.reshape(log_qx.shape)
    by_unit = None if units is None else units.reshape(*log_qx.shape, -1)
    each = by_unit - p_units if by_unit is not None and form.p_product else None
    return ElboDecomposition(
        reconstruction=quantity(reconstruction),
        kl=quantity(log_qx - log_p),
        mutual_information=quantity(log_qx - log_q),
        marginal_kl=quantity(log_q - log_p),
        total_correlation=None if by_unit is None else quantity(log_q - by_unit.sum(-1)),
        dimension_wise_kl=None if each is None else quantity(each.sum(-1)),
        per_unit=None if each is None else each.mean((0, 1)),
        why_fewer_parts=form.why,
        sites={name: join([c.sites[name] for c in chunks]) for name in form.dims},
        rows=log_qx.shape[1],
        num_samples=num_samples,
        seed=seed,
    )


def quantity(draws: Tensor) -> Quantity:
    """Average ``(S, N)``: draws vary within rows by chance, row means between rows by data."""
    by_row, noise = moments(draws)
    rows = len(by_row)
    data_se = (by_row.std() / rows**0.5).item() if rows > 1 else None
    return Quantity(by_row.mean().item(), noise.mean().div(rows).sqrt().item(), data_se)
