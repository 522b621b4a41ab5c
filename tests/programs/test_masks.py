"""Entries that masks leave out, of handlers and of distributions, alone and together."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.distributions.missing import Observed
from pyro_vae.programs.masks import kept_entries

ROWS = torch.tensor([True, False, True])
ENTRIES = torch.tensor([[True, True], [False, True], [True, False]])
BOTH = ENTRIES & ROWS[:, None]
EVERY = torch.ones(3, 2, dtype=torch.bool)
NORMAL = dist.Normal(torch.zeros(3, 2), 1.0)


def site(fn, mask=True):
    def program():
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("z", fn)

    return poutine.trace(program).get_trace().nodes["z"]


@pytest.mark.parametrize(
    ("fn", "mask", "kept"),
    [
        (NORMAL.to_event(1), True, EVERY),
        (NORMAL.to_event(1), ROWS, ROWS[:, None].expand(3, 2)),
        (NORMAL.to_event(1).mask(ROWS), True, ROWS[:, None].expand(3, 2)),
        (NORMAL.mask(ENTRIES).to_event(1), True, ENTRIES),
        (NORMAL.mask(ENTRIES).to_event(1), ROWS, BOTH),
        (NORMAL.mask(ENTRIES).to_event(1).mask(ROWS), True, BOTH),
        (NORMAL.to_event(1).mask(False), True, ~EVERY),
        (NORMAL.to_event(1).mask(True), False, ~EVERY),
        (Observed(NORMAL.to_event(1)).mask(ROWS), True, ROWS[:, None].expand(3, 2)),
        (dist.TransformedDistribution(NORMAL.mask(ENTRIES), [dist.transforms.ExpTransform()]).to_event(1), ROWS,
         ROWS[:, None].expand(3, 2)),
    ],
    ids=["none", "handler", "distribution", "inside to_event", "inside and handler", "inside and outside", "False",
         "handler False", "missing", "a transform's base is another value"],
)  # fmt: skip
def test_kept_entries(fn, mask, kept):
    assert torch.equal(kept_entries(site(fn, mask)), kept)


def test_they_are_the_entries_that_the_density_is_of():
    """By differences: log p moves with just the entries that are kept."""
    at = site(NORMAL.mask(ENTRIES).to_event(1), ROWS)
    value = torch.zeros(3, 2, requires_grad=True)
    total = torch.where(ROWS, at["fn"].log_prob(value + 1), 0.0).sum()
    assert torch.equal(torch.autograd.grad(total, value)[0] != 0, kept_entries(at))
