"""A training that goes wrong: named by step and row, stopped, and what it leaves."""

import math
import re
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, log_likelihood, normal
from pyro_vae import fit as noisy_fit
from pyro_vae.errors import DivergedError, Interrupted, ProgramError
from pyro_vae.programs.parameters import register
from tests.helpers.bits import same
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import check_held

fit = partial(noisy_fit, verbose=False)
sgd = partial(torch.optim.SGD, lr=0.01)
still = partial(torch.optim.SGD, lr=0.0)


class Trap(VAE):
    """A VAE with BatchNorm and dropout that goes wrong, once armed, for the row that begins with 7."""

    def __init__(self, spoil):
        encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))
        super().__init__(StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), Conditional(encoder, normal))
        self.spoil, self.armed = spoil, False

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            d = self.likelihood(z).base_dist
            here = (x[:, :1] == 7) & torch.tensor(self.armed, device=x.device)
            pyro.sample("x", dist.Normal(self.spoil(d.loc, here, z), d.scale).to_event(1), obs=x)


def to_nan(loc, here, z):
    return loc.masked_fill(here, math.nan)


def to_infinity(loc, here, z):
    return loc.masked_fill(here, math.inf)


def steep(loc, here, z):
    """The same value, but the root of 0 has no finite slope."""
    return loc + (z[..., :1] * 0).abs().sqrt() if here.any() else loc


def trapped(spoil, device, arm_after=2, **options):
    """Trains until the trap snaps; the error, the model, and what it held after each epoch."""
    vae, x = Trap(spoil).to(device), torch.randn(40, 6).to(device)
    x[13, 0] = 7.0
    held = {0: state_of(vae)}
    vae.armed = arm_after == 0

    def on_epoch(record):
        held[record["epoch"]] = state_of(vae)
        vae.armed = record["epoch"] >= arm_after

    with pytest.raises(DivergedError) as caught:
        fit(vae, x, epochs=5, batch_size=10, on_epoch=on_epoch, **options)
    return caught.value, vae, held


def rows_named(error):
    return [int(row) for row in re.search(r"on rows ([\d, ]+)", str(error))[1].split(", ")]


@pytest.mark.parametrize(("spoil", "loss"), [(to_nan, "nan"), (to_infinity, "inf")])
def test_a_loss_that_is_not_finite_names_step_and_row(spoil, loss, device):
    error, vae, held = trapped(spoil, device)
    assert re.match(rf"step (9|10|11|12): the loss is {loss} on rows 13\. ", str(error))
    assert "the model holds the weights of epoch 2" in str(error) and error.exit_code == 5
    assert error.result.stopped == "diverged" and len(error.result.history) == 2
    assert same(state_of(vae), held[2]) and not same(state_of(vae), held[1])
    assert all(t.isfinite().all() for t in state_of(vae).values())  # and, warnings being errors here, Pyro stayed quiet


def test_a_gradient_that_is_not_finite_is_caught_with_the_loss_finite(device):
    error, vae, held = trapped(steep, device)
    assert re.match(r"step (9|10|11|12): a gradient is not finite on rows ", str(error))
    assert len(rows_named(error)) == 10 and 13 in rows_named(error)
    assert same(state_of(vae), held[2])


def test_a_divergence_in_the_first_step_leaves_the_start(device):
    """Buffers, too: the forward pass that diverged had moved the batch statistics."""
    error, vae, held = trapped(to_infinity, device, arm_after=0, optimizer=still)
    assert "the loss is inf on rows 13" in str(error)
    assert "the model holds its starting weights" in str(error) and same(state_of(vae), held[0])


def test_parameters_that_are_nan_in_the_first_step_are_a_divergence():
    """The first step runs under validation, which says more than a loss of NaN does."""
    vae, x = small_vae(), binary()
    with torch.no_grad():
        vae.likelihood.net[0].weight.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"step 1: .* not finite: Expected parameter logits"):
        fit(vae, x, epochs=1)


def test_what_is_wrong_with_a_program_is_no_divergence(device):
    """An invalid parameter is refused by site, before the first step."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, device=x.device), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(2, device=x.device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * scale, scale - 2.0).to_event(1))

    with pytest.raises(ProgramError, match="site 'z' of the guide: Normal has scale -1 for rows") as caught:
        fit((model, guide), torch.zeros(5, 1, device=device), epochs=1)
    assert not isinstance(caught.value, DivergedError)


def test_labels_as_context_stay_whole_numbers(device):
    seen = []

    def model(x, c):
        seen.append(c.dtype)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, device=x.device), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, c):
        loc = pyro.param("loc", torch.zeros(3, 1, device=x.device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc[c], 1.0).to_event(1))

    x, c = torch.randn(6, 1, device=device), np.arange(6) % 3
    fit((model, guide), x, c, epochs=1, verbose=False)
    log_likelihood(model, guide, x, c, num_samples=2)
    assert set(seen) == {torch.int64}


def test_weights_that_blow_up_in_the_last_step_of_an_epoch_are_caught(device):
    vae, x = small_vae(device=device), binary(device=device)
    start = state_of(vae)
    with pytest.raises(DivergedError, match="the ELBO after epoch 1 is") as caught:
        fit(vae, x, epochs=3, optimizer=partial(torch.optim.SGD, lr=1e38))
    assert same(state_of(vae), start) and caught.value.result.history == []


def test_validation_holds_the_best_weights_through_a_divergence(device):
    vae, x = small_vae(device=device), binary(60, device)
    kept = {}

    def on_epoch(record):
        kept[record["epoch"]] = state_of(vae)

    with pytest.raises(DivergedError) as caught:
        fit(
            vae,
            x[:40],
            validation=x[40:],
            epochs=10,
            on_epoch=on_epoch,
            optimizer=adam(0.01),
            schedule=lambda done: 1.0 if done < 0.5 else math.inf,
        )
    run = caught.value.result
    assert len(run.history) >= 4 and same(state_of(vae), kept[run.best_epoch])
    check_held(run, vae, x[40:])


@pytest.mark.parametrize("at", ["epoch", "step"])
def test_ctrl_c_holds_the_best_weights(at, device):
    vae, x, kept = small_vae(device=device), binary(60, device), {}
    vae.eval()

    def on_epoch(record):
        kept[record["epoch"]] = state_of(vae)
        if record["epoch"] == 3 and at == "epoch":
            raise KeyboardInterrupt

    def transform(x, generator):
        if 3 in kept:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(vae, x[:40], validation=x[40:], epochs=9, on_epoch=on_epoch, transform=transform)
    error = caught.value
    assert isinstance(error, Interrupted) and error.exit_code == 130 and "interrupted at step 3" in str(error)
    complete = 2 if at == "epoch" else 3  # an epoch whose report was interrupted is neither kept nor recorded
    assert len(error.result.history) == complete and error.result.stopped == "interrupted"
    assert same(state_of(vae), kept[error.result.best_epoch]) and not vae.training
    check_held(error.result, vae, x[40:])


def test_any_other_error_of_the_users_passes_through_and_leaves_order():
    vae = small_vae().eval()

    def on_epoch(record):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fit(vae, binary(), epochs=2, on_epoch=on_epoch)
    assert not vae.training
