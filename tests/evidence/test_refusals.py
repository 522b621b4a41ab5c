"""Data and numbers that log_likelihood refuses."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, binomial
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.errors import DataError, DeviceError, ProgramError, ShapeError, SupportError, UsageError
from tests.helpers.exact import counts
from tests.helpers.small import binary, small_vae

log_likelihood = partial(noisy_log_likelihood, verbose=False)


def test_grey_pixels_have_no_bernoulli_likelihood():
    vae, x = small_vae(), binary(7)
    x[2, 3], x[5, 0] = 0.4, 0.7
    message = r"site 'x': 2 of 7 rows .* Bernoulli \(0 or 1\): row 2 holds 0\.4 in column 3 \(rows 2, 5;"
    with pytest.raises(SupportError, match=message) as caught:
        log_likelihood(vae.model, vae.guide, x)
    assert "binarize" in str(caught.value)


def test_rows_of_one_number_outside_the_support_are_named():
    """x of shape (N,): a row is a scalar."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(SupportError, match=r"1 of 3 rows .*: row 1 holds -2 \(rows 1;"):
        log_likelihood(model, guide, torch.tensor([1.0, -2.0, 0.0]))


def test_rows_are_counted_from_the_start_of_the_data():
    """Beyond the first pass of the check, too."""
    vae, x = small_vae(), binary(2500)
    x[2345, 1] = 0.5
    with pytest.raises(SupportError, match=r"1 of 2500 rows .* row 2345 holds 0\.5 in column 1 \(rows 2345;"):
        log_likelihood(vae.model, vae.guide, x, num_samples=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_missing_and_infinite_values_are_named(value):
    vae, x = small_vae(), binary(7)
    x[4, 2] = value
    with pytest.raises(DataError, match=r"x has NaN or infinite values in 1 of 7 rows: 4 .* column 2"):
        log_likelihood(vae.model, vae.guide, x)


@pytest.mark.parametrize("value", [-1.0, 2.5, 17.0])
def test_no_counts(value):
    vae, x = small_vae(likelihood=binomial(16), width=12), counts(7)
    x[3, 1] = value
    message = rf"1 of 7 rows .* Binomial \(whole numbers 0 to 16\): row 3 holds {value:g} in column 1"
    with pytest.raises(SupportError, match=message):
        log_likelihood(vae.model, vae.guide, x)


@pytest.mark.parametrize("shape", [(5, 7), (6,), (5, 2, 3), (5, 6, 1)], ids=str)
def test_another_shape_is_refused(shape):
    vae = small_vae()
    with pytest.raises(ShapeError):
        log_likelihood(vae.model, vae.guide, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 5, 6), (5, 1, 6)], ids=str)
def test_another_rank_is_refused(shape):
    """The right width in the last dimension does not make (N, M, d) rows."""
    vae = small_vae()
    with pytest.raises(ValueError):
        log_likelihood(vae.model, vae.guide, torch.zeros(shape), num_samples=3)


@pytest.mark.parametrize("shape", [(0, 6), (5, 0)], ids=str)
def test_nothing_is_refused(shape):
    vae = small_vae()
    with pytest.raises(DataError, match="x is empty"):
        log_likelihood(vae.model, vae.guide, torch.zeros(shape))


def test_data_that_would_broadcast_in_silence_is_refused():
    def posterior(x):
        return dist.Normal(x.mean(-1, keepdim=True).expand(-1, 2), 1.0).to_event(1)

    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6), bernoulli), posterior)
    with pytest.raises(ShapeError, match=r"site 'x': the data has shape \(5, 1\), its distribution \(5, 6\)"):
        log_likelihood(vae.model, vae.guide, torch.ones(5, 1))


def test_a_plate_that_draws_its_own_subsample_is_refused(lg, monkeypatch):
    def plate(x):
        return pyro.plate("data", len(x), subsample_size=min(len(x), 5))

    def model(x):
        with plate(x) as rows:
            z = pyro.sample("z", lg.prior())
            pyro.sample("x", lg.likelihood(z), obs=x[rows])

    def guide(x):
        with plate(x) as rows:
            pyro.sample("z", lg.normal(lg.exact(x[rows])))

    asked, select = [], torch.Tensor.index_select

    def watched(self, dim, index):
        asked.append(len(index) == 0 or int(index.max()) < self.shape[dim])
        return select(self, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", watched)
    with pytest.raises(ProgramError, match="chooses 5 of the 40 rows that are passed"):
        log_likelihood(model, guide, lg.x, num_samples=3)
    assert all(asked)  # a GPU ends all work of the process where one is out of range


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"chunk_size": 0}])
def test_numbers_below_one_are_refused(wrong):
    vae = small_vae()
    with pytest.raises(UsageError, match="must be at least 1"):
        log_likelihood(vae.model, vae.guide, binary(7), **wrong)


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    vae = small_vae()
    with pytest.raises(DeviceError, match=name):
        log_likelihood(vae.model, vae.guide, binary(7), device=name)
