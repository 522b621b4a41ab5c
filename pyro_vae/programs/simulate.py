r"""Data from the model itself: (z, x) ~ p(z) p(x | z), for any model with one data plate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords

from .data_map import DataMap, check_alike, data_map_of_few, refuse_unmapped
from .missing_values import without_gaps
from .pair import quiet
from .plates import data_plate, refuse_shared
from .problem import rows_of
from .sites import Program, latent_sites
from .structured import on_tensors
from .unconditioned import Batch, refuse_interventions, run_unconditioned


@dataclass(frozen=True, eq=False)
class Simulated:
    """One draw of (z, x) for each row: made by :func:`simulate`.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> drawn = simulate(vae.model, torch.empty(5, 9))
        >>> drawn.latents["z"].shape, drawn.x.shape, drawn.x.unique()
        (torch.Size([5, 2]), torch.Size([5, 9]), tensor([0., 1.]))
    """

    latents: dict[str, Tensor]  # the value of each latent site, as the model drew it (no dimension of particles)
    args: Batch  # of the programs: the arguments given, with draws in the place of what is observed

    @property
    def x(self) -> Tensor:
        """The data drawn, ``(N, *event)``."""
        return self.args[0]


@suggest_keywords
def simulate(model: Program, x: Any, *context: Any, seed: int = 0) -> Simulated:
    r"""z_n ~ p(z | c_n), x_n ~ p(x | z_n, c_n) for each row n: the model run with its observations undone.

    Changes no parameter, no module's mode and no global random state.

    Args:
        model: a Pyro program ``model(x, *context)`` that observes each entry of x once, unchanged: whole, ``obs=x``, in another
            shape, ``obs=x.reshape(-1, 784)``, or in parts, ``obs=x[:, :3]`` here and ``obs=x[:, 3:]`` there. A context that is
            observed likewise (a label of a joint model) is drawn, too.
        x: a template ``(N, *event)``: its shape, dtype and device count, its values do not, but for the entries that a mask of
            the model leaves out: these are not drawn, and stay. Gaps (NaN) are drawn.
        *context: what the model takes beside x, each with N rows.
        seed: of the draws.

    Raises:
        ProgramError: an observation that is no entry of an argument (a transformed x, a ``pyro.factor``), whose draws are no
            draws of an argument; an entry of x that no site, or more than one, observes; a model that reads the values of x
            beside observing them, changes them, or draws random numbers outside ``pyro.sample``; a latent that rows share, or
            that ``poutine.do`` sets.
        ShapeError: a template of another shape than the model draws.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(z.exp()), obs=x)
        >>> drawn = simulate(model, torch.zeros(3))
        >>> drawn.x.shape, drawn.latents["z"].shape
        (torch.Size([3]), torch.Size([3]))
    """
    flat, _, args = on_tensors(model, None, x, *context)
    args = rows_of(flat, None, *args, missing=True)  # a template may be what is not there
    with quiet(flat):
        drawn = draw(flat, args, seed)
    return drawn if flat is model else replace(drawn, args=flat.restore(drawn.args))


def draw(model: Program, args: Batch, seed: int, *block: int, known: DataMap | None = None) -> Simulated:
    """:func:`simulate` on tensors, with the noise of one block; a map that is `known` is not looked for again."""
    data = known or data_map_of_few(model, args, seed)
    run = run_unconditioned(model, tuple(without_gaps(a) for a in args), seed, *block)
    plate = data_plate(
        run.sites
    )  # refuses, by site, a latent that rows share: its draw for one row would be others', too
    for name, site in run.sites.items():
        refuse_shared(name, site, plate.name, len(args[0]))
    data.check_draws(run)
    refuse_interventions(run.sites)
    drawn = data.fill(args, run.values, run.kept)
    if known is None:  # few rows have shown that; all of them do
        again = run_unconditioned(model, tuple(map(without_gaps, drawn)), seed, *block)
        if transformed := check_alike(data, run, again):
            refuse_unmapped(min(transformed))
    latents = {name: site["value"] for name, site in latent_sites(run.sites).items() if name not in run.observed}
    return Simulated(latents, drawn)
