"""Data drawn from a model, and models that cannot be simulated."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.diagnostics.sbc import simulation_based_calibration as calibrate
from pyro_vae.errors import ProgramError, ShapeError, UsageError
from pyro_vae.programs.simulate import simulate
from tests.helpers.calibration import counts, gaussian, guided, half

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
