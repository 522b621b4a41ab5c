"""Use a trained model: encode, reconstruct, sample, interpolate, of any pair of programs, by the names of its sites.

A VAE, or anything with ``prior``, ``likelihood`` and ``posterior`` that return distributions, says which of its sites are
meant where none is named: its code z and its data x. Of other programs each function returns a mapping, from the name of a
site to its values, or those of one ``site=``. Contexts c come last. Nothing here changes the model, its mode, or the global
random state; draws have a seed of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest, suggest_keywords
from pyro_vae.common.random import seeded
from pyro_vae.data.arrays import batch_of
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.at_means import AtMeans, path_of_means, where_kept
from pyro_vae.programs.data_set import WholeDataSet
from pyro_vae.programs.determinism import first_other, identical
from pyro_vae.programs.masks import kept_entries
from pyro_vae.programs.pair import like_parameters, programs, quiet
from pyro_vae.programs.problem import rows_of
from pyro_vae.programs.shared_sites import shared_sites
from pyro_vae.programs.simulate import draw
from pyro_vae.programs.sites import Program, Site, is_auxiliary, latent_sites, sample_sites
from pyro_vae.programs.structured import on_tensors, refuse_structure
from pyro_vae.programs.support import MASK
from pyro_vae.programs.unconditioned import Batch, Unconditioned, run_unconditioned
from pyro_vae.programs.user_errors import GUIDE, MODEL, explained
from pyro_vae.programs.valid_draws import ValidDraws

Sites = dict[str, Site]
PARTS = ("prior", "likelihood", "posterior")
EVERY_SHAPE = (
    (1,),
    (2, 3),
)  # of rows that a model is run on, to see whether it takes more of x than how many rows it has


@suggest_keywords
def encode(vae: Any, x: Any, *c: Any, site: str | None = None, num_samples: int | None = None, seed: int = 0) -> Any:
    """E[z | x] under q(z | x), ``(N, latent_dim)``: the posterior's mean, never a hidden random draw.

    Where a guide draws several latents, each is at its mean given the means of those that it draws before (the path of means):
    E[z | x] where these means are linear in what they are given.

    Args:
        vae: a :class:`~pyro_vae.VAE`, whose code is z (z1 of a :class:`~pyro_vae.HierarchicalVAE`), or any pair of programs, an
            object with ``model`` and ``guide`` or a tuple of the two, or a guide alone.
        x: data ``(N, *event)``.
        *c: contexts with N rows, where the guide has them.
        site: of the guide, whose values are wanted.
        num_samples: K draws of the guide, ``(K, N, ...)``, in the place of means.
        seed: of the draws.

    Returns:
        The code of a VAE, or the values of `site`; else those of each latent site by its name. Entries that a mask leaves out
        (steps beyond the end of a sequence) are NaN.

    Raises:
        ProgramError: a site without a mean in closed form, or that is drawn after a discrete one; a guide that does not take
            NaN where x has missing values.
        UsageError: no such site.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, encode
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> encode(vae, torch.ones(5, 9)).shape
        torch.Size([5, 2])
        >>> {site: draws.shape for site, draws in encode(vae.guide, torch.ones(5, 9), num_samples=7).items()}
        {'z': torch.Size([7, 5, 2])}
    """
    used = Used.of(vae)
    guide, args = used.rows_of_guide(x, *c)
    with quiet(guide, seed=seed, device=args[0].device):
        if num_samples is None:
            runs = [latents_of(path_of_means(guide, args, GUIDE))]
        else:
            runs = [latents_of(run_guide(guide, args)) for _ in range(whole("num_samples", num_samples, 1))]
        for run in runs:
            refuse_gaps(run, args)
    codes = [{name: where_kept(s) for name, s in run.items()} for run in runs]
    values = codes[0] if num_samples is None else stacked(codes)
    if not values:
        raise ProgramError(
            "the guide draws no latent (those that the model marks for enumeration are summed over): there is no code. Give "
            "it a pyro.sample of the latents."
        )
    return pick(values, site, used.code, "latent site of the guide")


@suggest_keywords
def reconstruct(
    vae: Any, x: Any, *c: Any, site: str | None = None, num_samples: int | None = None, seed: int = 0
) -> Any:
    """E[x | z] at z = E[z | x]: each row through the encoder's and the decoder's mean, ``(N, *event)``.

    Args:
        vae, x, *c, seed: as for :func:`encode`, with the model.
        site: of the model's data, whose values are wanted.
        num_samples: K draws of x from p(x | z), z of the guide, ``(K, N, *event)``, in the place of means.

    Returns:
        x of a VAE, or the values of `site`; else those of each observed site by its name. NaN where an element has no mean (a
        class), or a mask leaves it out.

    Raises:
        ProgramError: as :func:`encode`; a latent of the model that the guide does not draw; a model that reads x, or whose
            observed sites depend on one another, so that E[x | z] is no number of its own.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, reconstruct
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> reconstruct(vae, torch.ones(5, 9)).shape
        torch.Size([5, 9])
    """
    used = Used.of(vae)
    refuse_structure(x, "reconstruct")
    model, guide, args = used.rows_of_pair(x, *c)
    with quiet(model, guide, seed=seed, device=args[0].device):
        if num_samples is not None:
            check_redrawn(model, guide, args, seed)
            runs = [drawn_again(model, guide, args) for _ in range(whole("num_samples", num_samples, 1))]
            return pick(stacked(runs), site, used.data, "observed site of the model")
        latents = latents_of(path_of_means(guide, args, GUIDE))
        refuse_gaps(latents, args)
        codes = values_of(latents)
        sites = decoded(model, args, codes)
        check_decoder(model, args, codes, sites)
        data = sites_of_x(model, args, codes, sites)
    return means_of({name: sites[name] for name in data}, site, used.data)


@suggest_keywords
def interpolate(vae: Any, start: Any, end: Any, *c: Any, steps: int = 10, site: str | None = None) -> Any:
    """E[x | z] along the straight line from E[z | start] to E[z | end], row by row, ends included: ``(steps, N, *event)``.

    Args:
        vae, *c: as for :func:`reconstruct`.
        start, end: data ``(N, *event)``.
        steps: points on the line.
        site: the latent that moves; a VAE's code, or else all of them together, by default. Latents that the model draws
            before it stay where `start` has them, and those after it are at their means given it.

    Returns:
        x of a VAE; else the means of each observed site by its name.

    Raises:
        ProgramError: as :func:`reconstruct`; a line that leaves the support of a latent (a class, a sphere).

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, interpolate
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> interpolate(vae, torch.zeros(5, 9), torch.ones(5, 9), steps=7).shape
        torch.Size([7, 5, 9])
    """
    if whole("steps", steps) < 2:
        raise UsageError(f"an interpolation has at least 2 steps, its ends; got {steps}")
    used = Used.of(vae)
    refuse_structure(start, "interpolate")
    model, guide, args = used.rows_of_pair(start, *c)
    other = used.rows_of_pair(end, *c)[2]
    if len(args[0]) != len(other[0]):
        raise UsageError(f"an interpolation starts and ends at as many rows, got {len(args[0])} and {len(other[0])}")
    with quiet(model, guide, seed=0, device=args[0].device):
        ends = [latents_of(path_of_means(guide, rows, GUIDE)) for rows in (args, other)]
        for latents, rows in zip(ends, (args, other), strict=True):
            refuse_gaps(latents, rows)
        a, b = map(values_of, ends)
        named = site or used.code
        moving = list(a) if named is None else [named]
        pick(a, named, None, "latent site of the guide")
        line = Line(model, args, a, b, moving)
        points = [means_of(line.at(t), None, used.data) for t in torch.linspace(0, 1, steps).tolist()]
    return torch.stack(points) if isinstance(points[0], Tensor) else stacked(points)


@suggest_keywords
def sample(
    vae: Any, num_samples: int, *c: Any, like: Any = None, site: str | None = None, seed: int = 0, mean: bool = False
) -> Any:
    """x ~ p(x | z) for z ~ p(z), ``(num_samples, *event)``: the model run with its observations undone.

    Args:
        vae: a :class:`~pyro_vae.VAE`, any pair of programs, or a model alone.
        num_samples: how many rows.
        *c: contexts with `num_samples` rows, where the model has them.
        like: rows ``(N, *event)`` as the model takes them, one at least, where it takes more of x than how many rows it has,
            such as how many steps: shape and dtype of the first one count, values do not.
        site: whose values are wanted.
        seed: the same seed draws the same samples, whatever was drawn before.
        mean: E[x | z] of each z drawn, in place of a draw of x.

    Returns:
        x of a VAE, or the values of `site`; else those of every latent and observed site by its name. Latents that all rows
        share (outside the data plate) are drawn once. NaN where a mask leaves an entry out.

    Raises:
        UsageError: a model that needs to be told what its rows are `like`.
        ProgramError: a model that reads the values of x, or observes what is no entry of it, as for :func:`~pyro_vae.simulate`.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, sample
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> sample(vae, 10, seed=3).shape
        torch.Size([10, 9])
        >>> list(sample(vae.model, 10, seed=3))
        ['z', 'x']
    """
    num_samples, used = whole("num_samples", num_samples, 1), Used.of(vae)
    model = used.only("model")
    with quiet(model):
        if like is None:
            run = run_on_any(model, used.contexts(num_samples, c), num_samples, seed)
        else:
            refuse_structure(like, "sample")
            run = run_on_rows(model, used.template(like, num_samples, c), seed)
    sites = {n: s for n, s in run.sites.items() if not is_auxiliary(s)}
    if not run.observed:
        raise ProgramError("the model observes nothing: pass the data as pyro.sample(..., obs=x).")
    if mean:
        latents = {name: where_kept(s) for name, s in sites.items() if name not in run.observed}
        seen = {n: mean_of_data(n, sites[n], strict=n in (site, used.data)) for n in run.observed}
        return pick(latents | seen, site, used.data, "site of the model")
    return pick({name: where_kept(s) for name, s in sites.items()}, site, used.data, "site of the model")


# --- what is used ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Used:
    """A model and a guide, one of them perhaps, and the sites that are meant where none is named."""

    model: Program | None
    guide: Program | None
    code: str | None = None
    data: str | None = None

    @classmethod
    def of(cls, thing: Any) -> Used:
        """Take a VAE, an object with its parts, a pair of programs, or one program."""
        code, data = getattr(thing, "code_site", None), getattr(thing, "data_site", None)
        if code is None and all(callable(getattr(thing, part, None)) for part in PARTS):
            thing, code, data = OfParts(thing), "z", "x"
        pair = isinstance(thing, tuple) or all(callable(getattr(thing, role, None)) for role in ("model", "guide"))
        if pair:
            return cls(*programs(thing), code, data)
        if not callable(thing):
            raise ProgramError(
                f"a {type(thing).__name__} is no Pyro program, no pair of them, and has no prior(...), likelihood(...) and "
                "posterior(...): encode, reconstruct, sample and interpolate want one of these."
            )
        return cls(thing, thing)

    def only(self, role: str) -> Program:
        """Return the program of a role, which may be all there is."""
        program: Program = getattr(self, role)
        return program

    def rows_of_guide(self, x: Any, *c: Any) -> tuple[Program, Batch]:
        """Return the guide, on plain tensors, and its checked rows."""
        if self.model is self.guide:
            guide, _, args = on_tensors(self.guide, None, x, *c)
            return guide, rows_of(guide, None, *args)
        _, guide, args = self.rows_of_pair(x, *c)
        return guide, args

    def rows_of_pair(self, x: Any, *c: Any) -> tuple[Program, Program, Batch]:
        """Return model and guide, on plain tensors, and their checked rows."""
        if self.model is self.guide:
            raise UsageError(
                "wanted a model and a guide, as (model, guide) or an object with both, and got one program"
            )
        model, guide, args = on_tensors(self.model, self.guide, x, *c)
        return model, guide, rows_of(model, guide, *args)

    def contexts(self, num_samples: int, c: tuple[Any, ...]) -> Batch:
        """Return checked contexts of so many rows."""
        if other := [len(context) for context in c if len(context) != num_samples]:
            raise UsageError(f"{num_samples} samples need a context of as many rows, got {other[0]}")
        return batch_of(torch.zeros(num_samples), *c, like=like_parameters(self.model))[1:] if c else ()

    def template(self, like: Any, num_samples: int, c: tuple[Any, ...]) -> Batch:
        """Return rows of which the values do not count, and contexts."""
        rows: Tensor = rows_of(self.only("model"), None, like, missing=True)[0][:1]
        rows = rows.expand(num_samples, *rows.shape[1:]).contiguous()
        self.contexts(num_samples, c)
        return rows_of(self.only("model"), None, rows, *c, missing=True)


class OfParts:
    """Anything with a prior, a likelihood and a posterior, as the two programs of a VAE; its parameters are in no store."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    def model(self, x: Tensor, *c: Tensor) -> None:
        """z ~ p(z | c), x ~ p(x | z, c), for each row."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.parts.prior(*c))
            pyro.sample("x", self.parts.likelihood(z, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """z ~ q(z | x, c), for each row."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.parts.posterior(x, *c))


