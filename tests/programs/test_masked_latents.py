"""Masked latents that do mean something, and those that do not, for every function that scores a pair."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import ais, bracket, log_likelihood
from pyro_vae.errors import ProgramError
from pyro_vae.programs.masked_latents import check_masks
from pyro_vae.programs.masks import own_mask, present, same_mask
from pyro_vae.programs.problem import Problem

X = torch.linspace(-2, 2, 6)
HAS = torch.arange(6) % 2 > 0


def program(prior_mask, guide_mask, decode):
    def model(x, has):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=prior_mask(has > 0)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(decode(z, has > 0), 1.0), obs=x)

    def guide(x, has):
        with pyro.plate("data", len(x)), poutine.mask(mask=guide_mask(has > 0)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return model, guide


def same(has):
    return has


def everyone(has):
    return torch.ones_like(has)


def only_there(z, has):
    return torch.where(has, z, torch.zeros_like(z))


def always(z, has):
    return z


SCORERS = {
    "log_likelihood": lambda *pair: log_likelihood(*pair, X, HAS, num_samples=64, verbose=False),
    "ais": lambda *pair: ais(*pair, X, HAS, num_temperatures=5),
    "bracket": lambda *pair: bracket(*pair, X, HAS, num_temperatures=5),
}
scorers = pytest.mark.parametrize("score", SCORERS.values(), ids=SCORERS)


def test_a_masked_latent_that_nothing_reads_is_not_there():
    """q is exact where there is a z, so every draw says log N(x; 0, 2); log N(x; 0, 1) elsewhere."""
    found = log_likelihood(*program(same, same, only_there), X, HAS, num_samples=8, verbose=False)
    wanted = torch.where(HAS, dist.Normal(0.0, 2**0.5).log_prob(X), dist.Normal(0.0, 1.0).log_prob(X)).double()
    torch.testing.assert_close(found.log_px, wanted, rtol=0, atol=1e-5)


@scorers
def test_a_masked_latent_that_x_reads_is_refused(score):
    """The mean of p(x | z) over the guide's draws, −1.46 for x = −2, is no p(x) of the model."""
    with pytest.raises(
        ProgramError, match=r"site 'x' of the model reads the value of 'z' in rows \[0, 2, 4\].*torch.where"
    ):
        score(*program(same, same, always))


@scorers
@pytest.mark.parametrize("masks", [(same, everyone), (everyone, same)], ids=["model", "guide"])
def test_a_mask_of_one_program_is_refused(score, masks):
    if score is SCORERS["ais"] and masks[1] is same:  # from the prior: the guide plays no part
        score(*program(*masks, only_there))
        return
    with pytest.raises(ProgramError, match=r"site 'z' is masked in (the model|the guide|one of guide and model)"):
        score(*program(*masks, only_there))


def test_a_network_over_all_steps_that_reads_what_is_masked_is_refused():
    """A convolution over steps reads one step further than the row goes."""
    net = nn.Conv1d(1, 1, 3, padding=1).double().requires_grad_(False)

    def programs(decode):
        def latent(lengths, loc):
            has = torch.arange(4) < lengths[:, None]
            return has, pyro.sample("z", dist.Normal(loc, 1.0).mask(has).to_event(1))

        def model(x, lengths):
            with pyro.plate("data", len(x)):
                has, z = latent(lengths, torch.zeros_like(x))
                mean = net(decode(z, has).reshape(-1, 1, 4)).reshape(z.shape)
                pyro.sample("x", dist.Normal(mean, 1.0).mask(has).to_event(1), obs=x)

        def guide(x, lengths):
            with pyro.plate("data", len(x)):
                latent(lengths, x)

        return model, guide

    x, lengths = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([4, 3, 2, 4, 1])
    with pytest.raises(ProgramError, match=r"'x' of the model reads the value of 'z' in rows \[1, 2, 4\]"):
        Problem.of(*programs(always), x, lengths, seed=0)
    assert len(Problem.of(*programs(only_there), x, lengths, seed=0)) == 5


def test_later_rows_are_looked_at_too():
    """Of 600 rows, in two parts, the last one alone lacks its latent."""
    x, has = torch.zeros(600), torch.arange(600) < 599
    with pytest.raises(ProgramError, match=r"rows \[599\]"):
        Problem.of(*program(same, same, always), x, has, seed=0)


def test_masks_are_read_wherever_they_are():
    mask = torch.tensor([True, False])
    fn = dist.Normal(torch.zeros(2), 1.0)
    inner, outer = fn.mask(mask).to_event(1), fn.to_event(1).mask(torch.tensor(False))
    assert own_mask(fn) is True and own_mask(inner).tolist() == [True, False] and own_mask(outer).tolist() == [False]
    assert own_mask(fn.mask(mask).expand((3, 2)).to_event(1)).tolist() == 3 * [[True, False]]
    assert own_mask(fn.mask(False)) is False and own_mask(fn.mask(True)) is True
    site = {"name": "z", "fn": inner, "value": torch.zeros(2), "mask": None}
    assert present(site).tolist() == [True, False] and present(site | {"mask": False}).tolist() == [False, False]
    assert present(site | {"fn": fn.to_event(1), "mask": True}) is None
    assert same_mask(None, True) and not same_mask(None, False) and not same_mask(mask, None)
    assert same_mask(mask.expand(3, 2), mask) and not same_mask(mask, ~mask)
    with pytest.raises(ProgramError, match=r"'z' has values of shape .* wider"):
        present(site | {"mask": torch.zeros(4, 3) > 0})


def test_without_pyros_name_a_mask_is_read_off_the_density(monkeypatch):
    from pyro_vae.common import pyro_private

    mask = torch.tensor([True, False])
    monkeypatch.setattr(pyro_private, "getattr", lambda thing, key, *default: default[0], raising=False)
    assert pyro_private.mask_of(dist.Normal(torch.zeros(2), 1.0).mask(mask)).tolist() == [True, False]


def test_the_check_draws_on_a_stream_of_its_own():
    problem = Problem.of(*program(same, same, only_there), X, HAS, seed=0)
    state = torch.get_rng_state()
    check_masks(problem)
    assert torch.equal(torch.get_rng_state(), state)
