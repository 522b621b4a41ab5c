"""Programs that people really write: of no size, with names of ours, random where they should not be; right, or refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import (
    VAE,
    Conditional,
    StandardNormal,
    ais,
    check,
    defensive,
    fit,
    gaps,
    log_likelihood,
    log_weights,
    normal,
    simulate,
)
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.errors import ProgramError, ShapeError
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.programs.determinism import same_terms
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.sites import PARTICLES

X = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7])
EXACT = dist.Normal(0.0, math.sqrt(2.0)).log_prob(X)


def plain_plate(x):
    return pyro.plate("data", len(x))


class Pair:
    """z ~ N(0, 1), x ~ N(z, 1), and the exact posterior: every log weight is log p(x)."""

    def __init__(self, plate=plain_plate, guide_plate=None, per_row=True):
        self.plate, self.guide_plate, self.per_row = plate, guide_plate or plate, per_row

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)) if self.per_row else 0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.guide_plate(x):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


NUMBERS = {
    "log_weights": lambda m, g: log_weights(m, g, X, num_particles=3).mean(0),
    "log_likelihood": lambda m, g: log_likelihood(m, g, X, num_samples=3, verbose=False).log_px,
    "quadrature": lambda m, g: quadrature(m, g, X).log_px,
}


def scaled_to_nothing(pair):
    with without_validation():  # else Pyro refuses the handler itself
        return tuple(poutine.scale(program, torch.tensor(0.0)) for program in (pair.model, pair.guide))


class InMarkov(Pair):
    """The same sites inside `pyro.markov`."""

    def model(self, x):
        for _ in pyro.markov(range(1)):
            super().model(x)

    def guide(self, x):
        with pyro.markov():
            super().guide(x)


class Returning(Pair):
    """Programs that return what nobody asked for."""

    def model(self, x):
        super().model(x)
        return "x", None

    def guide(self, x):
        super().guide(x)
        return iter(())


class TwoPlates(Pair):
    """The data plate entered anew for each site."""

    def model(self, x):
        plate = self.plate(x)
        with plate:
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        with plate:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def unsized(x):
    return pyro.plate("data")


def pair_of(pair):
    return pair.model, pair.guide


RIGHT = {
    "a plate without a size": pair_of(Pair(unsized)),
    "a plate called particles": pair_of(Pair(lambda x: pyro.plate("particles", len(x)))),
    "a plate of another name": pair_of(Pair(lambda x: pyro.plate("rows", len(x)))),
    "a plate of a dim": pair_of(Pair(lambda x: pyro.plate("data", len(x), dim=-1))),
    "two plates": pair_of(TwoPlates()),
    "two plates without a size": pair_of(TwoPlates(unsized)),
    "markov": pair_of(InMarkov()),
    "scale of nothing": scaled_to_nothing(Pair()),
    "scale of nothing, without a size": scaled_to_nothing(Pair(unsized)),
    "returns": pair_of(Returning()),
}


NOISY = {
    "gaps": lambda m, g: gaps(m, g, X, num_samples=20, steps=1).log_px,
    "ais": lambda m, g: ais(m, g, X, num_temperatures=2, num_chains=1, leapfrog_steps=2).log_px,
}
UNSIZED = {  # of one program alone: right, and Pyro's own losses do not take it
    "in the model alone": pair_of(Pair(unsized, plain_plate)),
    "in the guide alone": pair_of(Pair(plain_plate, unsized)),
    "around a scalar prior": pair_of(Pair(unsized, plain_plate, per_row=False)),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("model", "guide"), (RIGHT | UNSIZED).values(), ids=RIGHT | UNSIZED)
def test_the_number_is_the_exact_one(model, guide, number):
    if number == "quadrature" and model == UNSIZED["around a scalar prior"][0]:  # draws of that prior are no row's
        with pytest.raises(ShapeError, match=r"no entry for each row: give the data plate its size"):
            quadrature(model, guide, X)
        return
    assert torch.allclose(NUMBERS[number](model, guide).float(), EXACT, atol=1e-5)


@pytest.mark.parametrize("number", NOISY.values(), ids=NOISY)
def test_the_number_is_that_of_the_plain_pair(number):
    right = number(*pair_of(Pair()))
    for model, guide in RIGHT.values():
        assert torch.allclose(number(model, guide), right, atol=1e-5)


@pytest.mark.parametrize(("model", "guide"), UNSIZED.values(), ids=UNSIZED)
def test_a_size_in_one_program_alone_is_found_before_training(model, guide):
    with pytest.raises(ProgramError, match=r"plates differ: 'data' (without a|of) size"):
        fit((model, guide), X, epochs=1, verbose=False)


@pytest.mark.parametrize(("model", "guide"), [v for k, v in RIGHT.items()], ids=RIGHT)
def test_check_finds_nothing(model, guide):
    assert check(model, guide, X).ok, str(check(model, guide, X))


@pytest.mark.parametrize("name", RIGHT)
def test_the_rest_runs_on_them(name):
    model, guide = RIGHT[name]
    assert simulate(model, X).x.shape == X.shape
    assert latents(model, guide, X, num_samples=2).kl_per_unit is not None


@pytest.mark.parametrize("name", RIGHT)
def test_the_logged_elbo_is_the_exact_one(name):
    model, guide = RIGHT[name]

    def with_a_parameter(x):
        pyro.param("unused", torch.zeros(1))
        return guide(x)

    record = fit((model, with_a_parameter), X, epochs=1, verbose=False).history[-1]
    assert record["train_elbo"] == pytest.approx(EXACT.mean().item(), abs=1e-5)


# a plate without a size lets one draw stand for all rows


def shared_guide(x):
    with pyro.plate("data"):
        pyro.sample("z", dist.Normal(0.0, 1.0))


SHARED = {
    "log_weights": lambda m: log_weights(m, shared_guide, X, num_particles=2),
    "simulate": lambda m: simulate(m, X),
    "log_likelihood": lambda m: log_likelihood(m, shared_guide, X, num_samples=2, verbose=False),
}


@pytest.mark.parametrize("use", SHARED.values(), ids=SHARED)
def test_one_draw_for_all_rows_is_refused(use):
    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.zeros(len(x)), 1.0), obs=x)

    with pytest.raises(
        ProgramError, match=r"site 'z' has one value .* for all 5 rows.*pyro\.plate\('data', len\(x\)\)"
    ):
        use(model)


def test_a_plate_made_twice_is_named():
    def model(x):
        with plain_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        with plain_plate(x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(
        ProgramError, match=r"Multiple sample sites named 'data'.*plate = pyro\.plate\('data', len\(x\)\)"
    ):
        log_weights(model, Pair().guide, X)


def test_plates_of_two_names_are_named():
    pair = Pair(plain_plate, lambda x: pyro.plate("rows", len(x)))
    with pytest.raises(ProgramError, match=r"lies in the plate 'rows', others in 'data'.*one plate of the same name"):
        log_weights(pair.model, pair.guide, X)


def test_an_inner_plate_called_particles_is_the_programs_own():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("particles", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("particles", 2, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.stack([X, X + 1], -1)
    right = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum(-1)
    assert torch.allclose(log_weights(model, guide, x, num_particles=3), right.expand(3, 5), atol=1e-5)
    assert torch.allclose(
        log_likelihood(model, guide, x, num_samples=3, verbose=False).log_px.float(), right, atol=1e-5
    )
    assert PARTICLES != "particles"


# observations that are not there


def test_rows_that_are_not_observed_are_named():
    pair = Pair()

    def of_none(x):
        with plain_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None)

    def of_some(x):
        with plain_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=x > 0)

    def row_by_row(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i] if i % 2 else None)

    for model, said in (
        (of_none, "latent site 'x' is in the model but not in the guide"),
        (of_some, "latent site 'x_unobserved' is in the model but not in the guide"),
        (row_by_row, "latent site 'x_0' is in the model but not in the guide"),
    ):
        for use in (
            lambda m: log_weights(m, pair.guide, X),
            lambda m: log_likelihood(m, pair.guide, X, verbose=False),
            lambda m: fit((m, pair.guide), X, epochs=1, verbose=False),
        ):
            with pytest.raises(ProgramError, match=said.replace("x_0", "[xz]_0")):
                use(model)


# random numbers that are no sites


class Noisy(nn.Module):
    """A linear layer with noise that eval mode does not turn off."""

    def __init__(self, inputs, outputs, noise):
        super().__init__()
        self.linear, self.noise = nn.Linear(inputs, outputs), noise

    def forward(self, h):
        return self.noise(self.linear(h))


NOISE = {
    "randn": lambda h: h + torch.randn(h.shape),
    "dropout": lambda h: nn.functional.dropout(h, 0.5, training=True),
    "mask": lambda h: h * torch.bernoulli(torch.full_like(h, 0.5)),
    "a layer of weights": lambda h: h + torch.randn(h.shape[-1]),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_a_decoder_of_random_numbers_has_no_density(noise):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    vae = VAE(StandardNormal(2), Conditional(Noisy(2, 6, noise), normal), Conditional(nn.Linear(3, 4), normal))
    for use in (
        lambda: log_likelihood(vae.model, vae.guide, x, num_samples=2, verbose=False),
        lambda: ais(vae.model, vae.guide, x, num_temperatures=2, num_chains=1),
        lambda: quadrature(vae.model, vae.guide, x),
        lambda: gaps(vae.model, vae.guide, x, num_samples=2, steps=1),
    ):
        with pytest.raises(ProgramError, match=r"site 'x' of the model has another density.*torch\.randn"):
            use()
    vae.likelihood.net.noise = lambda h: nn.functional.dropout(h, 0.5, training=vae.training)
    log_likelihood(vae.model, vae.guide, x, num_samples=2, verbose=False)


def test_a_random_guide_gives_right_weights_and_is_refused_where_its_density_is_asked_for():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    encoder = Noisy(3, 4, NOISE["randn"])
    vae = VAE(StandardNormal(2), Conditional(nn.Linear(2, 6), normal), Conditional(encoder, normal))
    log_likelihood(vae.model, vae.guide, x, num_samples=20, verbose=False)
    for use in (
        lambda: log_likelihood(vae.model, vae.guide, x, num_samples=20, proposal=defensive(0.5), verbose=False),
        lambda: ais(vae.model, vae.guide, x, start="guide", num_temperatures=2, num_chains=1),
    ):
        with pytest.raises(ProgramError, match="site 'z' of the guide has another density"):
            use()


def test_terms_are_the_same_but_for_rounding():
    one = {"z": torch.tensor([1.0, math.nan]), "x": torch.tensor([-1000.0])}
    assert same_terms(one, {"z": torch.tensor([1.00001, math.nan]), "x": torch.tensor([-1000.01])})
    assert not same_terms(one, one | {"x": torch.tensor([-1001.0])})
    assert not same_terms(one, {"z": one["z"]})
    assert not same_terms(one, one | {"x": torch.tensor([-1000.0, -1000.0])})
