"""Data drawn from a model, and models that cannot be simulated."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import nn

from pyro_vae.diagnostics.predictive_checks import prior_predictive_check
from pyro_vae.diagnostics.sbc import simulation_based_calibration as calibrate
from pyro_vae.errors import ProgramError, ShapeError, UsageError
from pyro_vae.programs import data_map as data_maps
from pyro_vae.programs.simulate import simulate
from tests.helpers.calibration import counts, guided, half
from tests.helpers.gaussian import gaussian

ONE = torch.zeros(1)


def test_simulated_data_is_of_the_model(lg):
    """Means of x and of x² within 4 standard errors, var / √N; z and x belong together, as z explains x."""
    drawn = simulate(lg.model, lg.x.repeat(100, 1), seed=3)
    cov = lg.a.T @ lg.a + lg.noise.diag()
    off = drawn.x - lg.mean
    assert ((off.mean(0)).abs() < 4 * (cov.diagonal() / 4000).sqrt()).all()
    assert ((off.square().mean(0) / cov.diagonal() - 1).abs() < 4 * (2 / 4000) ** 0.5).all()
    residual = off - drawn.latents["z"] @ lg.a
    assert ((residual.square().mean(0) / lg.noise - 1).abs() < 4 * (2 / 4000) ** 0.5).all()


def test_an_observed_context_is_drawn_too():
    def labelled(x, y):
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.8])), obs=y)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z + 10.0 * label, 1.0), obs=x)

    x, y = simulate(labelled, torch.zeros(1000), torch.zeros(1000, dtype=torch.int64)).args
    assert y.dtype == torch.int64 and abs(y.double().mean() - 0.8) < 4 * (0.16 / 1000) ** 0.5
    assert (x[y == 1] > 4).all() and (x[y == 0] < 6).all()


def factored(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("penalty", -z.square())


def chained(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        before = torch.nn.functional.pad(x[..., :-1], (1, 0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) + before, 1.0).to_event(1), obs=x)


def twice(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("x2", dist.Normal(z, 1.0), obs=x)


def silent(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        (half, torch.zeros(4), ProgramError, "site 'x' observes none of the arguments"),
        (factored, torch.zeros(4), ProgramError, "site 'penalty' observes none of the arguments"),
        (chained, torch.zeros(4, 3), ProgramError, "reads the data's values"),
        (twice, torch.zeros(4), ProgramError, "site 'x2' observes what another site observes already"),
        (silent, torch.zeros(4), ProgramError, "x is observed nowhere"),
        (counts, torch.zeros(4, 2), ShapeError, "site 'x' draws (4, 3) where the template has shape (4, 2)"),
    ],
)
def test_models_that_cannot_be_simulated(model, x, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
        simulate(model, x)
    if model is not silent:
        with pytest.raises(error):
            calibrate(model, guided(), x, num_rows=4, num_draws=2)


# a model that reads x beside observing it: none is accepted, whatever its draws are a fixed point of

WORDS = torch.softmax(torch.randn(10, generator=torch.Generator().manual_seed(0)), -1)
DOCUMENTS = torch.stack([torch.full((10,), float(n)) for n in range(1, 41)])


def plate_of(x):
    return pyro.plate("data", len(x))


def longest_document(x):
    """ProdLDA: what it draws are documents of its longest one's length, so that it draws the same from them."""
    with plate_of(x):
        pyro.sample("x", dist.Multinomial(int(x.sum(-1).max()), WORDS.expand(len(x), 10)), obs=x)


def own_length(x):
    with plate_of(x):
        n = x.sum(-1, keepdim=True)
        pyro.sample("x", dist.Binomial(n.expand(-1, 10), WORDS).to_event(1), obs=x)


def conditional_prior(x):
    with plate_of(x):
        pyro.sample("z", dist.Normal(x.mean(-1), 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), 1.0).to_event(1), obs=x)


def batch_scale(x):
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), x.std() + 1).to_event(1), obs=x)


def first_row(x):
    with plate_of(x):
        pyro.sample("x", dist.Normal(x[0].clone(), 1.0).expand([len(x), 10]).to_event(1), obs=x)


def zeros_alone(x):
    """Reads only which are 0."""
    with plate_of(x):
        pyro.sample("x", dist.Bernoulli(0.1 + 0.8 * (x == 0)).to_event(1), obs=x)