def pick(values: Mapping[str, Any], site: str | None, default: str | None, kind: str) -> Any:
    """Return the values of the site that is meant; of all where none is."""
    name = site or default
    if name is None:
        return dict(values)
    if name not in values:
        raise UsageError(f"site {name!r} is no {kind}; {suggest(name, list(values), otherwise='there are')}")
    return values[name]


def stacked(runs: list[Any]) -> dict[str, Tensor]:
    """Stack the values of several runs, site by site."""
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


# --- guide and model ------------------------------------------------------------------------------------------------------


def latents_of(sites: Sites) -> Sites:
    """Return the sites of a guide that are latents of a model."""
    return {name: site for name, site in latent_sites(sites).items() if not is_auxiliary(site)}


def values_of(sites: Sites) -> dict[str, Tensor]:
    """Return the value of each site."""
    return {name: site["value"] for name, site in sites.items()}


def run_guide(guide: Program, args: Batch) -> Sites:
    """Run a guide once; refuse draws that are no numbers."""
    with explained(GUIDE, *args), ValidDraws():
        return sample_sites(poutine.trace(guide).get_trace(*args))


def refuse_gaps(latents: Sites, args: Batch) -> None:
    """Refuse codes that are NaN where x has missing values."""
    x = args[0]
    if x.is_floating_point() and x.isnan().any() and any(map(unknown, latents.values())):
        raise ProgramError(f"the posterior's mean is NaN where x has missing values. {MASK}")


