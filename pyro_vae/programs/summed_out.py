"""Pairs of programs without their discrete latents: which sites are summed out, and what cannot be, by site and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.errors import ProgramError

from .codes import WHOLE, Codes, enumerable
from .enumerated import enumerated, unmarked
from .log_density import log_density
from .masks import mask_of_site
from .pair import quiet, unwrapped
from .parameters import store_restored
from .plates import Plates, data_plate
from .proposal_guide import set_up_undone
from .rows_of_set import AroundRows, check_alone, plate_of_rows
from .site_rows import frames_of
from .sites import Program, Site, latent_sites, sample_sites
from .sum_over_codes import NEAR, SummedOut, SumOut
from .user_errors import MODEL, explained
from .vectorize import repeated
from .wrapped import base_name

ROWS = 64  # that are looked at together, before anything is computed of them
LOOKS = 16  # at entries whose codes are dealt out, where rows are few


def sum_out(model: Program, guide: Program | None, *args: Any) -> tuple[Program, Program | None]:
    r"""Sum the discrete latents of a pair out: log p(x, z) = log Σ_y p(x, z, y), log q(z | x) = log Σ_y q(y, z | x).

    Discrete sites of the model that have a finite list of values leave both programs, whether the guide draws them or not;
    a pair without any, or with nothing else, is returned as it is. The codes of a row are all combinations of their values:
    the programs run on as many times N rows. What was one weight p(x, z, y) / q(z, y | x) becomes the collapsed
    p(x, z) / q(z | x), whose variance is no larger, and whose ELBO is no lower. Sites in a plate within a row (the topics of a
    document's words) are summed out entry by entry, so that codes are those of one entry; that entries do not depend on one
    another's values is checked by a run in which each has a code of its own. Those of the rows of a
    :class:`~pyro_vae.WholeDataSet` are summed out row by row, likewise.

    Args:
        model, guide: Pyro programs with one data plate; the guide may be None.
        *args: x of shape ``(N, *event)`` and contexts with N rows; all of them are looked at where the values of a discrete
            site may depend on the row, or where it is masked.

    Raises:
        ProgramError: more than 10,000 codes (by site); an observation, a mask or a latent's support that depends on a
            discrete value; values whose probabilities do not add up to 1; masked values that are read; entries of a plate
            within a row, or rows of a data set, that depend on the values of others; sites in different plates.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014; the sum over
        classes), https://arxiv.org/abs/1406.5298

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import log_weights
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Bernoulli(0.25))
        ...         z = pyro.sample("z", dist.Normal(4 * y, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.tensor([0.0, 4.0])
        >>> marginal, same = sum_out(model, guide, x)
        >>> log_w = log_weights(marginal, same, x, num_particles=10_000)
        >>> each = [dist.Normal(mean, 2**0.5).log_prob(x).exp() for mean in (0.0, 4.0)]
        >>> exact = 0.75 * each[0] + 0.25 * each[1]
        >>> bool((log_w.exp().mean(0) / exact - 1).abs().max() < 0.1)
        True
    """
    found = discrete_sites(model, args)
    return (model, guide) if found is None else summed(model, guide, args, *found)


def discrete_sites(model: Program, args: tuple[Any, ...]) -> tuple[list[str], Mapping[str, Site]] | None:
    """Name the discrete latents of a model that can be listed; None if there are none, or nothing else."""
    try:
        sites = sites_of(model, args)
    except torch.linalg.LinAlgError:  # at a draw of the prior, where nobody may have to go
        return None
    latent = latent_sites(sites)
    names = [name for name, site in latent.items() if enumerable(name, site["fn"])]
    return (names, sites) if names and len(names) < len(latent) else None


def sites_of(program: Program, args: tuple[Any, ...]) -> Mapping[str, Site]:
    """Look at the sites of a program on its first row, or on all where it runs on no other number; nothing is left changed."""
    with set_up_undone(program), quiet(program, seed=0, device=device_of(args)), store_restored():
        try:
            return sample_sites(poutine.trace(program).get_trace(*first_rows(args, slice(1))))
        except (ValueError, RuntimeError, IndexError):
            with explained(MODEL, *args):
                return sample_sites(poutine.trace(program).get_trace(*first_rows(args, slice(None))))


def device_of(args: Sequence[Any]) -> torch.device:
    """Return the device of the rows; the CPU for what is no tensor."""
    return args[0].device if isinstance(args[0], Tensor) else torch.device("cpu")


def first_rows(args: Sequence[Any], part: slice) -> tuple[Any, ...]:
    """Copy a part of the arguments that have rows, and other tensors: a program that writes into them is refused later."""
    rows = len(args[0])
    cut = (a[part] if isinstance(a, Tensor | LazyRows) and a.dim() and len(a) == rows else a for a in args)
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in cut)


def guide_sites(guide: Program | None, args: tuple[Any, ...]) -> Mapping[str, Site]:
    """:func:`sites_of` a guide; none of one that does not run, which whoever runs the pair explains."""
    try:
        return {} if guide is None else sites_of(guide, args)
    except Exception:
        return {}


def summed(
    model: Program, guide: Program | None, args: tuple[Any, ...], names: list[str], sites: Mapping[str, Site]
) -> tuple[Program, Program | None]:
    """Return the pair without these sites of the model, as :func:`sum_out`."""
    if isinstance(model, AroundRows):
        return summed_inside(model, guide, args, names)
    return summed_in(data_plate(sites), model, guide, args, names, sites)


def summed_inside(
    model: AroundRows, guide: Program | None, args: tuple[Any, ...], names: list[str]
) -> tuple[Program, Program | None]:
    """Return the pair of a data set, these sites summed out of each of its rows."""
    rows, own = model.rows_inside(args), guide.program if isinstance(guide, AroundRows) else None
    if own is None and (drawn := [n for n in names if n in latent_sites(guide_sites(guide, args))]):
        raise ProgramError(
            f"site {drawn[0]!r} is summed out of the rows of a data set, and the guide that draws it, {type(guide).__name__}, "
            "is none of a WholeDataSet: pass whole.model and whole.guide."
        )
    with quiet(model.program, seed=0, device=device_of(rows)):
        sites = sample_sites(poutine.trace(model.program).get_trace(*first_rows(rows, slice(None))))
    frame = plate_of_rows(names, sites, len(rows[0]))
    one = sites_of(model.program, rows)
    marginal, proposal = summed_in(frame, model.program, own, rows, names, one, len(rows[0]))
    with quiet(model.program, seed=0, device=device_of(rows)):
        check_alone(marginal, rows)  # type: ignore[arg-type]
    summed_model, summed_guide = model.around(marginal, proposal)
    return summed_model, guide if own is None else summed_guide


def summed_in(
    frame: CondIndepStackFrame, model: Program, guide: Program | None, args: tuple[Any, ...], names: list[str],
    sites: Mapping[str, Site], together: int = 0,
) -> tuple[Program, Program | None]:  # fmt: skip
    """Return the pair without these sites, of the rows in a plate; `together`, so many of them run at once."""
    seen = [s for n, s in sites.items() if n not in names]
    dims = [f.dim for site in sites.values() for f in frames_of(site).values() if f.dim is not None]
    plates = Plates(frame.name, frame.dim or -1, max(-dim for dim in dims))
    codes = Codes.of(sites, names, plates, apart=True)
    marginal = SummedOut(model, codes, plates)
    drawn = latent_sites(guide_sites(guide, args))
    all_rows = any(map(of_rows, (sites[name] for name in names))) or any(map(is_masked, seen))
    look(marginal, args, all_rows, together)
    if guide is None or not (own := [name for name in names if name in drawn]):
        return marginal, guide
    if len(own) == len(drawn):
        raise ProgramError(
            f"the guide draws {', '.join(map(repr, own))} and nothing else, and the model has other latents, too: give the "
            "guide a pyro.sample for each of them."
        )
    proposal = SummedOut(guide, codes.only(own), plates)
    all_rows = any(map(of_rows, (drawn[name] for name in own))) or any(map(is_masked, drawn.values()))
    look(proposal, args, all_rows, together)
    return marginal, proposal


def of_rows(site: Site) -> bool:
    """Return whether the list of a site's values, or a mask of it, may be another one in another row."""
    return base_name(site["fn"]) not in WHOLE or mask_of_site(site) is not True


def is_masked(site: Site) -> bool:
    """Return whether some of a site's entries are left out, which may be others in another row."""
    return mask_of_site(site) is not True


def look(program: SummedOut, args: tuple[Any, ...], all_rows: bool, together: int = 0) -> None:
    """Run a program on some rows, or on all; refuse what a sum over codes cannot treat, by site and rows."""
    rows = len(args[0])
    step = together or max(1, min(ROWS, 64 * ROWS // len(program.codes)))
    for start in range(0, rows if all_rows else min(rows, step), step):
        some = first_rows(args, slice(start, start + step))

        def complain(what: str, first: int = start, last: int = start + len(some[0]) - 1) -> None:
            raise ProgramError(
                f"{what} (among rows {first} to {last}), so that it cannot be summed out. Have the guide draw it, and use "
                "log_likelihood with method='importance'."
            )

        with quiet(program.program, seed=0, device=device_of(args)):
            with SumOut(program.codes, program.plates, complain, start) as seen:
                program.program(*repeated(some, len(program.codes)))
            if program.codes.within:
                look_apart(program, some, seen, complain)


def look_apart(program: SummedOut, args: tuple[Any, ...], together: SumOut, complain: Callable[[str], None]) -> None:
    """Complain of entries of a plate whose density depends on other entries' codes: each is summed out by itself.

    All entries share a code in one run, and have one each in another: the same terms must come out, in another order.
    """
    codes, plates = program.codes, program.plates
    shapes = {n: [s // len(codes) if i == len(shape) + plates.dim else s for i, s in enumerate(shape)]
              for n, shape in together.shapes.items()}  # fmt: skip
    for _ in range(looks(len(args[0]))):
        order = torch.rand(len(codes), *next(iter(shapes.values())), device=together.device).argsort(
            0
        )  # (C, ..., N, ...)
        compare_orders(program, args, together, order, complain)


def looks(rows: int) -> int:
    """Return how often codes are dealt out: of few rows again and again, or all entries might happen to have the same."""
    return max(1, min(LOOKS, ROWS // rows))


def compare_orders(
    program: SummedOut, args: tuple[Any, ...], together: SumOut, order: Tensor, complain: Callable[[str], None]
) -> None:
    """Compare the terms of entries that have their codes in an order of their own with those of entries that share one."""
    codes = program.codes
    own = {n: together.left.merge(v[order], v.dim() - 1) for n, v in codes.values.items()}
    data = {**{n: v for n, v in together.inside.items() if n in together.shown}, **own}
    trace = poutine.trace(poutine.condition(program.program, data=data)).get_trace(*repeated(args, len(codes)))
    for name, site in sample_sites(trace).items():
        if name not in together.terms:
            continue
        term = scale_and_mask(log_density(site["fn"], site["value"], name in data), mask=site["mask"])
        mixed, alike = (together.left.split(t) for t in (together.by_row(term), together.terms[name]))
        if not together.beside(site):
            alike = alike.expand(mixed.shape).gather(0, order.expand(mixed.shape))
        if ((mixed - alike).abs() > 10 * NEAR * (1 + alike.abs())).any():
            complain(
                f"site {name!r} depends on the values of {', '.join(codes.values)} in other entries of the plate "
                f"{', '.join(map(repr, codes.within))}"
            )


def marked(
    model: Program, guide: Program | None, args: tuple[Any, ...]
) -> tuple[list[str], Mapping[str, Site], list[str]]:
    """Name the latents of the model that either program marks for enumeration; and those of them that the guide draws."""
    sites = sites_of(model, args)
    drawn = latent_sites(guide_sites(guide, args)) if guide is not None else {}
    latent = latent_sites(sites)
    marks = {*enumerated(latent), *enumerated(drawn)}
    names = [n for n in latent if n in marks and enumerable(n, latent[n]["fn"])]
    if len(names) == len(latent):  # nothing would be left: enumerate_latents has the sum itself
        names = []
    return names, sites, [n for n in names if n in drawn]


def without_marked(model: Program, guide: Program, *args: Any) -> tuple[Program, Program]:
    """Sum out the latents of a pair that it marks for enumeration (``infer={"enumerate": "parallel"}``), as :func:`sum_out`."""
    names, sites, _ = marked(model, guide, args)
    return summed(model, guide, args, names, sites) if names else (model, guide)  # type: ignore[return-value]


def refuse_marks_beside_shared(model: Program, guide: Program, args: tuple[Any, ...]) -> None:
    """Refuse to train marked latents of rows beside what all rows share on an objective that sums codes out of rows alone."""
    try:
        names, sites, _ = marked(model, guide, args)
    except Exception:  # it does not run on its first row: whoever runs it next explains that
        return
    if names and (shared := [n for n, s in latent_sites(sites).items() if n not in names and not frames_of(s)]):
        raise ProgramError(
            f"site {names[0]!r} is marked for enumeration beside {shared[0]!r}, which all rows share: this objective sums "
            "codes out of rows alone. Train on objective=TraceEnum_ELBO(max_plate_nesting=1) (of pyro.infer), which sums them "
            "beside what is shared."
        )


@dataclass(frozen=True)
class Enumerated:
    """A guide some of whose discrete sites an ELBO sums over, each code weighed by q(code | x); elsewhere they are drawn."""

    program: Program
    codes: Codes

    @property
    def __wrapped__(self) -> Program:
        return self.program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return unmarked(self.program)(*args, **kwargs)


def as_enumerated(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> tuple[Program, Program]:
    """Return the pair as a bound trains it: marked latents of the model alone are summed out, the guide's to be summed."""
    if kwargs or not args or any(isinstance(layer, Enumerated) for layer in unwrapped(guide)):
        return model, guide
    try:
        names, sites, own = marked(model, guide, args)
    except Exception:  # it does not run on its first row: whoever runs it next explains that
        return model, guide
    if alone := [name for name in names if name not in own]:
        model, _ = summed(model, None, args, alone, sites)
    if not own:
        return model, guide
    frame = data_plate(sites)
    codes = Codes.of(sites, own, Plates(frame.name, frame.dim or -1, 1))
    return unmarked(model), Enumerated(guide, codes)
