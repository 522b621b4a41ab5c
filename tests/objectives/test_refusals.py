"""What an objective refuses, by site, row and shape."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    MLP,
    VAE,
    Bound,
    Conditional,
    bernoulli,
    dreg,
    elbo,
    fit,
    iwae,
    miwae,
    pathwise,
    piwae,
    renyi,
    rws,
    vimco,
)
from pyro_vae.errors import DivergedError, UsageError
from pyro_vae.objectives import bound_objective as objective_module
from pyro_vae.posteriors import one_hot_categorical
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.problem import Problem
from tests.helpers.objectives import loss_and_grads, raises, scaled
from tests.helpers.small import binary

DOUBLE = torch.float64


def test_a_latent_outside_the_plate(x):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    raises("site 'w' lies outside the plate 'data'", model, guide, x)


def test_no_plate(x):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(7), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, 0])

    raises("no data plate", model, lambda x: pyro.sample("z", dist.Normal(torch.zeros(7), 1.0).to_event(1)), x)


def test_enumerated_sites(x):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    raises("'z'.*TraceEnum_ELBO", model, guide, x)


@pytest.mark.parametrize("bound", [lambda w: w, lambda w: w.mean(), lambda w: w.mean(1)])
def test_a_bound_of_another_shape(bound, vae, x):
    raises(r"\(2, 7\).*wanted one number a row, \(7,\)", vae.model, vae.guide, x, objective=Bound(bound, 2))


def test_nan_weights_are_named(vae, x):
    bad = torch.where(torch.arange(7, device=x.device) == 4, math.nan, torch.zeros(7, dtype=DOUBLE, device=x.device))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.likelihood(pyro.sample("z", vae.prior())), obs=x)
            pyro.sample("bad", dist.Unit(bad, validate_args=False), obs=x[:, :0])

    raises(r"row 4 of the batch, particle 0 \(1 of 7 rows", model, vae.guide, x)
    with without_validation():
        assert Bound(iwae, 2).loss_and_grads(model, vae.guide, x).isnan()


def test_one_weight_for_each_particle_is_no_bound_even_where_there_are_as_many_rows(vae, x):
    raises(
        r"\(7, 8\).*wanted one number a row, \(8,\)", vae.model, vae.guide, x, objective=Bound(lambda w: w.mean(-1), 7)
    )


@pytest.mark.parametrize(("bound", "said"), [(lambda w: 3.0, "type float"), (lambda w: None, "type NoneType")])
@pytest.mark.parametrize("estimator", [pathwise, dreg])
def test_a_bound_that_is_no_tensor(bound, said, estimator, vae, x):
    raises(f"gave a bound of {said}; wanted", vae.model, vae.guide, x, objective=Bound(bound, 2, estimator=estimator))


def test_what_is_no_bound_or_no_estimator():
    with pytest.raises(UsageError, match=r"make one first, renyi\(\.\.\.\)"):
        Bound(renyi, 2)
    with pytest.raises(UsageError, match=r"an estimator is an object such as dreg.*got 'dreg'"):
        Bound(iwae, 2, estimator="dreg")
    with pytest.raises(UsageError, match="num_particles must be a whole number from 1, got None"):
        Bound(iwae, None)


def test_a_row_that_torch_would_refuse_is_named(vae, x):
    """torch says of a NaN parameter which tensor it is; `fit` says which rows of the data, and keeps the weights."""
    x = x.clone()
    x[4, 1] = math.nan
    raises(r"row 4 of the batch, particle 0 \(1 of 7 rows", vae.model, vae.guide, x, objective=Bound(iwae, 2))
    vae.likelihood.net[0].weight.data[0, 0] = math.nan
    with pytest.raises(
        DivergedError, match=r"step 1: log w is NaN for row . of the batch, .* on rows 0, 1, 2"
    ) as caught:
        fit(vae, torch.zeros_like(x), objective=Bound(iwae, 2), epochs=1, verbose=False)
    assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "8", True])
def test_wrong_numbers_of_particles(bad):
    with pytest.raises(UsageError, match="num_particles must be a whole number from 1"):
        Bound(iwae, bad)
    with pytest.raises(UsageError, match="num_groups must be a whole number from 1"):
        Bound(miwae, 2, num_groups=bad)


def test_groups_and_bounds_that_want_them(vae, x):
    raises("num_groups=M to Bound", vae.model, vae.guide, x, error=ValueError, objective=Bound(miwae, 4))
    raises("takes no groups", vae.model, vae.guide, x, error=ValueError, objective=Bound(iwae, 4, num_groups=2))
    with pytest.raises(UsageError, match="a bound is a function"):
        Bound("iwae")


def test_more_particles_than_memory_has_room_for(vae, x, monkeypatch):
    """The message's figure is what autograd saves; what does not grow with K is counted once."""
    needed, rows = objective_module.saved_bytes(Problem.on(vae.model, vae.guide, x), 512)
    assert rows == 7 and needed > 512 * 7 * 8 * 8
    monkeypatch.setattr(objective_module, "free_bytes", lambda args: int(needed * 1.02))
    Bound(iwae, 512).loss(vae.model, vae.guide, x)
    monkeypatch.setattr(objective_module, "free_bytes", lambda args: int(needed * 0.5))
    with pytest.raises(
        UsageError,
        match=r"512 particles of 7 rows need about .* GiB.*are free.*batch_size=3, --batch-size 3\), or 256 particles",
    ):
        Bound(iwae, 512).loss(vae.model, vae.guide, x)
    Bound(iwae, 512).loss(vae.model, vae.guide, x[:3])