def truncated(x):
    """A mask that depends on the values."""
    with plate_of(x), poutine.mask(mask=(x.sum(-1) > 0)):
        pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), 1.0).to_event(1), obs=x)


def more_sites(x):
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), 1.0).to_event(1), obs=x)
        if x.mean() > 0.5:
            pyro.sample("z", dist.Normal(0.0, 1.0))


READERS = [longest_document, own_length, conditional_prior, batch_scale, first_row, zeros_alone, truncated, more_sites]


@pytest.mark.parametrize("model", READERS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("x", [torch.ones(40, 10), DOCUMENTS], ids=["ones", "documents"])
def test_no_model_that_reads_x_is_accepted(model, x):
    with pytest.raises(ProgramError, match=r"reads the data's values.*Pass what it reads as a context"):
        simulate(model, x)
    with pytest.raises(ProgramError, match="reads the data's values"):
        prior_predictive_check(model, x, num_draws=5)


def test_the_longest_document_is_a_fixed_point_of_what_is_drawn(monkeypatch):
    """The broken variant that looks at the draws alone accepts it."""
    monkeypatch.setattr(data_maps, "other_data", lambda *_: ())
    assert simulate(longest_document, DOCUMENTS).x.sum(-1).unique().tolist() == [400]


def test_a_length_that_is_a_context_is_none_of_the_datas_values():
    def model(x, length):
        with plate_of(x):
            pyro.sample("x", dist.Binomial(length.unsqueeze(-1).expand(-1, 10), 1.0).to_event(1), obs=x)

    drawn = simulate(model, DOCUMENTS, torch.arange(40.0))
    assert torch.equal(drawn.x, torch.arange(40.0).unsqueeze(-1).expand(40, 10))


def test_a_label_that_is_read_is_told_from_one_that_is_drawn():
    def model(x, y):
        with plate_of(x):
            pyro.sample("y", dist.Bernoulli(0.5), obs=y)
            pyro.sample("x", dist.Normal(10 * y, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"site 'x'.*of an observed label use what pyro.sample returns"):
        simulate(model, torch.zeros(9), torch.zeros(9))


# masks: what they leave out is not drawn


def test_masked_entries_stay_as_they_are_in_the_template():
    m = torch.rand(50, 10, generator=torch.Generator().manual_seed(0)) < 0.5

    def of_handler(x, m):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 10, dim=-1), poutine.mask(mask=m):
            pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), 1.0), obs=x)

    def of_distribution(x, m):
        with plate_of(x):
            pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), 1.0).mask(m).to_event(1), obs=x)

    def of_gaps(x, m):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 10, dim=-1), poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(torch.zeros(len(x), 10), 1.0), obs=x.nan_to_num())

    x = torch.full((50, 10), 7.0)
    for model in (of_handler, of_distribution):
        drawn = simulate(model, x, m).x
        assert (drawn[~m] == 7).all() and (drawn[m] != 7).all()
        assert torch.equal(simulate(model, torch.where(m, x, torch.nan), m).x.isnan(), ~m)
    assert simulate(of_gaps, torch.where(m, x, torch.nan), m).x.isfinite().all()  # gaps are values of the template


def test_masked_labels_of_obs_mask():
    """Pyro's obs_mask splits a site in two; the labels that are not observed stay, their draws are latent."""

    def model(x, y, known):
        with plate_of(x):
            label = pyro.sample("y", dist.Bernoulli(0.5), obs=y, obs_mask=known)
            pyro.sample("x", dist.Normal(10 * label, 1.0), obs=x)

    known = torch.arange(100) < 60
    drawn = simulate(model, torch.zeros(100), torch.full((100,), 3.0), known)
    assert (drawn.args[1][60:] == 3).all() and set(drawn.args[1][:60].tolist()) == {0, 1}
    label = torch.where(known, drawn.args[1], drawn.latents["y_unobserved"])
    assert ((drawn.x - 10 * label).abs() < 5).all()


# bad input


def with_torch_noise(x):
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.randn(len(x)), 1.0), obs=x)


def with_numpy_noise(x):
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.full((len(x),), np.random.randn()), 1.0), obs=x)


def with_python_noise(x):
    with plate_of(x):
        pyro.sample("z", dist.Normal(0.0, 1 + random.random()))
        pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)


