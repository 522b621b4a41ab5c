"""What is logged of all members at once is what each logs alone, and no member's programs are taken on trust for long."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import Conditional, binarize, fit_ensemble, normal, priors
from pyro_vae.ensembles import lockstep, logged_together
from pyro_vae.errors import ProgramError
from pyro_vae.training import metrics
from tests.ensembles.programs import D, Z, vae

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = [0, 3]
train = partial(fit_ensemble, seeds=SEEDS, batch_size=10, engine="trace", verbose=False)


def rows(count=20, seed=1):
    return torch.bernoulli(torch.full((count, D), 0.4), generator=torch.Generator().manual_seed(seed))


class ByHand(nn.Module):
    """A pair with a latent in a plate within the rows, and a tensor that is no parameter."""

    def __init__(self):
        super().__init__()
        self.net, self.dec = nn.Linear(D, 2 * Z), nn.Linear(Z, D)
        self.evaluated = torch.tensor(0.5)  # a factor of the scale in evaluations

    def model(self, x):
        pyro.module(f"dec{id(self)}", self.dec)
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("units", Z, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = self.dec(z).unsqueeze(-2)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.unsqueeze(-2))

    def guide(self, x):
        pyro.module(f"net{id(self)}", self.net)
        loc, scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", Z, dim=-1):
            pyro.sample("z", dist.Normal(loc, scale.exp() * (1.0 if self.net.training else self.evaluated)))


class Labels(nn.Module):
    """One latent label."""

    def __init__(self):
        super().__init__()
        self.net, self.dec = nn.Linear(D, 3), nn.Parameter(torch.randn(3, D))

    def model(self, x):
        dec = pyro.param(f"dec{id(self)}", self.dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=dec[z]).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(f"net{id(self)}", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.net(x)))


def flow_prior():
    return vae(prior=priors.FlowPrior(Z, kind="maf", transforms=1, hidden=(4,)))


@pytest.fixture
def at_once(monkeypatch):
    """Members are logged at once on a CPU and for few epochs, too; yields each member's own log beside the one among all."""
    seen = []
    monkeypatch.setattr(lockstep, "is_worth_it", lambda *of: True)
    monkeypatch.setattr(lockstep, "apart", lambda *logs, f=lockstep.apart: seen.append(logs) or f(*logs))
    return seen


@pytest.mark.parametrize("kind", ["vae", "by hand"])
def test_the_log_of_all_is_that_of_each(kind, at_once, monkeypatch):
    """With rows to validate on, in parts of which one is shorter, and rows that are binarized by each member's stream."""
    for module in (logged_together, metrics):
        monkeypatch.setattr(module, "CHUNK", 20)
    options = {"validation": rows(33, 2), "transform": binarize} if kind == "vae" else {}
    train(vae if kind == "vae" else ByHand, rows(), epochs=1, **options)
    assert len(at_once) == 2
    for own, among_all in at_once:
        for mine, theirs in zip(own, among_all, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=2e-4) for name in mine)
    assert at_once[0][0][0]["elbo"] != pytest.approx(at_once[1][0][0]["elbo"], rel=1e-5)


def test_what_cannot_be_mapped_is_logged_one_by_one(at_once):
    """Labels, whose noise depends on their probabilities, and a flow, of which no log is one number for all draws."""
    for make, why in ((Labels, "depends on parameters"), (flow_prior, "draws of its own")):
        made = train(make, rows(), epochs=1)
        assert "2 members as one graph" in made.results[0].engine
        assert "members are logged one by one" in made.results[0].engine and why in made.results[0].engine
    assert not at_once


class Louder(nn.Module):
    """A layer that another number than a tensor moves, in evaluations alone: no step shows it."""

    by = 1.0

    def forward(self, x):
        return x if self.training else x * self.by


def test_programs_that_change_between_epochs_are_found_and_logged_as_they_are(at_once):
    """Member 1 changes after epoch 2: its turn is epoch 3, from which on all are logged one by one, with a warning."""
    made, networks = [], []

    def on_epoch(record):
        if record["epoch"] == 2 and record["seed"] == SEEDS[1]:
            networks[1].by = 3.0

    def make():
        networks.append(Louder())
        made.append(
            vae(posterior=Conditional(nn.Sequential(nn.Linear(D, 4), networks[-1], nn.Linear(4, 2 * Z)), normal))
        )
        return made[-1]

    found = train(make, rows(), epochs=4, on_epoch=on_epoch)
    for result in found.results:
        (warning,) = result.warnings
        assert "the log after epoch 3 of seed 3: its elbo is" in warning and "from epoch 2 on" in warning
    assert len(at_once) == 2 + 1 + 1  # all after epoch 1, one each after epochs 2 and 3, and none among all later
    assert found.results[1].history[2]["elbo"] == at_once[-1][0][0]["elbo"]


def test_numbers_that_are_to_be_looked_at_are_those_of_the_member_itself(at_once):
    """A tensor of one member's programs is read as it is after each epoch: invalid parameters are refused by name."""
    made = []

    def make():
        made.append(ByHand())
        return made[-1]

    def on_epoch(record):
        if record["seed"] == SEEDS[1]:
            made[1].evaluated.neg_()

    with pytest.raises(ProgramError, match="Normal has scale -"):
        train(make, rows(), epochs=3, on_epoch=on_epoch)
    assert len(at_once) == 2 + 1  # member 0 is well