def test_a_guide_without_a_path():
    x = binary(7, dtype=DOUBLE, seed=1)
    vae = VAE(
        lambda: dist.OneHotCategorical(torch.ones(3, dtype=DOUBLE)),
        make_likelihood(),
        Conditional(MLP(6, 3).to(DOUBLE), one_hot_categorical),
    )
    raises("site 'z' is drawn from a LinearOneHot, which has no rsample: estimator pathwise", vae.model, vae.guide, x)
    for estimator in (vimco, rws):
        loss, grads = loss_and_grads(Bound(iwae, 3, estimator=estimator), vae, x)
        assert loss.isfinite() and all(g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("bound", [elbo, iwae], ids=["elbo", "iwae"])
def test_a_value_needs_no_path(bound):
    """What is read, and not differentiated, is the same bound under every estimator."""
    x = binary(7, dtype=DOUBLE, seed=1)
    vae = VAE(
        lambda: dist.OneHotCategorical(torch.ones(3, dtype=DOUBLE)),
        make_likelihood(),
        Conditional(MLP(6, 3).to(DOUBLE), one_hot_categorical),
    )
    values = []
    for estimator in (pathwise, vimco):
        torch.manual_seed(0)
        values.append(Bound(bound, 3, estimator=estimator).per_row(vae.model, vae.guide, x))
    assert values[0].isfinite().all() and torch.equal(*values)


def make_likelihood():
    return Conditional(MLP(3, 6).to(DOUBLE), bernoulli)


def test_a_weight_that_is_neither_one_number_nor_one_a_row(vae, x):
    scale = torch.rand(3, 7, dtype=DOUBLE, device=x.device)
    raises(r"tensor of shape \(3, 7\)", *scaled((vae.model, vae.guide), scale), x, objective=Bound(elbo, 3))


def test_says_what_it_is():
    assert repr(Bound(piwae, 4, num_groups=2)) == "Bound(piwae, num_particles=4, num_groups=2, estimator=pathwise)"
    assert repr(Bound(renyi(0.5), 8, estimator=dreg)) == "Bound(renyi(alpha=0.5), num_particles=8, estimator=dreg)"
