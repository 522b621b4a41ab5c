r"""A data set as one row: log p(X), for pairs with sites that all rows share (global parameters θ outside the data plate)."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import ProgramError

from .pair import quiet
from .plates import refuse_inside
from .problem import rows_of
from .site_rows import frames_of
from .sites import DATA_SETS, Program, Site, has_density, trace_pair
from .vectorize import as_shaped, pad


class WholeDataSet:
    r"""A pair of programs whose only row is the data set: log w = log p(X, θ, z_1..z_N) − log q(θ, z_1..z_N | X).

    Sites that all rows share, θ ~ p(θ) outside the data plate, belong to no row, so functions of rows refuse such a pair. They
    take it as this one: importance sampling, annealing and brackets are of log p(X) then, the evidence of the whole data set.
    Programs run as they are, on all rows at once; K particles run side by side where the programs broadcast over dimensions on
    the left of their batch, else one after the other.

    Args:
        model, guide: Pyro programs with a plate over rows, and sites outside it.

    Attributes:
        model, guide: the same, of data sets ``(1, N, *event)`` as :meth:`rows` makes them, in the plate ``"data sets"``.

    Raises:
        ProgramError: by its programs, of more data sets than one, of a plate that holds a part of its rows, and of a pair
            without shared sites (log p(X) is the sum over rows then).

    References:
        Bayes Factors (Kass & Raftery, 1995), https://doi.org/10.1080/01621459.1995.10476572

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import WholeDataSet, log_likelihood
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> def guide(x):                                        # the posterior: each weight is p(X)
        ...     pyro.sample("mu", dist.Normal(1.0, 0.5))
        >>> x = torch.tensor([0.0, 1.0, 3.0])
        >>> whole = WholeDataSet(model, guide)
        >>> evidence = log_likelihood(whole.model, whole.guide, *whole.rows(x), num_samples=100)
        >>> exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
        >>> bool((evidence.log_px - exact).abs() < 1e-4)
        True
    """

    of_all_rows = True  # refuse a plate that holds some rows of more

    def __init__(self, model: Program, guide: Program) -> None:
        self.programs = model, guide
        self.nesting: int | None = None  # of the programs' plates, known from the first run on
        self.model, self.guide = AsOneRow(model, self), AsOneRow(guide, self)

    def rows(self, x: Any, *context: Any, missing: bool = False) -> tuple[Tensor, ...]:
        """Return x and contexts of N rows as one data set each, ``(1, N, *event)``; NaN in x passes if `missing`."""
        return tuple(a.unsqueeze(0) for a in rows_of(*self.programs, x, *context, missing=missing))

    def depth(self, args: tuple[Tensor, ...]) -> int:
        """Return how many dimensions the programs' own plates take; look for them by a run that leaves no trace."""
        if self.nesting is None:
            with poutine.block(), quiet(*self.programs, seed=0, device=args[0].device):
                q, p = trace_pair(*self.programs, *(a.clone() for a in args))
            for name in [name for name in p if name in q]:
                refuse_inside(name, p[name], q[name])
            self.nesting = nesting_of({**q, **p})
        return self.nesting


class PartOfDataSet(WholeDataSet):
    """Some rows of a data set, with the sites that all of its rows share: a batch, or rows that are new."""

    of_all_rows = False


def nesting_of(sites: dict[str, Site]) -> int:
    """Count the dimensions of the plates; refuse sites that all lie in one of them."""
    stacks = [frames_of(site) for site in sites.values()]
    plates = {name: frame for stack in stacks for name, frame in stack.items()}
    if not plates:
        raise ProgramError(
            "no data plate: no site lies in a pyro.plate, so nothing says which dimension runs over rows. "
            'Put what belongs to a row under `with pyro.plate("data", len(x)):`.'
        )
    if around := [name for name in plates if all(name in stack for stack in stacks)]:
        raise ProgramError(
            f"all sites lie in the plate {around[0]!r}, so rows share none of them: log p(X) is the sum over rows, "
            "log_likelihood(model, guide, x).log_px.sum(). Take a WholeDataSet where a site lies outside."
        )
    return max(-frame.dim for frame in plates.values() if frame.dim is not None)


class AsOneRow:
    """Run a program on the one data set it is given, and show its sites in a plate of data sets."""

    def __init__(self, program: Program, pair: WholeDataSet) -> None:
        self.program, self.pair = program, pair

    @property
    def __wrapped__(self) -> Program:  # how modules behind a program are found
        return self.program

    def rows_inside(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the rows of the data set."""
        return tuple(a[0] for a in args)

    def around(self, model: Program, guide: Program | None) -> tuple[Program, Program | None]:
        """Return other programs of rows as ones of a data set."""
        pair = type(self.pair)(model, model if guide is None else guide)
        return pair.model, None if guide is None else pair.guide

    def __call__(self, *args: Tensor, **kwargs: Any) -> Any:
        if len(args[0]) != 1:
            raise ProgramError(
                f"a WholeDataSet takes one data set at a time, of shape (1, N, *event), and got {len(args[0])}: pass "
                "*whole.rows(x) for x of N rows. What lays rows side by side (quadrature, simulation_based_calibration) takes "
                "no data set: log_likelihood with method='importance', ais and bracket do; data_set_calibration simulates."
            )
        rows = self.rows_inside(args)
        with InDataSet(self.pair.depth(rows), self.pair.of_all_rows):
            return self.program(*rows, **kwargs)


class InDataSet(Messenger):
    """Show sites to the handlers around a program as if a plate of one data set were around it.

    The program sees values without that dimension, as it would alone; with K particles on the left, they keep it, of size 1.
    """

    def __init__(self, nesting: int, of_all_rows: bool) -> None:
        super().__init__()
        self.nesting, self.of_all_rows = nesting, of_all_rows
        self.kept: dict[str, dict[str, Any]] = {}  # of sites on their way

    def _pyro_sample(self, msg: Any) -> None:
        if not has_density(msg):
            return
        if self.of_all_rows:
            refuse_part(msg)
        stack, fn = msg["cond_indep_stack"], msg["fn"]
        on_behalf = bool(self.kept)  # drawn by a handler around, for a site that was shown to it: it has the shape
        msg["cond_indep_stack"] = (CondIndepStackFrame(DATA_SETS, -1 - self.nesting, 1, 0), *stack)
        if on_behalf:
            return
        self.kept[msg["name"]] = {"fn": fn, "cond_indep_stack": stack}
        missing = 1 + self.nesting - len(fn.batch_shape)
        if missing > 0:
            msg["fn"] = fn.expand(torch.Size((1,) * missing + tuple(fn.batch_shape)))
        if isinstance(msg["value"], Tensor):
            msg["value"] = pad(msg["value"], 1 + self.nesting + fn.event_dim)

    def _pyro_post_sample(self, msg: Any) -> None:
        if kept := self.kept.pop(msg["name"], None):
            msg.update(kept, value=as_shaped(msg["value"], kept["fn"]))


def refuse_part(site: Any) -> None:
    """Refuse a site in a plate that holds some of its rows: their terms would have to stand for the others."""
    for frame in frames_of(site).values():
        if frame.full_size not in (None, frame.size):
            raise ProgramError(
                f"site {site['name']!r}: its plate {frame.name!r} holds {frame.size} of {frame.full_size} rows, and log p(X) "
                "is of all of them. Pass all rows, and let the plate have their number: "
                f"pyro.plate({frame.name!r}, len(x))."
            )
