"""Seeds: none, and huge ones."""

import pytest
import torch

from pyro_vae import fit, log_likelihood
from pyro_vae.errors import UsageError
from tests.helpers.faults import guide
from tests.helpers.gaussian import gaussian
from tests.helpers.small import small_vae

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(UsageError, match=r"seed must be (a whole number|at least 0)"):
        fit(small_vae(seed=0), torch.ones(8, 6), epochs=1, seed=seed, verbose=False)
    with pytest.raises(UsageError, match=r"seed must be (a whole number|at least 0)"):
        log_likelihood(gaussian, guide, torch.zeros(3), num_samples=5, seed=seed)


def test_a_huge_seed_is_a_seed():
    made = [
        log_likelihood(gaussian, guide, torch.zeros(3), num_samples=5, seed=s).log_px.tolist()
        for s in (2**80, 2**80, 1)
    ]
    assert made[0] == made[1] != made[2]
