"""What a first check stops before anything is trained, what it says, and what it leaves alone."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import nn
from torch.nn.functional import softplus

from pyro_vae import MLP, VAE, Conditional, StandardNormal, binarize, likelihoods, normal
from pyro_vae import fit as noisy_fit
from pyro_vae.errors import ProgramError, ShapeError, SupportError
from pyro_vae.programs.support import check_support
from pyro_vae.training.preflight import check_training
from tests.helpers.bits import same
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import numbers

fit = partial(noisy_fit, verbose=False)


def crooked(prior=None, width=2):
    """A pair of programs whose prior is not the posterior's."""
    net = nn.Linear(6, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior or dist.Normal(torch.zeros(width), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6)).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


def test_the_range_is_that_of_all_rows_whatever_the_chunks():
    vae, x = small_vae(), binary()
    x[3, 1], x[17, 2], x[33, 0] = 0.5, 7.0, -2.0
    with pytest.raises(
        SupportError, match=r"3 of 40 rows.*row 3 holds 0.5 in column 1 \(rows 3, 17, 33; values go from -2 to 7"
    ):
        check_support(vae.model, vae.guide, x, chunk_size=10)


def test_programs_at_odds_are_refused_before_training():
    with pytest.raises(ShapeError, match=r"site 'z': the prior draws values of shape \(1,\), the posterior \(2,\)"):
        fit(crooked(width=1), binary())
    pyro.clear_param_store()  # of the first pair's network, which has the name of the next
    simplex = dist.Dirichlet(torch.ones(2))
    with pytest.raises(SupportError, match="the prior lives on numbers from 0 that sum to 1"):
        fit(crooked(simplex), binary())


def test_ghost_training_is_refused():
    """A second pair under a fixed name of pyro.module: its own encoder would never move."""
    fit(crooked(), binary(), epochs=1)
    with pytest.raises(ProgramError, match="ghost training"):
        fit(crooked(), binary(), epochs=1)


def test_what_may_be_meant_is_said_and_trains(capsys):
    vae = small_vae()
    vae.spare = nn.Linear(1, 7, bias=False)
    noisy_fit(vae, binary(), epochs=1)
    note = "note: parameter 'spare.weight': it gets no gradient: the ELBO of this batch does not depend on it."
    assert capsys.readouterr().err.count(note) == 1
    vae.spare.requires_grad_(False)
    noisy_fit(vae, binary(), epochs=1)
    fit(small_vae(), binary(), epochs=1)
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(("top", "said"), [(255, True), (40, False)])
def test_pixels_under_poisson_are_asked_about(top, said, capsys):
    vae = VAE(
        StandardNormal(2), Conditional(MLP(2, 6, (8,)), likelihoods.poisson), Conditional(MLP(6, 4, (8,)), normal)
    )
    noisy_fit(vae, torch.randint(0, top + 1, (100, 6)).float().clamp_min(top - 3), epochs=1)
    assert ("are these pixels? Fix: scale pixels to [0, 1]" in capsys.readouterr().err) == said


def discrete():
    """A Bernoulli latent, by score function."""
    net = nn.Linear(6, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(*z.shape, 6)).to_event(1), obs=x)

    def guide(x):
        pyro.module(f"net{id(net)}", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=net(x).squeeze(-1)))

    return model, guide


@pytest.mark.parametrize(("objective", "said"), [(Trace_ELBO, False), (TraceGraph_ELBO, False), (RenyiELBO, True)])
def test_discrete_latents_train_and_only_what_leaves_them_out_says_so(objective, said, capsys):
    noisy_fit(discrete(), binary(), epochs=1, objective=objective(**({"num_particles": 2} if said else {})))
    assert ("has no pathwise gradient" in capsys.readouterr().err) == said


def test_a_plate_of_fixed_size_trains_in_full_batches():
    """check's 64 rows do not fit it, the batch does."""

    def model(x):
        with pyro.plate("data", 100):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6)).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", 100):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def trains(size):
        return check_training(model, guide, Trace_ELBO(), lambda n: (binary(100)[:n],), size)

    assert trains(100) == []
    with pytest.raises(ProgramError, match="size 100"):
        trains(50)


def test_the_first_check_leaves_the_training_as_it_was(monkeypatch):
    x, start = binary(100), small_vae()
    checked, unchecked = copy.deepcopy(start), copy.deepcopy(start)
    a = fit(checked, x, epochs=2, transform=binarize)
    monkeypatch.setattr("pyro_vae.training.before_training.check_training", lambda *_: [])
    b = fit(unchecked, x, epochs=2, transform=binarize)
    assert same(state_of(checked), state_of(unchecked)) and numbers(a) == numbers(b)


@pytest.mark.parametrize(
    ("likelihood", "spoil", "message"),
    [
        (likelihoods.beta, 0.0, r"\(0 < y < 1\): row 77 holds 0 in column 2 \(rows 77; values go from 0 to 0\.5\)"),
        (
            likelihoods.beta,
            1.0,
            r"row 77 holds 1 in column 2 \(rows 77; values go from 0\.5 to 1\)\. The density there is zero",
        ),
        (likelihoods.categorical(256), 256.0, r"row 77 holds 256 in column 2 \(rows 77; values go from 1 to 256\)"),
        (
            lambda h: dist.Dirichlet(softplus(h)),
            0.75,
            r"row 77 sums to 1\.625 \(rows 77; values go from 0\.125 to 0\.75\)",
        ),
    ],
)
def test_support_errors_give_row_and_range(likelihood, spoil, message):
    x = torch.full((100, 6), 1.0 if spoil > 200 else 0.5)
    if spoil == 0.75:
        x[:, :] = torch.tensor([0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
    x[77, 2] = spoil
    features = 6 * 256 if spoil > 200 else 6 if spoil == 0.75 else 12
    vae = VAE(StandardNormal(2), Conditional(MLP(2, features), likelihood), Conditional(MLP(6, 4), normal))
    with pytest.raises(SupportError, match=f"1 of 100 rows.*{message}"):
        fit(vae, x)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda logits: dist.Bernoulli(logits=logits - logits.mean(0)), ProgramError, "other rows are passed along"),
        (lambda logits: dist.Bernoulli(probs=logits + 2), ProgramError, "Bernoulli has probs .* wanted numbers 0 to 1"),
        (lambda logits: dist.Bernoulli(logits=logits + torch.randn(())), ProgramError, "has another density"),
    ],
    ids=["coupled", "invalid", "random"],
)
def test_what_the_probes_find_is_refused_before_training(wrong, error, message):
    vae = small_vae(likelihood=lambda features: wrong(features).to_event(1))
    before = state_of(vae)
    with pytest.raises(error, match=message):
        fit(vae, binary(), epochs=1)
    assert same(before, state_of(vae))


def mixture(x):
    """Two components, one summed over."""
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[c], 1.0), obs=x)


def test_a_latent_that_the_model_alone_sums_over_takes_an_objective_that_does():
    def checked(objective):
        return check_training(mixture, lambda x: None, objective, lambda n: (torch.randn(100)[:n],), 20)

    assert checked(TraceEnum_ELBO(max_plate_nesting=1)) == []
    for objective in (Trace_ELBO(), TraceGraph_ELBO()):
        with pytest.raises(ProgramError, match="✗ site 'c': it is marked for enumeration in the model"):
            checked(objective)


def test_what_has_no_weight_trains_and_is_told(capsys):
    vae = small_vae(posterior=lambda features: dist.Delta(features[..., :2], event_dim=1))
    noisy_fit(vae, binary(), epochs=1)
    assert "note: site 'z': the guide draws it from a Delta, a single point" in capsys.readouterr().err
