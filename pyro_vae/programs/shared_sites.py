"""Sites that all rows share: global latents, priors on parameters, factors outside the data plate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.errors import ProgramError

from .pair import quiet
from .sites import Program, Site, trace_pair

Runs = list[dict[str, Site]]
FEW = 3  # rows of the first run; the second has one fewer


@dataclass(frozen=True)
class SharedSites:
    """Sites outside the plate over the rows, that plate, and how many rows it says the data set has."""

    names: tuple[str, ...] = ()
    plate: str = "data"
    full_size: int | None = None

    def __bool__(self) -> bool:
        return bool(self.names)

    def check_batches(self, rows: int, batch_size: int) -> None:
        """Refuse mini-batches that would count these sites once a batch, where the rows are counted once an epoch.

        Raises:
            ProgramError: sites that all rows share, batches of some of the rows, and no plate of the size of the data set,
                which would weigh each batch as all rows.
        """
        if not self.names or batch_size >= rows or self.full_size == rows:
            return
        raise ProgramError(
            f"site {self.names[0]!r} lies outside the plate {self.plate!r}: it is shared by all rows, and batches of "
            f"{batch_size} of {rows} rows would count it once each, {-(-rows // batch_size)} times an epoch, so that its "
            f"posterior would be that of one batch. Train on all rows at once (batch_size={rows}), or have the plate say how "
            f'many rows there are, pyro.plate("{self.plate}", {rows}, subsample=torch.arange(len(x))) in both programs, '
            "which weighs each batch as all of them."
        )


def shared_sites(
    model: Program, guide: Program, first: Callable[[int], tuple[Tensor, ...]], rows: int, batch_size: int
) -> SharedSites:
    """Find the sites that are the same for any number of rows, by a run of the pair on three rows and one on two.

    A plate runs over the rows if its size follows their number. A site that is in no such plate is shared, unless its own
    shape follows their number. A pair that runs on whole batches only is judged by plates of their size.

    Args:
        first: ``first(n)`` is a batch of the first n rows.
        rows: that there are.
        batch_size: rows of a whole batch.
    """
    few = min(rows, FEW)
    for sizes in [few, few - 1] if few > 1 else [1], [batch_size]:
        try:
            with quiet(model, guide, seed=0, device=first(1)[0].device):
                return compare([merged(model, guide, first(n)) for n in sizes], sizes)
        except Exception:  # the user's own: training meets it, and shows it as it is
            continue
    return SharedSites()


def merged(model: Program, guide: Program, batch: tuple[Any, ...]) -> dict[str, Site]:
    """Return the sites of both programs; those of the model where both have one."""
    q, p = trace_pair(model, guide, *batch)
    return q | p


def compare(runs: Runs, sizes: list[int]) -> SharedSites:
    """Find the plates whose sizes are those of the runs, and the sites outside that have the same shape in each."""
    counted = [{f.name: f for f in frames(run.values())} for run in runs]
    names = [n for n in counted[0] if all(n in c and c[n].size == k for c, k in zip(counted, sizes, strict=True))]
    names = [n for n in names if n == "data"] or names
    shared = [
        n
        for n in runs[0]
        if all(n in run for run in runs) and not any(f.name in names for f in runs[0][n]["cond_indep_stack"])
    ]
    shared = [n for n in shared if len({run[n]["value"].shape for run in runs}) == 1]
    declared = {counted[0][n].full_size for n in names} - {None, sizes[0]}
    return SharedSites(tuple(shared), names[0] if names else "data", declared.pop() if len(declared) == 1 else None)


def frames(sites: Iterable[Site]) -> list[Any]:
    """Return the plates that sites lie in, sequential ones too."""
    return [frame for site in sites for frame in site["cond_indep_stack"]]
