"""Ordered classes: torch's and scipy's numbers where those have digits, log-probabilities where they have none; refusals."""

import itertools

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae import MLP, VAE, Conditional, StandardNormal, enumerate_latents, fit, log_likelihood, normal
from pyro_vae.data import table
from pyro_vae.distributions.ordinal import OrderedLogistic
from pyro_vae.errors import DataError, ShapeError
from pyro_vae.likelihoods import CumulativeLogit

CUT = torch.tensor([-1.5, -0.2, 0.4, 3.0], dtype=torch.float64)
Y = torch.arange(5.0, dtype=torch.float64)
SIZES = ["S", "M", "L", "XL"]


@pytest.mark.parametrize("loc", [-2.0, 0.1, 4.0])
def test_probabilities_are_pyros_and_scipys(loc):
    loc = torch.tensor(loc, dtype=torch.float64)
    found = OrderedLogistic(loc, CUT).log_prob(Y)
    edges = [-float("inf"), *CUT.tolist(), float("inf")]
    by_scipy = [stats.logistic.cdf(b, loc) - stats.logistic.cdf(a, loc) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(found.exp(), torch.tensor(by_scipy, dtype=torch.float64))
    torch.testing.assert_close(found, dist.OrderedLogistic(loc, CUT).log_prob(Y))
    torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_class_far_from_loc_keeps_its_digits_where_pyros_own_has_none():
    loc = torch.tensor(60.0, dtype=torch.float64, requires_grad=True)
    found = OrderedLogistic(loc, CUT).log_prob(torch.tensor(2.0))
    exact = -60 + torch.log(CUT[2].exp() - CUT[1].exp())  # s(a) is e^a far down
    torch.testing.assert_close(found, exact)
    (slope,) = torch.autograd.grad(found, loc)
    torch.testing.assert_close(slope, torch.tensor(-1.0, dtype=torch.float64))
    off = dist.OrderedLogistic(torch.tensor(60.0), CUT.float()).log_prob(torch.tensor(2.0)) - found
    assert abs(off) > 1, "Pyro's own would do"


def test_moments_are_those_of_the_probabilities():
    d = OrderedLogistic(torch.tensor([0.3, -1.0], dtype=torch.float64), CUT)
    p = d.log_prob(Y.unsqueeze(-1)).exp()
    mean = (Y.unsqueeze(-1) * p).sum(0)
    torch.testing.assert_close(d.mean, mean)
    torch.testing.assert_close(d.variance, (Y.unsqueeze(-1).square() * p).sum(0) - mean.square())


def test_cutpoints_out_of_order_and_other_widths_are_refused():
    with pytest.raises(ValueError, match="cutpoints"):
        OrderedLogistic(torch.tensor(0.0), CUT.flip(0), validate_args=True)
    with pytest.raises(ShapeError, match=r"CumulativeLogit\(4, dim=2\) takes 2 features, one an element"):
        CumulativeLogit(4, 2)(torch.zeros(5, 3))


def test_cutpoints_learn_the_shares_of_the_classes():
    """log p(x) at the optimum is minus the entropy of the shares, for the cutpoints alone can be any shares."""
    y = torch.tensor([0.0] * 5 + [1.0] * 20 + [2.0] * 10 + [3.0] * 15).unsqueeze(-1)
    family = CumulativeLogit(4, 1)
    optimizer = torch.optim.LBFGS(family.parameters(), line_search_fn="strong_wolfe", max_iter=60)

    def loss():
        optimizer.zero_grad()
        value = -family(torch.zeros(50, 1)).log_prob(y).mean()
        value.backward()
        return value

    optimizer.step(loss)
    shares = torch.tensor([0.1, 0.4, 0.2, 0.3])
    torch.testing.assert_close(-loss(), (shares * shares.log()).sum(), atol=1e-5, rtol=0)


def test_a_vae_of_one_ordered_column_is_fitted_and_scored():
    y = torch.arange(4.0).repeat(8).unsqueeze(-1)
    vae = VAE(StandardNormal(1), Conditional(MLP(1, 1, ()), CumulativeLogit(4, 1)), Conditional(MLP(1, 2, ()), normal))
    fit(vae, y, epochs=1, verbose=False)
    exact = log_likelihood(vae.model, vae.guide, y, method="exact").log_px
    assert exact[:4].exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_ordered_categories_get_it_and_new_ones_are_refused_by_name():
    sizes = pd.Categorical(SIZES * 12, SIZES, ordered=True)
    frame = pd.DataFrame({"size": sizes, "kind": ["a", "b", "c"] * 16, "price": range(2, 50)})
    found = table(frame, columns="auto")
    size, kind = found.columns[:2]
    assert size.family == "CumulativeLogit:num-classes=4" and "in order" in size.why
    assert kind.family == "categorical:num-classes=3" and found.x[:4, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"'size', row 1 .*'XXL' is a category that was never seen; it has S, M, L, XL"):
        table(pd.DataFrame({"size": ["S", "XXL"], "kind": ["a", "b"], "price": [1, 2]}), found.columns)


@pytest.mark.parametrize("own", [OrderedLogistic, dist.OrderedLogistic])
def test_ordered_classes_that_are_latent_are_summed_out(own):
    cut, loc, x = CUT.float(), torch.tensor(0.3), torch.tensor([0.0, 1.2, -3.0])

    def program(x, marked=False):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", own(loc.expand(len(x)), cut), infer={"enumerate": "parallel"} if marked else None)
            pyro.sample("x", dist.Normal(y.float(), 1.0), obs=x)

    p = OrderedLogistic(loc, cut).log_prob(torch.arange(5.0))
    truth = torch.logsumexp(p[:, None] + dist.Normal(torch.arange(5.0)[:, None], 1.0).log_prob(x), 0)
    found = enumerate_latents(program, None, x)
    torch.testing.assert_close(found.log_px.float(), truth)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    torch.testing.assert_close(-elbo.loss(lambda x: program(x, True), lambda x: None, x), truth.sum().item())


def test_the_list_of_classes_has_the_shape_that_is_asked_for():
    d = OrderedLogistic(torch.zeros(3, 2), CUT.float())
    assert d.enumerate_support().shape == (5, 3, 2) and d.enumerate_support(expand=False).shape == (5, 1, 1)
    assert d.enumerate_support()[:, 2, 1].tolist() == Y.tolist()
