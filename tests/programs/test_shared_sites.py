"""Sites that all rows share: found wherever they stand, refused under mini-batches that count them once a batch."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.distributions import constraints

from pyro_vae import adam, fit
from pyro_vae.errors import ProgramError
from pyro_vae.programs.shared_sites import SharedSites, shared_sites
from tests.helpers.gaussian import gaussian

ENUMERATED = {"enumerate": "parallel"}


def found(model, guide, rows=20, batch_size=5, width=()):
    x = torch.randn(rows, *width)
    return shared_sites(model, guide, lambda n: (x[:n],), rows, batch_size)


def nothing(x):
    pass


def global_mean(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def of_mu(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def global_class(x):
    k = pyro.sample("k", dist.Bernoulli(0.5), infer=ENUMERATED)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def regularised(x):
    w = pyro.param("w", torch.ones(2))
    pyro.factor("decay", -w.square().sum())
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)


def topics(x):
    """As many topics as the first run has rows: a plate is over rows where its size follows them."""
    with pyro.plate("topics", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc[0], 1.0), obs=x)


def of_loc(x):
    with pyro.plate("topics", 3):
        pyro.sample("loc", dist.Normal(0.0, 1.0))


def of_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def unplated(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def of_unplated_z(x):
    pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def looped(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def of_looped_z(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(x[i], 1.0))


def fixed_size(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


PAIRS = {
    "latent": (global_mean, of_mu, ("mu",)),
    "enumerated": (global_class, nothing, ("k",)),
    "factor": (regularised, nothing, ("decay",)),
    "topics": (topics, of_loc, ("loc",)),
    "whole-batches-only": (fixed_size, of_mu, ("mu",)),
    "rows-only": (gaussian, of_z, ()),
    "event-of-rows": (unplated, of_unplated_z, ()),
    "loop": (looped, of_looped_z, ()),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_all_rows_share_is_found(kind):
    model, guide, names = PAIRS[kind]
    shared = found(model, guide)
    assert shared.names == names and shared.full_size is None
    if names:
        with pytest.raises(ProgramError, match=rf"site '{names[0]}' .*shared by all rows.*batch_size=20.*plate\("):
            shared.check_batches(20, 5)
    else:
        shared.check_batches(20, 5)
    shared.check_batches(20, 20)


def test_a_plate_of_the_size_of_the_data_set_weighs_batches_rightly():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 20, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    shared = found(model, of_mu)
    assert shared == SharedSites(("mu",), "data", 20)
    shared.check_batches(20, 5)
    with pytest.raises(ProgramError, match="'mu'"):
        shared.check_batches(30, 5)


def test_programs_that_raise_are_left_to_training():
    def broken(x):
        raise RuntimeError("no")

    assert not found(broken, nothing)


# what it is for


def conjugate(x, size=None):
    """mu | x is N(Σx / (N + 0.01), 1 / (N + 0.01)); k says nothing."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", size or len(x), **({"subsample": torch.arange(len(x))} if size else {})):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer=ENUMERATED)
        pyro.sample("x", dist.Normal(mu + 0.0 * k, 1.0), obs=x)


def of_conjugate(x):
    loc = pyro.param("loc", torch.tensor(1.0))
    pyro.sample("mu", dist.Normal(loc, pyro.param("sd", torch.tensor(0.1), constraint=constraints.positive)))


class Own(TraceEnum_ELBO):
    pass


@pytest.mark.parametrize("objective", [TraceEnum_ELBO, Own])
def test_mini_batches_are_refused_before_training(objective):
    x = torch.randn(200) + 1
    with pytest.raises(ProgramError, match=r"site 'mu' lies outside the plate 'data'.*batch_size=200"):
        fit(
            (conjugate, of_conjugate),
            x,
            objective=objective(max_plate_nesting=1),
            epochs=1,
            batch_size=50,
            verbose=False,
        )


def test_mini_batches_are_counted_once_under_trace_elbo():
    """Of 200 rows in batches of 50, μ has the posterior of 200 rows: each batch counts it by a quarter."""
    x = torch.randn(200) + 1
    run = fit(
        (global_mean, of_conjugate), x, objective=Trace_ELBO(num_particles=5), epochs=60, batch_size=50,
        optimizer=adam(3e-2), schedule=lambda done: 1 - done, verbose=False,
    )  # fmt: skip
    right = 200.01**-0.5
    assert abs(pyro.param("sd").item() - right) < 0.2 * right
    assert run.history[-1]["elbo_data_set"] == pytest.approx(200 * run.history[-1]["elbo"])


@pytest.mark.parametrize("way", ["all-rows", "plate-of-all-rows"])
def test_what_is_let_through_has_the_right_posterior_and_elbo(way):
    x = torch.randn(200) + 1
    size, batch_size, epochs = (200, 50, 20) if way == "plate-of-all-rows" else (None, 200, 80)
    pair = (lambda x: conjugate(x, size)), of_conjugate
    objective = TraceEnum_ELBO(max_plate_nesting=1, num_particles=5)
    run = fit(
        pair, x, objective=objective, epochs=epochs, batch_size=batch_size, optimizer=adam(8e-2),
        schedule=lambda done: 1 - done, on_epoch=None, verbose=False,
    )  # fmt: skip
    right, of_a_batch = 200.01**-0.5, 50.01**-0.5
    sd = pyro.param("sd").item()
    assert abs(sd - right) < 0.2 * right and abs(sd - of_a_batch) > 0.3 * right
    covariance = torch.eye(200, dtype=torch.double) + 100.0
    log_px = dist.MultivariateNormal(torch.zeros(200, dtype=torch.double), covariance).log_prob(x.double()).item()
    assert run.history[-1]["elbo"] == pytest.approx(log_px / 200, abs=0.01)  # within 2 nats in all: 5 draws


def clusters(x):
    """Two means that all rows share, and a class of each row that is marked."""
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(means[y], 0.5), obs=x)


def of_clusters(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    sd = pyro.param("sd", torch.full((2,), 0.1), constraint=dist.constraints.positive)
    pyro.sample("means", dist.Normal(loc, sd).to_event(1))


def test_marked_classes_beside_what_is_shared_train_the_way_that_the_refusal_names():
    x = torch.cat([torch.randn(40) * 0.5 - 3, torch.randn(40) * 0.5 + 3])
    options = {"epochs": 150, "batch_size": 80, "optimizer": adam(3e-2), "verbose": False}
    with pytest.raises(
        ProgramError, match=r"'y' is marked for enumeration beside 'means'.*TraceEnum_ELBO\(max_plate_nesting=1\)"
    ):
        fit((clusters, of_clusters), x, **options)
    fit((clusters, of_clusters), x, objective=TraceEnum_ELBO(max_plate_nesting=1), **options)
    assert (pyro.param("loc") - torch.stack([x[:40].mean(), x[40:].mean()])).abs().max() < 0.15