def unknown(site: Site) -> bool:
    """Return whether values of a site are NaN, but for entries that a mask leaves out."""
    return bool((site["value"].isnan() & kept_entries(site)).any())


def decoded(model: Program, args: Batch, codes: Mapping[str, Tensor], undone: Collection[str] = ()) -> Sites:
    """Run a model at values of its latents; return its observed sites, those drawn anew whose observations are `undone`.

    Raises:
        ProgramError: a latent that has no value there.
    """
    program = poutine.condition(Undone(undone)(model), data=dict(codes))
    with explained(MODEL, *args):
        sites = sample_sites(poutine.trace(program).get_trace(*args))
    seen = {n: s for n, s in sites.items() if n not in codes and (s["is_observed"] or n in undone)}
    if left := [name for name in sites if name not in codes and name not in seen]:
        raise ProgramError(
            f"latent site {left[0]!r} is in the model but not in the guide, which draws {sorted(codes)}: x given these alone "
            "is no one distribution of the model's. Give it a pyro.sample of that name in the guide, or observe it."
        )
    return seen


class Undone(Messenger):
    """Draw some observed sites."""

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg.update(is_observed=False, value=None, done=False)


def drawn_again(model: Program, guide: Program, args: Batch) -> dict[str, Tensor]:
    """Draw z of a guide and x of the model given it; labels that are observed beside x stay."""
    codes = values_of(latents_of(run_guide(guide, args)))
    data = sites_of_x(model, args, codes, decoded(model, args, codes))
    with ValidDraws():
        sites = decoded(model, args, codes, undone=data)
    return {name: where_kept(sites[name]) for name in data}


