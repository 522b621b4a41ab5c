r"""Data map of a model: which entries of its arguments it observes where; models that read what they observe are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError, PyroVAEError

from .determinism import first_other, identical, refuse_hidden_randomness
from .index_map import ObservedEntries, index_map
from .missing_values import without_gaps
from .sites import Program
from .unconditioned import Batch, Unconditioned, argument, run_unconditioned, undone

OTHER_DATA = 7  # seed of a data set of noise, to run a model on
FEW = 100  # rows that show what a model reads: all of them are changed at once, so that what it takes of a batch moves, too


@dataclass(frozen=True, eq=False)
class DataMap:
    """Which entries of the arguments each observed site of a model holds, verified on other data than the given.

    Attributes:
        sites: by site. The map is of a row, and so holds for any number of rows.
        unmapped: observed sites that hold no entries of an argument as they are.
    """

    sites: dict[str, ObservedEntries]
    unmapped: tuple[str, ...]

    @property
    def arguments(self) -> list[int]:
        """The numbers of the arguments that sites observe, x being 0."""
        return sorted({entries.argument for entries in self.sites.values()})

    def fill(
        self, args: Batch, values: Mapping[str, Tensor], kept: Mapping[str, Tensor], draws: tuple[int, ...] = ()
    ) -> Batch:
        """Put sites' values ``(*draws, ..., N, ..., *event)`` into the arguments, in the place of what they observe and keep.

        An argument that no site observes stays ``(N, *event)``; the others are ``(*draws, N, *event)``.
        """
        filled, rows = list(args), len(args[0])
        for i in self.arguments:
            flat = args[i].expand(*draws, *args[i].shape).reshape(*draws, -1).clone()
            for name, at in self.sites.items():
                if at.argument == i:
                    numbers = at.numbers(rows)
                    value, keep = (t[name].reshape(*draws, -1) for t in (values, kept))
                    flat[..., numbers] = torch.where(keep, value.to(flat.dtype), flat[..., numbers])
            filled[i] = flat.reshape(*draws, *args[i].shape)
        return tuple(filled)

    def observation(self, name: str, args: Batch, draws: tuple[int, ...] = ()) -> Tensor:
        """Return what a site observes of arguments ``(*draws, N, *event)``, as ``(*draws, entries)``."""
        at = self.sites[name]
        a = args[at.argument]
        return a.reshape(*draws, -1)[..., at.numbers(a.numel() // (at.width * max(1, torch.Size(draws).numel())))]

    def of_site(self, name: str, args: Batch, draws: tuple[int, ...] = ()) -> Tensor:
        """Return what a site observes of arguments ``(*draws, N, *event)``, row by row: ``(*draws, N, *entries)``."""
        at = self.site(name)
        return args[at.argument].reshape(*draws, -1, at.width)[..., at.of_row]

    def site(self, name: str) -> ObservedEntries:
        """Return the entries that a site observes; a ProgramError for a site that observes none as they are."""
        if name in self.unmapped:
            refuse_unmapped(name)
        if name not in self.sites:
            raise ProgramError(
                f"the model has no observed site {name!r}: it observes {', '.join(map(repr, self.sites)) or 'nothing'}."
            )
        return self.sites[name]

    def times_observed(self, args: Batch, kept: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Return at how many sites each entry of each argument is observed (where `kept`), in the arguments' shapes."""
        counts = [torch.zeros(a.numel(), dtype=torch.int64, device=a.device) for a in args]
        for name, at in self.sites.items():
            numbers = at.numbers(len(args[0]))
            counts[at.argument][numbers] += 1 if kept is None else kept[name].flatten().long()
        return [count.reshape(a.shape) for count, a in zip(counts, args, strict=True)]

    def check_draws(self, first: Unconditioned) -> None:
        """Refuse, by site, a model whose draws are not draws of x, entry for entry."""
        if self.unmapped:
            refuse_unmapped(self.unmapped[0])
        if 0 not in self.arguments:
            raise ProgramError('x is observed nowhere: pass it whole, pyro.sample("x", likelihood, obs=x)')
        everywhere = self.times_observed(first.args)
        for i in self.arguments:
            if (everywhere[i] == 0).any():
                raise ProgramError(
                    f"{argument(i)}: the model observes some of its entries, and entry {where(everywhere[i] == 0)} of each "
                    "row at no site, so nothing draws it. Pass what is not modelled as a context of its own, "
                    "model(x, covariates)."
                )
        # two sites may share an entry under masks that exclude each other
        for i, count in enumerate(self.times_observed(first.args, first.kept)):
            if (count > 1).any():
                self.refuse_shared(i, count > 1)

    def refuse_shared(self, i: int, shared: Tensor) -> None:
        """Name the site that observes an entry of argument `i` again."""
        numbers = shared[0].flatten().nonzero() if shared[0].any() else shared.flatten(1).any(0).nonzero()
        entry = int(numbers[0])
        names = [name for name, at in self.sites.items() if at.argument == i and bool((at.of_row == entry).any())]
        raise ProgramError(
            f"site {names[-1]!r} observes what another site observes already ({names[0]!r}; {argument(i)}, entry {entry} of a "
            "row): which one draws it is open. Observe it once, or under masks that exclude each other."
        )