def with_dropout(x):
    with plate_of(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(nn.functional.dropout(z, training=True), 1.0), obs=x)


def with_a_counter(x, calls=[]):  # noqa: B006
    calls.append(0)
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.full((len(x),), float(len(calls))), 1.0), obs=x)


def more_each_time(x, calls=[]):  # noqa: B006
    calls.append(0)
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)
        pyro.sample(f"z{len(calls)}", dist.Normal(0.0, 1.0))


NOISY = [with_torch_noise, with_numpy_noise, with_python_noise, with_dropout, with_a_counter, more_each_time]


@pytest.mark.parametrize("model", NOISY, ids=lambda model: model.__name__)
def test_noise_outside_of_sample_sites_is_called_that(model):
    with pytest.raises(
        ProgramError, match=r"site '\w+' of the model has another density when it runs again on the same values"
    ):
        simulate(model, torch.zeros(5))


def test_without_that_probe_torch_noise_passes(monkeypatch):
    """It is drawn on the same stream each time, so that no repetition shows it: the broken variant."""
    monkeypatch.setattr(data_maps, "refuse_hidden_randomness", lambda *_, **__: None)
    simulate(with_torch_noise, torch.zeros(5))
    with pytest.raises(ProgramError, match="reads the data's values"):  # which it does not
        simulate(with_numpy_noise, torch.zeros(5))


@pytest.mark.parametrize(
    "change",
    [lambda x: x.clamp_(0.1, 0.9), lambda x: x.sub_(x.mean() - 1), lambda x: x[0].fill_(5.0), lambda x: x.unsqueeze_(-1)],
    ids=["clamp", "centred", "one row", "shape"],
)  # fmt: skip
def test_models_that_change_x_are_refused_and_x_is_left(change):
    def model(x):
        rows = len(x)
        change(x)
        with pyro.plate("data", rows):
            pyro.sample("x", dist.Normal(torch.zeros(rows, 3), 1.0).to_event(1), obs=x.reshape(rows, 3))

    x = torch.zeros(4, 3)
    with pytest.raises(ProgramError, match=r"the model changes x in place .* x = x.clone\(\)"):
        simulate(model, x)
    assert torch.equal(x, torch.zeros(4, 3))


def invalid(make):
    def model(x):
        with plate_of(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", make(z), obs=x)

    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda z: dist.NegativeBinomial(z - 100, 0.5), "NegativeBinomial has total_count -"),
        (lambda z: dist.Poisson(z - 100), "Poisson has rate -"),
        (lambda z: dist.Normal(z, -torch.ones(len(z))), "Normal has scale -1"),
        (lambda z: dist.Bernoulli(1.5 + 0 * z), "Bernoulli has probs 1.5"),
        (lambda z: dist.Gamma(2.0, z - 100).mask(torch.tensor(True)), "Gamma has rate -"),
        (lambda z: dist.Normal(z * torch.nan, 1.0), "draws NaN"),
    ],
    ids=["total_count", "rate", "scale", "probs", "inside a mask", "nan"],
)
def test_invalid_parameters_are_named(make, words):
    with pytest.raises(ProgramError, match=rf"site 'x'.*{words}.*for rows \[0, 1, 2, 3\]"):
        simulate(invalid(make), torch.zeros(4))


def test_parameters_that_rounding_takes_to_an_edge_pass():
    """A softplus that has underflowed to 0, probabilities of many classes in half precision that do not quite sum to 1."""
    p = torch.rand(5, 5000, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))

    def model(x):
        with plate_of(x):
            pyro.sample("z", dist.Categorical(p))
            pyro.sample("d", dist.Dirichlet(torch.ones(len(x), 3)))
            pyro.sample("x", dist.Normal(torch.zeros(len(x)), torch.zeros(len(x))), obs=x)

    assert (simulate(model, torch.ones(5)).x == 0).all()


def test_a_plate_called_particles_is_a_plate():
    def model(x):
        with pyro.plate("particles", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)

    assert simulate(model, torch.zeros(5)).x.std() > 0