def check_redrawn(model: Program, guide: Program, args: Batch, seed: int) -> None:
    """Refuse a model that draws other data when x is another: it reads x beside observing it."""
    device = args[0].device
    with seeded(seed, device=device):
        codes = values_of(latents_of(run_guide(guide, args)))
    data = sites_of_x(model, args, codes, decoded(model, args, codes))
    draws = []
    for rows in (args, *other_rows(args)):
        with seeded(seed, device=device):
            run = run_or_none(model, rows, codes, data)
        draws += [] if run is None else [{name: run[name]["value"] for name in data}]
    for again in draws[1:]:
        if (name := first_other(draws[0], again)) is not None:
            raise ProgramError(
                f"site {name!r}: the model draws another value when it is called on another x: it reads x beside observing it, "
                "so that its draws are none of p(x | z). Pass what it reads as a context."
            )


def sites_of_x(model: Program, args: Batch, codes: Mapping[str, Tensor], sites: Sites) -> list[str]:
    """Return the observed sites whose value is another when x is another.

    Raises:
        ProgramError: there is none.
    """
    runs = [again for other in other_rows(args) if (again := run_or_none(model, other, codes)) is not None]
    data = [
        name for name, site in sites.items() if any(not identical(site["value"], run[name]["value"]) for run in runs)
    ]
    if not data:
        raise ProgramError('the model observes no part of x: pass it as pyro.sample("x", ..., obs=x).')
    return data


