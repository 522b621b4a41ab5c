"""Missing values that a pair does not take: refused by site, before a sampler stops without a name or never does."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import impute, impute_mean, log_weights
from pyro_vae.errors import ProgramError
from pyro_vae.models.missing import SkipMissing
from pyro_vae.programs import missing_values
from pyro_vae.programs.support import check_support

X = torch.tensor([[1.0, 0.0], [0.5, torch.nan], [0.0, 1.0]])
DRAWS = {
    "von-mises": (lambda h: dist.VonMises(0.0, h.exp()), lambda one: dist.VonMises(0.0 * one, 1.0)),
 "categorical": (
        lambda h: dist.Categorical(logits=torch.stack([h, -h], -1)),
        lambda one: dist.Categorical(torch.stack([one, one], -1)),
    ),
    "bernoulli": (lambda h: dist.Bernoulli(logits=h), lambda one: dist.Bernoulli(0.5 * one)),
    "poisson": (lambda h: dist.Poisson(h.exp()), lambda one: dist.Poisson(one)),
    "one-hot": (
        lambda h: dist.OneHotCategorical(logits=torch.stack([h, -h], -1)),
        lambda one: dist.OneHotCategorical(logits=torch.stack([one, one], -1)),
    ),
    "event": (
        lambda h: dist.Gamma(h.exp().unsqueeze(-1), torch.ones(2)).to_event(1),
        lambda one: dist.Gamma(one.unsqueeze(-1), torch.ones(2)).to_event(1),
    ),
    "mixture": (
        lambda h: dist.MixtureSameFamily(dist.Categorical(logits=torch.stack([h, -h], -1)), dist.Normal(torch.zeros(2), 1.0)),
        lambda one: dist.Normal(0 * one, 1.0),
    ),
    "transformed": (lambda h: dist.LogNormal(h, 1.0), lambda one: dist.LogNormal(0 * one, 1.0)),
    "masked": (lambda h: dist.Normal(h, 1.0).mask(torch.tensor(True)), lambda one: dist.Normal(0 * one, 1.0)),
}  # fmt: skip


def pair_of(draw, prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(torch.ones(len(x))))
            mean = (
                z.reshape(*z.shape[: z.dim() - len(prior(torch.ones(3)).event_shape)], -1)
                .float()
                .mean(-1, keepdim=True)
            )
            likelihood = SkipMissing(lambda mean: dist.Normal(mean.expand(*mean.shape[:-1], 2), 1.0).to_event(1))
            pyro.sample("x", likelihood(mean), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", draw(x.sum(-1)))

    return model, guide


@pytest.mark.parametrize("function", [impute, impute_mean], ids=["impute", "impute_mean"])
@pytest.mark.parametrize("kind", DRAWS)
def test_a_guide_that_turns_gaps_into_nan_is_refused_by_site(kind, function):
    with pytest.raises(ProgramError, match=r"site 'z': .* is given NaN for rows \[1\].*WithMask"):
        function(pair_of(*DRAWS[kind]), X, num_samples=5)


@pytest.mark.parametrize("kind", DRAWS)
def test_the_same_guide_runs_where_nothing_is_missing(kind):
    assert impute(pair_of(*DRAWS[kind]), X.nan_to_num(), num_samples=5).isfinite().all()


def test_gaps_that_reach_no_parameter_are_imputed():
    model, _ = pair_of(*DRAWS["von-mises"])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(0.0, torch.where(x.isnan(), 0.0, x).sum(-1).exp()))

    assert impute((model, guide), X, num_samples=5).isfinite().all()


def test_a_model_that_computes_with_gaps_is_refused_after_its_last_site():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            total = int(x.sum())
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + total, 1.0).expand([*z.shape, 2]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    wanted = r"after site 'z': the pair does not run on the missing values \(NaN\) of rows \[1\].*cannot convert.*SkipMissing"
    with pytest.raises(ProgramError, match=wanted) as caught:
        impute((model, guide), X, num_samples=5)
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_has_nothing_to_do_with_gaps_leaves_as_it_came():
    model, _ = pair_of(*DRAWS["von-mises"])

    def guide(x):
        raise FileNotFoundError("weights.pt")

    with pytest.raises(FileNotFoundError, match=r"weights.pt"):
        impute((model, guide), X, num_samples=5)


def test_rows_are_numbered_as_the_caller_numbers_them():
    with pytest.raises(ProgramError, match=r"rows \[70\]"):
        check_support(*pair_of(*DRAWS["bernoulli"]), X, numbers=[60, 70, 80])


def test_without_the_look_at_parameters_the_sampler_stops_without_a_site(monkeypatch):
    """The broken variant: torch's own words, about probabilities."""
    monkeypatch.setattr(missing_values, "of_nan", lambda fn: False)
    with pytest.raises(ProgramError, match=r"does not run on the missing values.*(nan|inf|Expected)"):
        impute(pair_of(*DRAWS["categorical"]), X, num_samples=5)


def test_complete_rows_cost_no_look(monkeypatch):
    monkeypatch.setattr(missing_values, "of_nan", lambda fn: pytest.fail("looked"))
    assert log_weights(*pair_of(*DRAWS["bernoulli"]), X.nan_to_num()).isfinite().all()
