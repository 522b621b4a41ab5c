"""Simulation-based calibration over data sets: the posterior passes, a guide that is too narrow does not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import data_set_calibration
from pyro_vae.errors import ProgramError, UsageError
from tests.helpers.bayesian import LocalLatents, NormalMean, Regression
from tests.helpers.gaussian import gaussian

ORACLES = {"normal-mean": NormalMean(), "local-latents": LocalLatents(), "regression": Regression()}


@pytest.mark.parametrize("kind", ORACLES)
def test_the_posterior_is_calibrated(kind):
    oracle = ORACLES[kind]
    found = data_set_calibration(
        oracle.model, lambda *args: oracle.exact_guide, *oracle.args(6), num_sets=60, num_draws=19
    )
    assert found.passed and len(found) == 60
    assert found.names[-1] == "log p(x, z)" and not any(name.startswith("z") for name in found.names)


def test_a_guide_that_is_too_narrow_is_found():
    oracle = NormalMean()

    def narrow(x):
        loc, sd = oracle.posterior(x)
        return lambda x: pyro.sample("mu", dist.Normal(loc, sd / 3))

    found = data_set_calibration(oracle.model, narrow, *oracle.args(6), num_sets=60, num_draws=19)
    assert "mu" in found.rejected and "too narrow" in found.words[0]


def test_the_guide_is_fitted_to_each_data_set():
    seen, oracle = [], NormalMean()

    def fitted(x):
        seen.append(x)
        return oracle.exact_guide

    data_set_calibration(oracle.model, fitted, torch.zeros(4).double(), num_sets=3, num_draws=5)
    assert len(seen) == 3 and all(x.shape == (4,) for x in seen) and not torch.equal(seen[0], seen[1])


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="num_sets of 2 or more"):
        data_set_calibration(NormalMean().model, lambda x: None, torch.zeros(4), num_sets=1)
    with pytest.raises(ProgramError, match="all sites lie in the plate 'data'"):
        data_set_calibration(gaussian, lambda x: gaussian, torch.zeros(4), num_sets=2)