def run_or_none(model: Program, args: Batch, codes: Mapping[str, Tensor], undone: Collection[str] = ()) -> Sites | None:
    """Run a model on rows that may be no data of it (it looks values up, say): None then."""
    try:
        return decoded(model, args, codes, undone)
    except Exception:
        return None


def check_decoder(model: Program, args: Batch, codes: Mapping[str, Tensor], sites: Sites) -> None:
    """Refuse a model whose p(x | z) depends on x: on its values, or from one observed site to another."""
    first = likelihood_draws(sites)
    for other in other_rows(args):
        again = run_or_none(model, other, codes)
        if again is not None and (name := first_other(first, likelihood_draws(again))) is not None:
            raise ProgramError(
                f"site {name!r}: its distribution given the latents is another when x is another (the model reads x, or one "
                "observed site depends on another), so that E[x | z] is no number of its own. Pass what the model reads as a "
                "context, or take draws: num_samples=100."
            )


def other_rows(args: Batch) -> Iterator[Batch]:
    """Yield the arguments with other values of x."""
    x = args[0].nan_to_num() if args[0].is_floating_point() else args[0]
    for change in (x.flip(tuple(range(x.dim()))), torch.zeros_like(x), torch.ones_like(x)):
        yield (change, *args[1:])


def likelihood_draws(sites: Sites) -> dict[str, Tensor]:
    """Draw from the distribution of each site on noise that is always the same."""
    drawn = {}
    with torch.random.fork_rng():
        for name, site in sites.items():
            torch.manual_seed(0)
            drawn[name] = site["fn"].sample()
    return drawn


def mean_of_data(name: str, site: Site, strict: bool = True) -> Tensor:
    """Return the mean of an observed site; NaN, or a ProgramError if `strict`, where it has none in closed form."""
    fn = site["fn"]
    try:
        return where_kept({**site, "value": fn.mean})
    except NotImplementedError as error:
        if not strict:
            return torch.full_like(site["value"], torch.nan, dtype=torch.get_default_dtype())
        raise ProgramError(
            f"site {name!r} of the model, p(x | z), is a {type(fn).__name__}, which has no mean in closed form. Take draws: "
            "num_samples=100, and their average."
        ) from error


