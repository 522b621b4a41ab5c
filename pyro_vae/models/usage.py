"""Use a trained model: encode, reconstruct, sample, interpolate, of any pair of programs, by the names of its sites.

A VAE, or anything with ``prior``, ``likelihood`` and ``posterior`` that return distributions, says which of its sites are
meant where none is named: its code z and its data x. Of other programs each function returns a mapping, from the name of a
site to its values, or those of one ``site=``. Contexts c come last. Nothing here changes the model, its mode, or the global
random state; draws have a seed of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.data.arrays import read_once
from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.at_means import path_of_means, where_kept
from pyro_vae.programs.guide_rows import warn_of_guide_alone
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.sites import is_auxiliary
from pyro_vae.programs.structured import refuse_structure
from pyro_vae.programs.unconditioned import refuse_factors, refuse_interventions
from pyro_vae.programs.user_errors import GUIDE

from .blank_rows import run_on_any, run_on_rows
from .decoding import (
    check_decoder,
    check_redrawn,
    decoded,
    drawn_again,
    latents_of,
    mean_of_data,
    means_of,
    refuse_gaps,
    rows_first,
    run_guide,
    sites_of_x,
    values_of,
)
from .given_contexts import given_contexts
from .line import Line
from .used import Used, joined, parts_of, pick, stacked


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
        The code of a VAE, or the values of `site`; else those of each latent site by its name. Rows come first, wherever their
        plate stands. Entries that a mask leaves out (steps beyond the end of a sequence) are NaN.

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
    if num_samples is None and isinstance(
        x := read_once(x), LazyRows
    ):  # means of rows that are not in memory, part by part
        return joined([encode(vae, x[part], *(a[part] for a in c), site=site) for part in parts_of(x)])
    used = Used.of(vae)
    guide, args = used.rows_of_guide(x, *c)
    with quiet(guide, seed=seed, device=args[0].device):
        if num_samples is None:
            runs = [latents_of(path_of_means(guide, args, GUIDE))]
        else:
            runs = [latents_of(run_guide(guide, args)) for _ in range(whole("num_samples", num_samples, 1))]
    warn_of_guide_alone(guide, args, "its codes")
    if not runs[0]:
        raise ProgramError(
            "the guide draws no latent (those that the model marks for enumeration are summed over): there is no code. Give "
            "it a pyro.sample of the latents."
        )
    refuse_gaps(runs[0], args)
    kept = [rows_first({name: where_kept(one) for name, one in run.items()}, run) for run in runs]
    return pick(kept[0] if num_samples is None else stacked(kept), site, used.code, "latent site of the guide")


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
            warn_of_guide_alone(guide, args, "its codes, and what is made of them,")
            return pick(stacked(runs), site, used.data, "observed site of the model")
        latents = latents_of(path_of_means(guide, args, GUIDE))
        warn_of_guide_alone(guide, args, "its codes, and what is made of them,")
        refuse_gaps(latents, args)
        codes = values_of(latents)
        sites = decoded(model, args, codes)
        check_decoder(model, args, codes, sites)
        data = sites_of_x(model, args, codes, sites)
    return means_of({name: sites[name] for name in data}, site, used.data, latents)


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
        for codes, rows in zip(ends, (args, other), strict=True):
            refuse_gaps(codes, rows)
        warn_of_guide_alone(guide, args, "its codes, and what is made of them,")
        a, b = map(values_of, ends)
        named = site or used.code
        moving = list(a) if named is None else [named]
        pick(a, named, None, "latent site of the guide")
        line = Line(model, args, a, b, moving)
        points = [means_of(line.at(t), None, used.data, ends[0]) for t in torch.linspace(0, 1, steps).tolist()]
    return torch.stack(points) if isinstance(points[0], Tensor) else stacked(points)


@suggest_keywords
def sample(
    vae: Any, num_samples: int, *c: Any, like: Any = None, site: str | None = None, seed: int = 0, mean: bool = False
) -> Any:
    """x ~ p(x | z) for z ~ p(z), ``(num_samples, *event)``: the model run with its observations undone.

    Args:
        vae: a :class:`~pyro_vae.VAE`, any pair of programs, or a model alone.
        num_samples: how many rows.
        *c: contexts with `num_samples` rows, where the model has them. One that it observes, such as labels, is kept: draws
            are given it; one that is all NaN is drawn. What it observes whatever x is (``poutine.condition``) is kept, too.
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
        ProgramError: a model with a ``pyro.factor``; one that reads the values of x, or observes what is no entry of it, as
            for :func:`~pyro_vae.simulate`; a context, or a value of its own, that it observes given latents, as another
            modality: draws given that are :func:`~pyro_vae.impute`'s; a latent that ``poutine.do`` sets.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, sample
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> sample(vae, 10, seed=3).shape
        torch.Size([10, 9])
        >>> list(sample(vae.model, 10, seed=3))
        ['z', 'x']
    """
    num_samples, seed, used = whole("num_samples", num_samples, 1), whole("seed", seed, 0), Used.of(vae)
    model = used.only("model")
    with quiet(model):
        if like is None:
            run = run_on_any(model, used.contexts(num_samples, c), num_samples, seed)
        else:
            refuse_structure(like, "sample")
            run = run_on_rows(model, used.template(like, num_samples, c), seed)
        refuse_factors(run.sites)
        refuse_interventions(run.sites)
        run = given_contexts(model, run, seed) if c or like is None else run  # rows that it is like show no other
    sites = {n: s for n, s in run.sites.items() if not is_auxiliary(s)}
    if not run.observed:
        raise ProgramError("the model observes nothing: pass the data as pyro.sample(..., obs=x).")
    if mean:
        latents = {name: where_kept(s) for name, s in sites.items() if name not in run.observed}
        seen = {n: mean_of_data(n, sites[n], strict=n in (site, used.data)) for n in run.observed}
        return pick(rows_first(latents | seen, sites), site, used.data, "site of the model")
    values = {name: where_kept(s) for name, s in sites.items()}
    return pick(rows_first(values, sites), site, used.data, "site of the model")
