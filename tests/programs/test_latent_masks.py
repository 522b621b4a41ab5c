"""Masks of latents: equal in both programs, or no weight."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import log_likelihood, log_weights
from pyro_vae.errors import NoWeightError

X = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
KEEP = torch.tensor([True, False, True, True])


def under(mask):
    return nullcontext() if mask is None else poutine.mask(mask=mask)


def pair(model_mask, guide_mask, of_model=None, of_guide=None):
    """z with a mask by a handler, or on its distribution, in each program; x is masked where KEEP is off."""

    def masked(d, mask):
        return d if mask is None else d.mask(mask[: d.batch_shape[0]] if isinstance(mask, torch.Tensor) else mask)

    def model(x):
        with pyro.plate("data", len(x)):
            with under(model_mask):
                z = pyro.sample("z", masked(dist.Normal(torch.zeros_like(x), 1.0), of_model))
            with under(KEEP):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), under(guide_mask):
            pyro.sample("z", masked(dist.Normal(x / 2, 0.5**0.5), of_guide))

    return model, guide


EQUAL = {
    "none": pair(None, None),
    "one tensor": pair(KEEP, KEEP),
    "equal tensors": pair(KEEP, KEEP.clone()),
    "all of it": pair(None, torch.ones(4, dtype=torch.bool)),
    "a handler and a distribution": pair(KEEP, None, None, KEEP),
    "two masks against one": pair(KEEP, None, True, KEEP),
    "a bool": pair(True, None),
}
OTHER = {
    "in the model alone": (
        pair(KEEP, None),
        r"'z' is masked in the model and not in the guide \(at entry \[1\] of 4\)",
    ),
    "in the guide alone": (pair(None, KEEP), r"'z' is masked in the guide and not in the model \(at entry \[1\]"),
    "on the distribution": (pair(None, None, KEEP), r"'z' is masked in the model"),
    "all of it off": (pair(False, None), r"'z' is masked in the model.*entry \[0\]"),
    "another row": (pair(KEEP, KEEP.roll(1)), r"'z' is masked in the (model|guide)"),
}


@pytest.mark.parametrize(("model", "guide"), EQUAL.values(), ids=EQUAL)
def test_equal_masks_are_weighed(model, guide):
    assert log_weights(model, guide, X, num_particles=3).isfinite().all()


@pytest.mark.parametrize(("programs", "words"), OTHER.values(), ids=OTHER)
def test_other_masks_are_refused(programs, words):
    with pytest.raises(NoWeightError, match=words):
        log_weights(*programs, X)


def test_a_row_masked_altogether_has_no_evidence_and_the_others_theirs():
    got = log_weights(*EQUAL["one tensor"], X, num_particles=3)
    exact = dist.Normal(X.new_zeros(()), 2**0.5).log_prob(X) * KEEP
    assert (got - exact).abs().max() < 1e-12


def test_masks_of_later_rows_are_compared_where_all_rows_run():
    """The first row is equal in both: the run on all rows finds the others."""
    with pytest.raises(NoWeightError, match=r"'z' is masked"):
        log_likelihood(*by_rows(), X, num_samples=3, verbose=False)


def by_rows():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x < 1.5):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x < 3):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    return model, guide
