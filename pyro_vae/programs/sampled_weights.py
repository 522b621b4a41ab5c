"""Weights of a layer that a program draws inside its data plate: each row would get a layer of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from pyro_vae.common.pyro_private import sampled_attributes

from .findings import Finding
from .pair import owners
from .site_rows import frames_of
from .sites import DATA_SETS, Program, Site


def weights_inside(sites: Mapping[str, Site], *programs: Program) -> Iterator[Finding]:
    """Find weights of torch's layers with a prior (``PyroSample``) that are drawn in a plate, and so for each row."""
    drawn = {name for name, site in sites.items() if {*frames_of(site)} - {DATA_SETS}}
    for name in dict.fromkeys(weights_of(*programs)) if drawn else ():
        if name in drawn:
            plate = next(iter(frames_of(sites[name])))
            what = f"a weight of a layer (PyroSample) is drawn inside the plate {plate!r}, so that each row has its own layer"
            fix = "run the layer, or read its weights, before the plate: they are drawn once then, for all rows"
            yield Finding("plate", f"site {name!r}", what, fix)


def weights_of(*programs: Program) -> Iterator[str]:
    """Name the sites of the sampled weights of torch's layers among the modules of programs."""
    for owner in owners(*programs):
        for part in owner.modules():
            if any(
                kind.__module__.startswith("torch.nn.modules.") and kind is not nn.Module for kind in type(part).__mro__
            ):
                yield from sampled_attributes(part)
