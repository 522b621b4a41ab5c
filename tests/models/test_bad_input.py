"""What parts refuse, and how: what came, what was wanted, in which program, site or row, and how to go on."""

import re

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    StandardNormal,
    binomial,
    fit,
    likelihoods,
    log_likelihood,
    log_weights,
    normal,
)
from pyro_vae.errors import ShapeError, SupportError, UsageError
from pyro_vae.likelihoods import categorical, columns, multinomial, poisson
from pyro_vae.posteriors import low_rank_normal

X = torch.full((6, 4), 0.25)


def vae(family=normal, features=8, prior=2, latents=2, encoder=normal, encoded=4):
    return VAE(
        StandardNormal(prior), Conditional(MLP(latents, features), family), Conditional(MLP(4, encoded), encoder)
    )


def dirichlet(h):
    return dist.Dirichlet(nn.functional.softplus(h) + 0.1)


@pytest.mark.parametrize("prior", [1, 3])
@pytest.mark.parametrize(
    "use", [lambda v: log_weights(v.model, v.guide, X), lambda v: log_likelihood(v.model, v.guide, X)]
)
def test_a_prior_of_another_width_is_refused_even_where_it_would_broadcast(use, prior):
    with pytest.raises(
        ShapeError, match=rf"site 'z': the prior draws values of shape \({prior},\), the posterior \(2,\)"
    ):
        use(vae(prior=prior))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"latents": 3}, r"the model, p\(z\) p\(x \| z\), on a row of shape \(4,\): MLP takes 3 features .* \(1, 2\)"),
        ({"features": 7}, r"the model, .*: normal takes 2 features an element, got 7"),
        ({"family": categorical(5)}, r"the model, .*: categorical\(5\) takes 5 features an element, got 8"),
        ({"encoder": low_rank_normal(2), "encoded": 7}, r"the guide, q\(z \| x\), .* takes 4 features .*, got 7"),
    ],
)
def test_a_part_fed_another_width_is_named_with_its_program(broken, said):
    with pytest.raises(ShapeError, match=said) as caught:
        fit(vae(**broken), X, epochs=1, verbose=False)
    assert "Trace Shapes" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "features", "row", "said"),
    [
        (dirichlet, 4, [0.5, 0.5, 0.5, 0.5], r"Dirichlet \(.* sum to 1, 0 excluded\): row 2 sums to 2 "),
        (dirichlet, 4, [-0.5, 0.5, 0.5, 0.5], "row 2 sums to 1, its least value is -0.5 "),
        (dirichlet, 4, [0.0, 0.5, 0.25, 0.25], r"row 2 holds 0 .*density there is zero or infinite: replace zeros"),
        (multinomial(1), 4, [1.0, 1.0, 0.0, 0.0], r"whole numbers that sum to 1\): row 2 sums to 2 "),
        (likelihoods.gamma, 8, [-1.0, 0.5, 0.25, 0.25], r"Gamma \(numbers above 0\): row 2 holds -1 in column 0 "),
        (poisson, 4, [1.0, 0.5, 1.0, 1.0], r"Poisson \(whole numbers from 0\): row 2 holds 0.5 in column 1 "),
        (categorical(256), 1024, [1.0, 256.0, 1.0, 1.0], r"holds 256 .* categorical's num_classes - 1"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v))[:20],
)
def test_rows_outside_a_support_come_with_words_and_a_way_out(family, features, row, said):
    x = torch.full((6, 4), 1.0) if family is not dirichlet else X.clone()
    if family.__name__.startswith("multinomial"):
        x = torch.eye(4)[:1].repeat(6, 1)
    x[2] = torch.tensor(row)
    with pytest.raises(SupportError, match=f"site 'x': 1 of 6 rows .*{said}") as caught:
        fit(vae(family, features), x, epochs=1, verbose=False)
    assert re.search(r"values go from .* to .*likelihoods.fitting\(x\) lists", str(caught.value))
    assert family.__name__ not in likelihoods.fitting(x) or family.__name__.startswith("categorical")


@pytest.mark.parametrize("total", [0, -1, 2.5, "a"])
def test_a_binomial_of_no_trials_is_refused(total):
    with pytest.raises(UsageError, match="total_count must be a whole number of at least 1, got"):
        binomial(total)


def test_other_sizes_that_make_no_part():
    with pytest.raises(UsageError, match="dim must be at least 1, got 0"):
        StandardNormal(0)
    with pytest.raises(
        UsageError, match=r"at least one block: \[\(family, features, width\), ...\]; got \[\(.*, 6\)\]"
    ):
        columns([(normal, 6)])
