"""A plate that subsamples within a row: a loss is scaled for it, and no number is said of some of a row's units."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import Bound, ais, check, decompose, elbo, fit, gaps, log_likelihood, log_weights, quadrature
from pyro_vae.errors import ProgramError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
QUIET = {"verbose": False}


class Columns(torch.nn.Module):
    """Six columns a row, of which each run looks at `seen`: columns that a plate draws, in order, or step by step."""

    def __init__(self, seen=3, steps=False):
        super().__init__()
        self.seen, self.steps, self.loc = seen, steps, torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module(f"columns {id(self)}", self)
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            if self.steps:
                for i in pyro.plate("columns", 6, subsample_size=self.seen):
                    pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[:, [i]])
            else:
                with pyro.plate("columns", 6, subsample_size=self.seen, dim=-1) as i:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, i])

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.sum(-1, keepdim=True) / 7, 7**-0.5))


@pytest.mark.parametrize(
    "number",
    [
        lambda m: log_weights(m.model, m.guide, X),
        lambda m: log_likelihood(m.model, m.guide, X, num_samples=10, **QUIET),
        lambda m: quadrature(m.model, None, X),
        lambda m: ais(m.model, m.guide, X, num_temperatures=2, num_chains=2, **QUIET),
        lambda m: gaps(m.model, m.guide, X, steps=2, **QUIET),
        lambda m: decompose(m.model, m.guide, X, **QUIET),
    ],
    ids=["log_weights", "log_likelihood", "quadrature", "ais", "gaps", "decompose"],
)
def test_a_number_of_some_units_is_refused_by_site_and_plate(number):
    with pytest.raises(
        ProgramError, match=r"site 'x' lies in the plate 'columns', which subsamples 3 of 6 within a row"
    ):
        number(Columns())


def test_units_taken_step_by_step_are_refused():
    with pytest.raises(ProgramError, match=r"site 'x\d' lies in the plate 'columns', which subsamples 3 of 6"):
        log_weights(Columns(steps=True).model, Columns().guide, X)


def test_the_whole_plate_has_the_closed_form():
    covariance = torch.ones(6, 6) + torch.eye(6)
    exact = torch.distributions.MultivariateNormal(torch.zeros(6), covariance).log_prob(X)
    whole = Columns(seen=6)
    torch.testing.assert_close(log_weights(whole.model, whole.guide, X)[0], exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", [Bound(elbo, 2), Trace_ELBO()], ids=["ours", "pyro"])
def test_it_trains_by_the_scaled_loss_and_no_elbo_is_logged(objective):
    columns = Columns()
    result = fit(columns, X + 3, objective=objective, epochs=3, batch_size=2, **QUIET)
    assert columns.loc.item() > 0
    assert any("subsamples 3 of 6" in said for said in result.warnings)
    assert all(record["elbo"] is None for record in result.history)


def test_check_says_that_there_is_no_weight():
    (found,) = (f for f in check(Columns().model, Columns().guide, X).findings if f.kind == "weight")
    assert "subsamples 3 of 6" in found.what and found.level == "warning"