def means_of(sites: Sites, site: str | None, default: str | None) -> Any:
    """Return the means of the site that is meant, or of all."""
    found = pick({name: name for name in sites}, site, default, "observed site of the model")
    if isinstance(found, str):
        return mean_of_data(found, sites[found])
    return {name: mean_of_data(name, one) for name, one in sites.items()}


class Line:
    """The model at points between two codes, of the latents that move."""

    def __init__(
        self, model: Program, args: Batch, start: Mapping[str, Tensor], end: Mapping[str, Tensor], moving: list[str]
    ) -> None:
        self.model, self.args, self.start, self.end, self.moving = model, args, start, end, moving
        with explained(MODEL, *args):
            sites = latent_sites(sample_sites(poutine.trace(model).get_trace(*args)))
        if absent := [name for name in moving if name not in sites]:
            raise ProgramError(f"site {absent[0]!r} is in the guide but is no latent of the model: nothing decodes it")
        self.support = {name: sites[name]["fn"].support for name in moving}
        order = list(sites)
        first = min(order.index(name) for name in moving)
        self.fixed = {name: start[name] for name in order[:first] if name in start}
        codes = self.codes(0.0)
        sites = decoded(model, args, codes)
        check_decoder(model, args, codes, sites)
        self.data = sites_of_x(model, args, codes, sites)

    def codes(self, t: float) -> dict[str, Tensor]:
        """Return the values of latents at a point; those that follow from them are found at their means."""
        moved = {name: self.start[name] + t * (self.end[name] - self.start[name]) for name in self.moving}
        for name, value in moved.items():
            if not self.support[name].check(value).all():
                raise ProgramError(
                    f"site {name!r}: the line between the two codes leaves what the latent can be ({self.support[name]}), at "
                    f"t = {t:.2g}, where the model says nothing of x. Interpolate a latent of real numbers: site=..."
                )
        known = {**self.fixed, **moved}
        program = poutine.condition(self.model, data=known)
        with AtMeans(MODEL), explained(MODEL, *self.args):
            sites = sample_sites(poutine.trace(program).get_trace(*self.args))
        return {**known, **values_of(latent_sites(sites))}

    def at(self, t: float) -> Sites:
        """Return the observed sites of x at a point."""
        sites = decoded(self.model, self.args, self.codes(t))
        return {name: sites[name] for name in self.data}


# --- the model alone ------------------------------------------------------------------------------------------------------


def run_on_any(model: Program, c: Batch, num_samples: int, seed: int) -> Unconditioned:
    """Run a model on rows of any shape and values: it takes no more of x than how many rows there are.

    Raises:
        UsageError: it takes more.
    """
    like = like_parameters(model)
    zero = torch.zeros(()) if like is None else like.detach().new_zeros(())
    blank = [zero.new_full((num_samples, *shape), float(i)) for i, shape in enumerate(EVERY_SHAPE)]
    why = ("this model takes more of x than how many rows it has. Say what its rows are like: "
           f"sample(model, {num_samples}, like=x), x with a row at least")  # fmt: skip
    runs = []
    for rows in blank:
        try:
            runs.append(run_unconditioned(model, (rows, *c), seed))
        except ProgramError:
            raise
        except Exception as error:
            raise UsageError(f"{why} ({type(error).__name__}: {error})") from error
    if (name := first_other(runs[0].values, runs[1].values)) is not None:
        raise UsageError(f"site {name!r}: {why}")
    return runs[0]


def run_on_rows(model: Program, args: Batch, seed: int) -> Unconditioned:
    """Run a model on rows whose values do not count: that they do not is checked, as for :func:`~pyro_vae.simulate`."""
    shared = shared_sites(model, model, lambda n: tuple(a[:n] for a in args), len(args[0]), len(args[0]))
    if shared:
        whole_set = WholeDataSet(model, model)
        draw(whole_set.model, tuple(a.unsqueeze(0) for a in args), seed)
    else:
        draw(model, args, seed)
    return run_unconditioned(model, args, seed)