def test_one_invalid_row_is_named_and_a_masked_one_is_not():
    def model(x, scale, kept):
        with plate_of(x), poutine.mask(mask=kept):
            pyro.sample("x", dist.Normal(torch.zeros(len(x), 2), scale.unsqueeze(-1)).to_event(1), obs=x)

    scale, kept = torch.tensor([1.0, 1.0, -1.0, 1.0]), torch.tensor([True, True, False, True])
    with pytest.raises(ProgramError, match=r"Normal has scale -1 for rows \[2\]"):
        simulate(model, torch.zeros(4, 2), scale, kept | True)
    with torch.no_grad():
        assert simulate(model, torch.zeros(4, 2), scale.abs(), kept).x[2].tolist() == [0, 0]


def raises_later(x, calls=[]):  # noqa: B006
    calls.append(0)
    if len(calls) > 1:
        raise OSError("the table is gone")
    with plate_of(x):
        pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)


def conditioned(x):
    """A latent that is fixed from outside: what it was is no draw."""
    return poutine.condition(invalid(lambda z: dist.Normal(z, 1.0)), data={"z": torch.zeros(len(x))})(x)


def two_plates(x):
    with pyro.plate("a", len(x), dim=-2), pyro.plate("b", 3, dim=-1):
        pyro.sample("x", dist.Normal(torch.zeros(len(x), 3), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        (raises_later, torch.zeros(3), OSError, "the table is gone"),
        (conditioned, torch.zeros(3), ProgramError, "site 'z' observes none of the arguments"),
        (two_plates, torch.zeros(4, 3), ProgramError, "plates .'a', 'b'. each enclose every site"),
        (lambda x: None, torch.zeros(3), ProgramError, "no data plate"),
    ],
    ids=["raises later", "conditioned latent", "two data plates", "no sites"],
)
def test_bad_input(model, x, error, message):
    with pytest.raises(error, match=message):
        simulate(model, x)


def test_sites_that_are_observed_for_some_calls_alone_are_latent_in_the_others():
    def model(x, y=None):
        with plate_of(x):
            label = pyro.sample("y", dist.Bernoulli(0.5), obs=y)
            pyro.sample("x", dist.Normal(10 * label, 1.0), obs=x)

    assert set(simulate(model, torch.zeros(50)).latents) == {"y"}
    assert simulate(model, torch.zeros(50), torch.zeros(50)).latents == {}


def test_calibration_refuses():
    for wrong in ({"num_rows": 1}, {"num_draws": 0}, {"level": 1.0}, {"chunk_size": 0}):
        with pytest.raises(UsageError, match="num_rows of 2 or more"):
            calibrate(gaussian, guided(), ONE, **wrong)

    def lost(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(x > 1, torch.nan, x), 1.0))

    with pytest.raises(ProgramError, match="z is NaN for simulated rows"):
        calibrate(gaussian, lost, ONE, num_rows=50, num_draws=3)
    with pytest.raises(ProgramError, match="latent site 'z' is in the model but not in the guide"):
        calibrate(gaussian, lambda x: None, ONE)


def computing(x):
    """z is 2 e + 1, as ``pyro.deterministic`` in a plate says it: all dimensions of the value are its event."""
    with pyro.plate("data", len(x)):
        z = pyro.deterministic("z", 2 * pyro.sample("e", dist.Normal(0.0, 1.0)) + 1)
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def as_an_event(x):
    with pyro.plate("data", len(x)):
        e = pyro.sample("e", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(pyro.deterministic("z", 2 * e + 1), 0.5).to_event(1), obs=x)


@poutine.reparam(config={"z": LocScaleReparam(0.0)})
def decentered(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(1.0, 2.0)), 0.5), obs=x)


@pytest.mark.parametrize(
    ("model", "latent", "x"),
    [
        (computing, "e", torch.zeros(150)),
        (as_an_event, "e", torch.zeros(150, 2)),
        (decentered, "z_decentered", torch.zeros(150)),
    ],
    ids=["deterministic", "deterministic-event", "reparam"],
)
def test_what_the_model_computes_is_no_observation(model, latent, x):
    """150 rows: few rows are looked at first. x is drawn about 2 e + 1 to the bit of the noise that follows."""
    drawn = simulate(model, x)
    assert set(drawn.latents) == {latent}
    noise = drawn.x - (2 * drawn.latents[latent] + 1)
    assert drawn.x.shape == x.shape and abs(noise.std() - 0.5) < 4 * 0.5 / (2 * x.numel()) ** 0.5
