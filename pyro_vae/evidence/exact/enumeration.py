r"""log p(x) as a finite sum, where all latents are discrete."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.estimate import identified
from pyro_vae.programs.codes import listed
from pyro_vae.programs.pair import device_of, quiet
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors

from .joint import Joint, ReadsRowsError, Shared
from .result import Exact

MAX_CODES = 2**16
PROBES = 64  # codes, all of them if they are few, at which rows may differ in what reads a context
BLOCK = 64  # rows at a time, where each needs runs of its own


@suggest_keywords
@identified
def enumerate_latents(
    model: Program, guide: Program | None, x: Any, *context: Any, chunk_size: int = 16384, missing: bool = False
) -> Exact:
    r"""log p(x_n) = log Σ_z p(x_n | z) p(z), over every code z of the discrete latents; exact up to rounding.

    Several sites make a product of codes, elements of a site likewise; later sites may depend on earlier ones. Marks for
    enumeration (``infer={"enumerate": "parallel"}``) are neither needed nor in the way. A latent that is masked in a row
    counts as not there: all its values together weigh 1; a masked observation adds nothing.

    Args:
        model, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`.
        guide: not run; its modules are put in eval mode too. May be None.
        chunk_size: (row, code) pairs run at a time.

    Raises:
        ProgramError: a continuous latent, one without a finite list of values, or more than 2^16 codes in all, by site; or
            codes whose prior probabilities do not add up to 1; a masked latent whose value is read.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.25))
        ...         pyro.sample("x", dist.Bernoulli(0.2 + 0.4 * z), obs=x)
        >>> enumerate_latents(model, None, torch.tensor([0.0, 1.0])).log_px.exp()   # 0.3 = 0.75 · 0.2 + 0.25 · 0.6
        tensor([0.7000, 0.3000], dtype=torch.float64)
    """
    check_whole(chunk_size=chunk_size)
    if chunk_size < 1:
        raise UsageError(f"chunk_size must be above 0, got {chunk_size}")
    model, guide, args = on_tensors(model, guide, x, *context)
    with quiet(model, guide, seed=0, device=device_of(args[0], model, guide)):
        joint = Joint(model, guide, args[0], args[1:], missing)
        codes = Codes(joint)
        some = torch.linspace(0, codes.total - 1, min(codes.total, PROBES), device=joint.device).round().long()
        shared = Shared.of(joint, codes.values(some))
        try:
            log_px = codes.all_rows(shared, chunk_size)
        except ReadsRowsError:  # at codes that were no probes
            log_px = codes.all_rows(None, chunk_size)
    how = f"{codes.total} codes of {', '.join(map(repr, joint.latents))}"
    return Exact.without_error(log_px, "enumeration", joint.measure, how)


class Codes:
    """All codes of a model's discrete latents, numbered: a digit for each element of each site."""

    def __init__(self, joint: Joint) -> None:
        self.joint = joint
        self.supports = {name: listed(name, site["fn"]) for name, site in joint.latents.items()}
        self.elements = {s.name: s.size // math.prod(self.supports[s.name].shape[1:]) for s in joint.layouts}
        counts = {name: len(values) ** self.elements[name] for name, values in self.supports.items()}
        self.total = math.prod(counts.values())
        if self.total > MAX_CODES:
            by_site = ", ".join(f"{name!r} {count}" for name, count in counts.items())
            raise ProgramError(
                f"the latents have {self.total:.6g} codes in all ({by_site}): enumeration takes up to {MAX_CODES}. Use "
                "log_likelihood with method='importance'."
            )

    def values(self, codes: Tensor) -> Tensor:
        """Return the sites' values of numbered codes, side by side: ``(G, 1, D)``."""
        columns = []
        for name, support in self.supports.items():
            radix = len(support) ** torch.arange(self.elements[name], device=codes.device)
            columns.append(support[codes.unsqueeze(-1) // radix % len(support)].reshape(len(codes), 1, -1))
            codes = codes // len(support) ** self.elements[name]
        return torch.cat(columns, -1)

    def all_rows(self, shared: Shared | None, chunk_size: int) -> Tensor:
        """:meth:`add_up` of every row."""
        step = len(self.joint) if shared else BLOCK
        return torch.cat([self.add_up(rows, shared, chunk_size) for rows in self.joint.everyone.split(step)])

    def add_up(self, rows: Tensor, shared: Shared | None, chunk_size: int) -> Tensor:
        """log Σ_z p(x_n, z) of some rows, ``(R,)``; checks that Σ_z p(z) is 1."""
        log_px = log_one = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)
        for codes in torch.arange(self.total, device=rows.device).split(max(1, chunk_size // len(rows))):
            values = self.values(codes).expand(-1, 1 if shared else len(rows), -1)
            log_p = (shared or self.joint).log_prob(values, rows)
            prior = self.joint.log_prior(values, rows[:1] if shared else rows)
            log_px = torch.logaddexp(log_px, log_p.logsumexp(0))
            log_one = torch.logaddexp(log_one, prior.logsumexp(0))
        if not (log_one.abs() < 1e-4).all() or log_px.isnan().any():
            raise ProgramError(
                f"the prior probabilities of the {self.total} codes of {', '.join(map(repr, self.supports))} add up to "
                f"{log_one[log_one.abs().argmax()].exp():.6g}, not to 1: the values of a site depend on another's, or are not "
                "all listed."
            )
        return log_px
