r"""Index map: which entries of x each observed site sees, found by running the model on x that holds its own positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError, ShapeError

from .plates import data_plate
from .site_rows import frames_of
from .sites import Site
from .unconditioned import Batch, Unconditioned, argument

Run = Callable[[Batch], Unconditioned]
Numbered = tuple[int, Tensor]  # an argument, and the numbers of its entries that a site observes, in its value's shape
INTEGER_BASE = 256  # whole numbers are often classes: tables of one-hot rows stay small


@dataclass(frozen=True, eq=False)
class ObservedEntries:
    """The entries of an argument that one site observes, the same ones in each row.

    Attributes:
        argument: 0 for x, then the contexts.
        dim: of the rows in the site's value, from the right, event dimensions counted.
        of_row: the number of the entry within a row, from 0, for each entry of the site's value for one row.
        width: entries in a row of the argument.
    """

    argument: int
    dim: int
    of_row: Tensor
    width: int

    def numbers(self, rows: int) -> Tensor:
        """Number the entries in the flattened argument of `rows` rows, in the order of the site's value."""
        row = torch.arange(rows, device=self.of_row.device).reshape(-1, *[1] * self.of_row.dim())
        return (row * self.width + self.of_row).movedim(0, self.dim).flatten()


def index_map(run: Run, first: Unconditioned) -> dict[str, ObservedEntries]:
    r"""Find, for each observed site that holds entries of one argument unchanged, which entries.

    A site that observes an argument as it is needs no run. Else the model runs on an argument whose entries are their own
    positions, as digits that its dtype holds (parts of 1 for floating point, so that pixels and look-ups run), and again on
    the positions in reverse. Where a site's observation is a position in both, and the same, it sees that entry. A model that
    does not run on these runs on 0 and 1 alone, one binary digit a run.

    Args:
        run: the model, its observations undone, on arguments.
        first: a run on arguments without NaN.

    Returns:
        By site; a site that observes something else (a transformed x, fixed data, a ``pyro.factor``) is left out. That
        the map holds for any x is for the caller to verify on other values.

    Raises:
        ShapeError: a site that draws another shape than it observes.
        ProgramError: a site whose row n holds entries of another row of the argument, or other entries in other rows.
    """
    found = {name: numbered for name, site in first.observed.items() if (numbered := as_it_is(site, first.args))}
    for i in range(len(first.args)):
        if missing := [name for name in first.observed if name not in found]:
            found |= {name: (i, numbers) for name, numbers in positions(run, first.args, i, missing).items()}
    frames = {frame.name: frame for site in first.sites.values() for frame in frames_of(site).values()}
    dim = frames[data_plate(first.sites).name].dim or -1
    return {
        name: by_row(name, first.observed[name], dim, i, first.args[i], numbers) for name, (i, numbers) in found.items()
    }


def as_it_is(site: Site, args: Batch) -> Numbered | None:
    """Return the whole argument that a site observes, numbered; None if it observes none of them as it is."""
    same = [i for i, a in enumerate(args) if site["infer"]["obs"] is a]
    return (same[0], numbered(args[same[0]])) if len(same) == 1 else None


def numbered(a: Tensor) -> Tensor:
    """Return the numbers of a tensor's entries, in its shape."""
    return torch.arange(a.numel(), device=a.device).reshape(a.shape)


def positions(run: Run, args: Batch, i: int, names: list[str]) -> dict[str, Tensor]:
    """Number the entries of argument `i` that sites observe, by runs on its positions; of no site where none decodes."""
    a = args[i]
    for base, unit in encodings(a.dtype):
        try:
            ahead, back = (
                decoded(run, args, i, names, numbers, base, unit)
                for numbers in (numbered(a), numbered(a.flatten()).flip(0))
            )
        except Exception:  # the model does not run on such an x; another encoding may do
            continue
        return {name: n for name, n in ahead.items() if name in back and bool((n + back[name] == a.numel() - 1).all())}
    return {}


def encodings(dtype: torch.dtype) -> Iterator[tuple[int, float]]:
    """Return bases and units of digits that a dtype holds exactly: first a great base, then 0 and 1, which most models take."""
    if dtype.is_floating_point:
        yield round(1 / torch.finfo(dtype).eps), torch.finfo(dtype).eps  # below 1: 0.5 is a digit, and no whole number
    elif dtype != torch.bool:
        yield min(INTEGER_BASE, torch.iinfo(dtype).max + 1), 1.0
    yield 2, 1.0


def decoded(
    run: Run, args: Batch, i: int, names: list[str], numbers: Tensor, base: int, unit: float
) -> dict[str, Tensor]:
    """Read the numbers that sites observe when argument `i` holds `numbers`, one digit a run; sites without are left out."""
    a, found, power = args[i], dict.fromkeys(names, torch.zeros((), dtype=torch.int64, device=args[i].device)), 1
    while power < max(2, a.numel()):
        digits = (numbers.reshape(a.shape) // power % base).double() * unit
        observed = run((*args[:i], digits.to(a.dtype), *args[i + 1 :])).observed
        read = {name: digits_of(observed[name]["infer"]["obs"], base, unit) for name in found if name in observed}
        found = {name: found[name] + digit * power for name, digit in read.items() if digit is not None}
        power *= base
    return found


def digits_of(observation: object, base: int, unit: float) -> Tensor | None:
    """Return what is observed as digits of a base, or None if it holds anything else."""
    if not isinstance(observation, Tensor) or not observation.numel():  # a pyro.factor observes nothing
        return None
    scaled = observation.detach().double() / unit
    good = (scaled >= 0) & (scaled < base) & (scaled == scaled.round())
    return scaled.long() if bool(good.all()) else None


def by_row(name: str, site: Site, dim: int, i: int, a: Tensor, numbers: Tensor) -> ObservedEntries:
    """Split the numbers of entries into rows, and those within a row."""
    event_dim, drawn = site["fn"].event_dim, tuple(site["value"].shape)
    if drawn != tuple(numbers.shape):
        raise ShapeError(
            f"site {name!r} draws {drawn} where the template has shape {tuple(a.shape)}, of which it observes "
            f"{tuple(numbers.shape)}: give a template with the shape of what the likelihood generates"
        )
    width = a[0].numel()
    rows_first = numbers.movedim(dim - event_dim, 0)
    row, of_row = rows_first // width, rows_first % width
    own = torch.arange(len(rows_first), device=a.device).reshape(-1, *[1] * (rows_first.dim() - 1))
    if len(rows_first) != len(a) or bool((row != own).any()) or bool((of_row != of_row[:1]).any()):
        raise ProgramError(
            f"site {name!r}: its rows do not observe the rows of {argument(i)} (shape {tuple(a.shape)}) of the same number: "
            f"row n along dimension {dim - event_dim} of its value of shape {drawn} must hold entries of row n alone. "
            "Pass data with rows in the first dimension, and observe rows in their order."
        )
    return ObservedEntries(i, dim - event_dim, of_row[0], width)
