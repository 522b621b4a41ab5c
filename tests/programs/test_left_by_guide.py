"""A model that computes with what the guide left behind has no p(x, z) of its own, and is refused by site."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import ais, gaps, log_likelihood
from pyro_vae.errors import ProgramError
from pyro_vae.programs import problem

X = torch.tensor([0.0, 1.0, -2.0, 4.0])


class LeavesSomething(nn.Module):
    """x ~ N(z + h, 1), h of the encoder, as it lies in an attribute after the guide has run; z ~ N(0, 1)."""

    def __init__(self, features):
        super().__init__()
        self.features, self.kept = features, {"h": torch.zeros(())}

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.kept["h"], 1.0), obs=x)

    def guide(self, x):
        self.kept["h"] = self.features(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))


def pair_of(thing):
    return thing.model, thing.guide


LEFT = {
    "each row's": lambda x: x / 2,
    "mean of all rows": lambda x: x.mean(),
    "the first row's": lambda x: x[0] / 2,
}
ASKED = {
    "ais": lambda pair, x: ais(pair.model, pair.guide, x, num_temperatures=2, num_chains=2, verbose=False),
    "log_likelihood": lambda pair, x: log_likelihood(pair.model, pair.guide, x, num_samples=2, verbose=False),
    "gaps": lambda pair, x: gaps(pair.model, pair.guide, x, steps=1, num_samples=2, verbose=False),
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("asked", ASKED)
def test_it_is_refused_by_site(left, asked):
    """Annealing took h of the first row for all of them, off by 3 nats in the last."""
    with pytest.raises(ProgramError, match=r"site 'x' of the model has another density .* what the guide left behind"):
        ASKED[asked](LeavesSomething(LEFT[left]), X)


def test_one_row_and_two_show_it_too():
    for rows in (1, 2):
        with pytest.raises(ProgramError, match="what the guide left behind"):
            log_likelihood(*pair_of(LeavesSomething(lambda x: x.mean())), X[:rows], num_samples=2, verbose=False)


def test_what_is_left_and_not_read_or_always_the_same_is_no_matter():
    pair = LeavesSomething(lambda x: torch.ones(()))
    found = log_likelihood(pair.model, pair.guide, X, num_samples=4000, verbose=False)
    assert ((found.log_px - dist.Normal(1.0, 2**0.5).log_prob(X)).abs() < 4 * found.mc_se).all()


def test_it_is_scored_where_nobody_looks(monkeypatch):
    monkeypatch.setattr(problem, "refuse_left_by_guide", lambda pair: None)
    pair = LeavesSomething(LEFT["each row's"])
    found = ais(pair.model, pair.guide, X, num_temperatures=5, num_chains=8, verbose=False)
    assert (found.log_px - dist.Normal(X / 2, 2**0.5).log_prob(X)).abs().max() > 1
