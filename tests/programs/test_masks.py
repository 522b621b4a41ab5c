"""Entries that masks leave out, of handlers and of distributions, alone and together."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import log_likelihood
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import SupportError
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
        (dist.Normal(torch.zeros(3), 1.0), torch.tensor(False), torch.zeros(3, dtype=torch.bool)),
    ],
    ids=["none", "handler", "distribution", "inside to_event", "inside and handler", "inside and outside", "False",
         "handler False", "missing", "a transform's base is another value", "one for all entries"],
)  # fmt: skip
def test_kept_entries(fn, mask, kept):
    assert torch.equal(kept_entries(site(fn, mask)), kept)


def test_they_are_the_entries_that_the_density_is_of():
    """By differences: log p moves with just the entries that are kept."""
    at = site(NORMAL.mask(ENTRIES).to_event(1), ROWS)
    value = torch.zeros(3, 2, requires_grad=True)
    total = torch.where(ROWS, at["fn"].log_prob(value + 1), 0.0).sum()
    assert torch.equal(torch.autograd.grad(total, value)[0] != 0, kept_entries(at))


def labelled(x, y, known):
    """Labels of −1 where they are not known, which is no label of a Bernoulli's; x | z ~ N(z, 1), y ~ Bernoulli(1/2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(0.5 * torch.ones(len(x), 2)).mask(known).to_event(1), obs=y)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def labelled_guide(x, y, known):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_what_is_masked_may_lie_outside_the_support():
    """log p(x, y) = log N(x; 0, 2) − log 2 for each known label; a −1 that is not masked is refused."""
    x, y = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    found = log_likelihood(labelled, labelled_guide, x, y, y >= 0, num_samples=10, verbose=False)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x) - (y >= 0).sum(-1) * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(found.log_px.float(), exact, atol=1e-5, rtol=1e-5)
    with pytest.raises(SupportError, match="site 'y': 1 of 3 rows lie outside"):
        log_likelihood(labelled, labelled_guide, x, y, torch.tensor([[1, 1], [1, 1], [0, 0]]).bool(), num_samples=10)
