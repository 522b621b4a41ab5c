"""What all rows share is counted once in a data set: gradients of mini-batches against those of the data set, exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import CountOnce
from pyro_vae.errors import ProgramError, UsageError
from tests.helpers.bayesian import DOUBLE, LearnedMean, normal_rows

BATCH = 7  # divides none of the sizes: the last batch is shorter
SIZES = [10, 100, 1000]


def gradients(pair, model, guide, rows, objective=Trace_ELBO, particles=1):
    """d loss / d (loc, log sd) of some rows, under the same noise of μ."""
    torch.manual_seed(0)
    pair.zero_grad()
    objective(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1).differentiable_loss(
        model, guide, rows
    ).backward()
    return torch.stack([pair.loc.grad, pair.log_sd.grad])


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO], ids=["trace", "mean-field"])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_batches_add_up_to_that_of_the_data_set(size, objective):
    pair, x = LearnedMean(), normal_rows(size)
    whole = gradients(pair, pair.model, pair.guide, x, objective)
    once = [CountOnce(program, size) for program in (pair.model, pair.guide)]
    added = sum(gradients(pair, *once, rows, objective) for rows in x.split(BATCH))
    assert torch.allclose(added, whole, rtol=1e-9)
    plain = sum(gradients(pair, pair.model, pair.guide, rows, objective) for rows in x.split(BATCH))
    assert not torch.allclose(plain, whole, rtol=1e-2)  # broken on purpose: the KL counted in each batch


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_that_of_the_closed_form(size):
    """20,000 draws, and its standard error by 20 parts of them; N/B times a batch's is unbiased over batches."""
    pair, x = LearnedMean(), normal_rows(size)
    exact = -torch.stack(torch.autograd.grad(pair.elbo(x), [pair.loc, pair.log_sd]))
    once = [CountOnce(program, size) for program in (pair.model, pair.guide)]
    parts = []
    for seed in range(20):
        torch.manual_seed(seed)
        order = torch.randperm(size)
        pair.zero_grad()
        for rows in x[order].split(-(-size // 3)):
            Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1).differentiable_loss(
                *once, rows
            ).backward()
        parts.append(torch.stack([pair.loc.grad, pair.log_sd.grad]))
    found = torch.stack(parts)
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 20**0.5).all()


@pytest.mark.parametrize("way", ["len", "declared"])
def test_the_plate_weighs_each_row_by_one_whatever_it_says(way):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        plate = pyro.plate("data", len(x)) if way == "len" else pyro.plate("data", 50, subsample=torch.arange(len(x)))
        with plate, poutine.scale(scale=3.0):  # a weight of the user's stays
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    nodes = poutine.trace(CountOnce(model, 50)).get_trace(torch.zeros(5)).nodes
    assert (nodes["mu"]["scale"], nodes["x"]["scale"]) == (pytest.approx(0.1), pytest.approx(3.0))


def test_a_plate_of_another_data_set_is_named():
    def model(x):
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(
        ProgramError, match=r"site 'x': its plate 'data' says that the data set has 40 rows, and it has 50"
    ):
        CountOnce(model, 50)(torch.zeros(5))


def test_a_plate_of_rows_of_the_programs_own_is_named():
    """Each batch would count all of them, and q(μ) come out as if there were N/B times as many."""

    def model(x):
        with pyro.plate("data", 50):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(50))

    with pytest.raises(ProgramError, match=r"site 'x': its plate 'data' has 50 rows in a batch of 5"):
        CountOnce(model, 50)(torch.zeros(5))
    CountOnce(model, 50)(torch.zeros(50))  # all of them at once


def test_a_plate_without_a_size_follows_the_batch():
    def model(x):
        with pyro.plate("data"):
            pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)

    assert poutine.trace(CountOnce(model, 50)).get_trace(torch.zeros(5)).nodes["x"]["scale"] == 1.0


@pytest.mark.parametrize("rows", [0, -1, 2.5, None], ids=["none", "negative", "fraction", "unknown"])
def test_the_number_of_rows_is_asked_for(rows):
    with pytest.raises(UsageError, match="num_rows"):
        CountOnce(lambda x: None, rows)


def test_a_batch_of_more_rows_than_the_data_set_is_refused():
    with pytest.raises(UsageError, match="a batch of 6 rows, and num_rows=5"):
        CountOnce(lambda x: None, 5)(torch.zeros(6, dtype=DOUBLE))
