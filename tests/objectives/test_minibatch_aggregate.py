"""The aggregate posterior from a minibatch: the decomposition of the KL, and MMD, with their stated biases."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyro_vae import MLP, VAE, Bound, Conditional, bernoulli, elbo, mmd, posteriors, total_correlation, vimco
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.objectives.minibatch_aggregate import SCALES, decompose_kl, minibatch_weights, squared_mmd
from tests.helpers.kl_terms import Rows, close, gaussian_rows
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64


# the decomposition


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("particles", [1, 4])
def test_stratified_on_the_whole_data_set_is_the_mixture(particles, vectorized):
    """log q(z_i) and log q(z_id), by torch's mixtures of the rows' posteriors."""
    rows = gaussian_rows()
    draw = rows.draw(particles, vectorize_particles=vectorized)
    found = decompose_kl(draw, 6, stratified=True)
    z = torch.cat([run.q["z"]["value"] for run in draw.runs])
    equal = Categorical(torch.ones(6, dtype=DOUBLE))
    log_qz = MixtureSameFamily(equal, Independent(Normal(rows.loc, rows.scale), 1)).log_prob(z)
    by_unit = Categorical(torch.ones(3, 6, dtype=DOUBLE))
    log_product = MixtureSameFamily(by_unit, Normal(rows.loc.T, rows.scale.T)).log_prob(z).sum(-1)
    log_qzx = Normal(rows.loc, rows.scale).log_prob(z).sum(-1)
    log_pz = Normal(0.0, torch.ones((), dtype=DOUBLE)).log_prob(z).sum(-1)
    close(found.mutual_information, (log_qzx - log_qz).mean(0))
    close(found.total_correlation, (log_qz - log_product).mean(0))
    close(found.dimension_wise_kl, (log_product - log_pz).mean(0))


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("size", [6, 100])
def test_the_parts_add_up_to_the_kl_at_the_draws(stratified, size):
    rows = gaussian_rows()
    draw = rows.draw(2)
    found = decompose_kl(draw, size, stratified)
    close(found.mutual_information + found.total_correlation + found.dimension_wise_kl, draw.terms.kl.mean(0))


def test_a_prior_that_does_not_factorise():
    """The parts still add up; the total correlation does not ask for the prior."""
    rows = gaussian_rows()
    standard = decompose_kl(rows.draw(2), 20)
    cov = torch.eye(3, dtype=DOUBLE) + 0.5
    rows.prior = lambda: dist.MultivariateNormal(torch.zeros(3, dtype=DOUBLE), cov)
    draw = rows.draw(2)
    found = decompose_kl(draw, 20)
    close(found.total_correlation, standard.total_correlation)
    close(found.mutual_information + found.total_correlation + found.dimension_wise_kl, draw.terms.kl.mean(0))


def test_the_stated_bias_of_minibatch_weights():
    """log q(z): exactly log N too small where all rows are alike, log B where they are far apart; for one unit, TC = 0."""
    n, b = 100, 6
    alike, apart = Rows([[0.0, 0.0]] * b, [[1.0, 1.0]] * b), Rows([[1e3 * i] for i in range(b)], [[1.0]] * b)
    found = decompose_kl(alike.draw(), n)  # I(x; z) = 0 and TC = 0
    close(found.mutual_information, torch.full((b,), math.log(n), dtype=DOUBLE))
    close(found.total_correlation, torch.full((b,), (2 - 1) * math.log(n), dtype=DOUBLE))
    found = decompose_kl(apart.draw(), n)  # I(x; z) = log N
    close(found.mutual_information, torch.full((b,), math.log(n) + math.log(b), dtype=DOUBLE))
    close(found.total_correlation, torch.zeros(b, dtype=DOUBLE))
    found = decompose_kl(alike.draw(), n, stratified=True)
    close(found.mutual_information, torch.zeros(b, dtype=DOUBLE))


def test_stratified_weights_are_unbiased_for_q():
    """Exactly: the mean over all batches of 3 of 5 rows that hold row 0 is the mixture of all 5 at its draw."""
    q = torch.rand(5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))  # q(z_0 | x_j)
    weights = minibatch_weights(3, 5, stratified=True)
    batches = [(0, *others) for others in itertools.combinations(range(1, 5), 2)]
    mean = torch.stack([(weights[0] * q[list(batch)]).sum() for batch in batches]).mean()
    close(mean, q.mean())


def test_independent_latents_have_no_total_correlation():
    """q(z) = N(0, I) by rows on a grid that factorises: exactly 0 in expectation; correlated ones have their own."""
    ends = torch.tensor([-1.5, 0.0, 1.5])
    grid = torch.cartesian_prod(ends, ends)
    independent = Rows(grid.tolist(), [[0.5, 0.5]] * 9)
    found = decompose_kl(independent.draw(2000), 9, stratified=True).total_correlation
    close(
        found, torch.zeros_like(found)
    )  # a product of mixtures on each axis is the mixture on the grid, at every draw
    diagonal = Rows([[e, e] for e in ends.tolist()], [[0.5, 0.5]] * 3)
    assert decompose_kl(diagonal.draw(2000), 3, stratified=True).total_correlation.mean() > 0.5


def test_total_correlation_enters_the_bound_with_its_sign():
    rows = gaussian_rows()
    plain = rows.per_row(Bound(elbo, 2))
    tc = decompose_kl(rows.draw(2), 50).total_correlation.detach()
    close(rows.per_row(Bound(elbo, 2, terms=[total_correlation(6.0, dataset_size=50)])), plain - 5 * tc)
    close(rows.per_row(Bound(elbo, 2, terms=[total_correlation(1.0, dataset_size=50)])), plain)


def test_what_the_decomposition_refuses():
    x = binary(7, dtype=DOUBLE, seed=1)
    rows = gaussian_rows()
    with pytest.raises(UsageError, match="dataset_size=3, but a batch has 6 rows"):
        rows.per_row(Bound(terms=[total_correlation(2.0, dataset_size=3)]))
    vae = small_vae(posterior=Conditional(MLP(6, 5, (8,)), posteriors.full_normal(2)), seed=0).double()
    with pytest.raises(ProgramError, match=r"site 'z'.*product of one-dimensional"):
        Bound(terms=[total_correlation(2.0, dataset_size=30)]).loss(vae.model, vae.guide, x)
    with pytest.raises(ProgramError, match="one latent site"):
        Bound(terms=[total_correlation(2.0, dataset_size=30)]).loss(*chain(), torch.zeros(7))


# MMD


def expected_mmd(loc, scale, d):
    """MMD² of N(loc 1, scale² I) and N(0, I), where u − v ~ N(m, t I) gives
    E exp(−|u − v|² / 2s) = (s / (s + t))^(d/2) exp(−|m|² / 2(s + t)) under each kernel.
    """

    def kernel(between, spread):
        each = [d * s for s in SCALES]
        return sum((s / (s + spread)) ** (d / 2) * math.exp(-between / (2 * (s + spread))) for s in each) / len(each)

    return kernel(0, 2 * scale**2) + kernel(0, 2.0) - 2 * kernel(d * loc**2, 1 + scale**2)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.3), (-1.0, 2.0)])
def test_mmd_is_unbiased_for_its_closed_form(loc, scale):
    torch.manual_seed(0)
    n, d, repeats = 16, 3, 3000
    found = squared_mmd(
        loc + scale * torch.randn(repeats, n, d, dtype=DOUBLE), torch.randn(repeats, n, d, dtype=DOUBLE)
    )
    se = found.std() / repeats**0.5
    assert abs(found.mean() - expected_mmd(loc, scale, d)) < 4 * se
    assert se < 0.003


def test_mmd_of_a_guide_and_its_gradient():
    """The term: −λ MMD² for every row alike; its mean is the closed form's, and its gradient pulls q(z) to the prior."""
    rows = Rows([[0.7, 0.7, 0.7]] * 16, [[0.5, 0.5, 0.5]] * 16)
    term = mmd(10.0)
    value = torch.stack([term(rows.draw(60, seed=seed)) for seed in range(20)])
    assert (value == value[:, :1]).all() and value.shape == (20, 16)
    se = value[:, 0].std().item() / 20**0.5
    assert abs(value[:, 0].mean().item() + 10 * expected_mmd_of(0.7, 0.5)) < 4 * se
    loc, scale = torch.autograd.grad(term(rows.draw(60)).sum(), (rows.loc, rows.scale))
    assert (loc.sum(0) < 0).all() and (scale.sum(0) > 0).all()  # ascent: means to 0, scales up to 1