def where(mask: Tensor) -> int:
    """Return the number, within its row, of the first entry where a mask ``(N, *event)`` holds."""
    return int(mask.reshape(len(mask), -1).any(0).nonzero()[0])


def refuse_unmapped(name: str) -> None:
    """Refuse a site that observes no entries of an argument."""
    raise ProgramError(
        f"site {name!r} observes none of the arguments as it is (a transformed x, fixed data, a pyro.factor): "
        "what it draws does not say what x would be. Observe x or parts of it unchanged, "
        'pyro.sample("x", likelihood, obs=x) or obs=x[:, :3]; transform the data before it is passed.'
    )


def data_map_of_few(model: Program, args: Batch, seed: int = 0) -> DataMap:
    """Return the :func:`data_map` of some rows, evenly spaced, which is that of all; of all where a model runs on no others."""
    rows = len(args[0]) if isinstance(args[0], Tensor) and args[0].dim() else 0
    if rows > FEW:
        chosen = torch.linspace(0, rows - 1, FEW).long()
        try:
            return data_map(model, tuple(a[chosen.to(a.device)] for a in args), seed)[0]
        except PyroVAEError:
            raise
        except Exception:  # a plate of a fixed size; if it is anything else, all rows raise it, too
            pass
    return data_map(model, args, seed)[0]


def data_map(model: Program, args: Batch, seed: int = 0, *block: int) -> tuple[DataMap, Unconditioned]:
    r"""Find which entries of the arguments the model observes where, and verify that it reads them nowhere else.

    The model runs with its observations undone, each time on the same noise: on the arguments, on its own draws in their
    place, on these in reverse order, on zeros, on ones, and on numbers of both signs. It must draw the same each time, its
    masks must be the same, and each site must observe what the map says. A run on other data than its draws may fail (a
    look-up of -1.3); one on its draws may not.

    Args:
        model: a Pyro program.
        args: x and contexts, on rows all of which are looked at. NaN is a gap, and is taken as 0.
        seed, *block: of the noise.

    Returns:
        The map, and the run on the arguments.

    Raises:
        ProgramError: a model that reads the values it observes, that draws random numbers outside ``pyro.sample``, that
            changes its arguments, or whose rows are mixed (see :func:`~pyro_vae.programs.index_map.index_map`).
        ShapeError: arguments of another shape than the model draws.
    """
    if no_tensors := [type(a).__name__ for a in args if not isinstance(a, Tensor)]:
        raise ProgramError(
            f"an argument of the model is a {no_tensors[0]}: which of its entries the model observes is found for tensors "
            "alone. Pass x and contexts as tensors of N rows each."
        )
    complete = tuple(without_gaps(a) for a in args)
    first = run_unconditioned(model, complete, seed, *block)
    run = partial(rerun, model, seed, block)
    refuse_hidden_randomness(undone(model), first.trace, complete, seed, *block, device=complete[0].device)
    found = DataMap(sites := index_map(run, first), tuple(name for name in first.observed if name not in sites))
    drawn = found.fill(complete, first.values, first.all_entries)
    transformed = check_alike(found, first, run_unconditioned(model, drawn, seed, *block))
    for other in other_data(found, drawn):
        try:
            again = run(other)
        except Exception:  # not data of this model, which its own draws are
            continue
        transformed |= check_alike(found, first, again)
    left = {name: at for name, at in found.sites.items() if name not in transformed}
    return DataMap(left, (*found.unmapped, *sorted(transformed))), first


def rerun(model: Program, seed: int, block: tuple[int, ...], args: Batch) -> Unconditioned:
    """Run the model on other arguments, which may be no data of it, and on the same noise."""
    return run_unconditioned(model, args, seed, *block, checked=False)


def other_data(found: DataMap, drawn: Batch) -> Iterator[Batch]:
    """Yield the arguments with other values in the place of what is observed; what is not may be read."""
    seen = [times > 0 for times in found.times_observed(drawn)]
    noise = torch.Generator().manual_seed(OTHER_DATA)
    changes = (
        lambda a: a.flip(tuple(range(a.dim()))),  # rows on a simplex, one-hot rows and classes stay what they are
        torch.zeros_like,
        torch.ones_like,
        lambda a: (4 * torch.randn(a.shape, generator=noise)).to(a),
    )
    for change in changes:
        yield tuple(torch.where(at, change(a), a) for at, a in zip(seen, drawn, strict=True))


def check_alike(found: DataMap, first: Unconditioned, again: Unconditioned) -> set[str]:
    """Refuse a model that drew otherwise on other data; return the sites whose observation is not what the map says."""
    changed = first_other(first.values, again.values) or first_other(first.kept, again.kept)
    if changed is not None:
        raise ProgramError(
            f"site {changed!r}: the model draws another value, or masks another entry, when it is called on another x: it "
            "reads the data's values (an autoregressive likelihood, a model conditioned on x, a count taken from the longest "
            "row), so running it once does not simulate from p(z) p(x | z). Pass what it reads as a context, model(x, n); "
            "of an observed label use what pyro.sample returns; else simulate element by element in a program of your own."
        )
    observed = {name: again.observed[name]["infer"]["obs"] for name in found.sites}
    return {
        name
        for name, value in observed.items()
        if not identical(value.flatten().double(), found.observation(name, again.args).flatten().double())
    }