def expected_mmd_of(loc, scale):
    return expected_mmd(loc, scale, 3)


def test_mmd_draws_a_learned_prior_with_its_path_and_a_hierarchy_from_its_top():
    model, guide = chain()
    values = []
    for seed in range(20):
        torch.manual_seed(seed)
        values.append(mmd(1.0)(Bound().draw(model, guide, (torch.zeros(100),), {}))[0])
    mean, se = torch.stack(values).mean(), torch.stack(values).std() / 20**0.5
    assert mean.abs() < 4 * se < 0.01  # the guide is the prior
    loc = torch.zeros(2, requires_grad=True)
    vae = VAE(
        lambda: dist.Normal(loc, 1.0).to_event(1),
        lambda z: dist.Normal(z.sum(-1), 1.0),
        lambda x: dist.Normal(torch.ones(len(x), 2), 1.0).to_event(1),
    )
    (gradient,) = torch.autograd.grad(
        mmd(1.0)(Bound(elbo, 50).draw(vae.model, vae.guide, (torch.zeros(40),), {})).sum(), loc
    )
    assert (gradient > 0).all()  # the prior moves towards q


def chain():
    """z1 -> z2 -> x with z2 | z1 far from z2's own marginal; the guide draws from the prior."""

    def latents(n):
        z1 = pyro.sample("z1", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        return pyro.sample("z2", dist.Normal(3 * z1, 0.1).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(latents(len(x)).squeeze(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            latents(len(x))

    return model, guide


def test_what_mmd_refuses():
    x = binary(7, dtype=DOUBLE, seed=1)
    with pytest.raises(UsageError, match="at least 2"):
        Rows([[0.0]], [[1.0]]).per_row(Bound(terms=[mmd(1.0)]))
    vae = VAE(
        lambda: dist.OneHotCategorical(torch.ones(2, dtype=DOUBLE)),
        Conditional(MLP(2, 6).to(DOUBLE), bernoulli),
        Conditional(MLP(6, 2).to(DOUBLE), posteriors.one_hot_categorical),
    )
    with pytest.raises(ProgramError, match="site 'z' has no rsample: mmd"):
        Bound(elbo, 2, estimator=vimco, terms=[mmd(1.0)]).loss(vae.model, vae.guide, x)
