"""Beta and the added terms: exact arithmetic, exact gradients, and the stated biases."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Conditional,
    adam,
    analytic_kl,
    bernoulli,
    capacity,
    constant,
    cyclical,
    dreg,
    elbo,
    fit,
    free_bits,
    iwae,
    mmd,
    posteriors,
    rws,
    total_correlation,
    vimco,
    warmup,
)
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.objectives.minibatch_aggregate import SCALES, decompose_kl, minibatch_weights, squared_mmd
from pyro_vae.programs.pair import owners
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64
MEAN_FIELD = analytic_kl(exact=True)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-10)


@pytest.fixture
def vae(device):
    return small_vae(device=device, seed=0).double()


@pytest.fixture
def x(device):
    return binary(7, device, DOUBLE, seed=1)


class Rows:
    """z_n ~ N(loc_n, diag(scale_n²)) for each row: parameters laid open; p(z) = N(0, I), x ~ N(Σ_d z_d, 1)."""

    def __init__(self, loc, scale):
        self.loc = torch.tensor(loc, dtype=DOUBLE).requires_grad_()
        self.scale = torch.tensor(scale, dtype=DOUBLE).requires_grad_()
        self.x = torch.linspace(-1, 1, len(loc), dtype=DOUBLE)

    def prior(self):
        zero = torch.zeros(self.loc.shape[-1], dtype=DOUBLE)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))

    @property
    def kl(self):
        """KL of each row and unit, (N, D), by hand."""
        return 0.5 * (self.scale**2 + self.loc**2 - 1) - self.scale.log()

    def per_row(self, objective, seed=3):
        torch.manual_seed(seed)
        return objective.per_row(self.model, self.guide, self.x)

    def draw(self, particles=1, bound=elbo, seed=3, **options):
        torch.manual_seed(seed)
        objective = Bound(bound, particles, **options)
        return objective.draw(self.model, self.guide, (self.x,), {})

    def gradients(self, objective, pair=None, seed=3):
        self.loc.grad = self.scale.grad = None
        torch.manual_seed(seed)
        loss = objective.loss_and_grads(*(pair or (self.model, self.guide)), self.x)
        return loss, self.loc.grad, self.scale.grad


def two_units():
    """Unit 0 has 0.02 to 0.1 nats a row, unit 1 has 2 to 4."""
    return Rows([[0.1, 2.0], [-0.2, -2.5], [0.3, 1.9]], [[1.1, 0.5], [0.9, 0.6], [1.2, 0.4]])


# Beta


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("objective", [Bound(elbo, 3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)])
def test_beta_weighs_the_kl_and_nothing_else(beta, objective, vae, x):
    """loss = −Σ_n (log p(x | z) − β (log q(z | x) − log p(z))), written down for the same noise."""
    model, guide = Beta(beta).pair(vae)
    torch.manual_seed(3)
    loss = objective.loss(model, guide, x)
    torch.manual_seed(3)
    q = vae.posterior(x)
    z = q.expand((3, 7)).rsample()
    kl = q.log_prob(z) - vae.prior().log_prob(z)
    close(torch.as_tensor(loss, dtype=DOUBLE), -(vae.likelihood(z).log_prob(x) - beta * kl).mean(0).sum().detach())


def test_beta_leaves_observed_and_other_sites_alone(vae, x):
    def model(x):
        vae.model(x)
        pyro.deterministic("d", torch.zeros(7))

    sites = poutine.trace(Beta(0.3)(model)).get_trace(x).nodes
    assert {name: site["scale"] for name, site in sites.items() if site["type"] == "sample"} == {
        "data": 1.0, "z": 0.3, "x": 1.0, "d": 1.0,
    }  # fmt: skip


def test_nothing_of_beta_is_left_on_and_two_are_independent(vae, x):
    objective = Bound(elbo)

    def loss(pair):
        torch.manual_seed(3)
        return objective.loss(*pair, x)

    plain, small, large = (vae.model, vae.guide), Beta(0.1), Beta(4.0)
    alone = loss(plain), loss(small.pair(vae)), loss(large.pair(vae))
    small.at(0.5)
    both = small.pair(large.pair(vae))  # nested, they multiply
    close(loss(both), loss(Beta(0.4).pair(vae)))
    assert (loss(plain), loss(small.pair(vae)), loss(large.pair(vae))) == alone
    close((alone[2] - alone[0]) / 3, (alone[0] - alone[1]) / 0.9)  # linear in β


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [(None, [2.0] * 8), (warmup(constant, 0.5), [0, 0.5, 1, 1.5, 2, 2, 2, 2]), (cyclical(2), [0, 1, 2, 2, 0, 1, 2, 2])],
)
def test_schedules_through_fit(schedule, wanted):
    """β before each of eight steps, and the loss of the first of them."""
    beta, seen = Beta(2.0, schedule), []

    def at(done):
        beta.at(done)
        seen.append(beta.value)

    fit(beta.pair(small_vae(seed=0)), torch.ones(16, 6), epochs=4, batch_size=8, on_step=at, verbose=False)
    assert seen == pytest.approx(wanted)


def test_the_modules_behind_beta_are_found_in_whatever_order_handlers_are(vae):
    """Their mode, dtype and device are what `fit` and evaluation go by."""
    model, guide = Beta(2.0).pair(vae)
    assert owners(model, guide) == owners(poutine.scale(model, 0.5), Beta().pair((model, guide))[1]) == [vae]
    seen = []
    vae.likelihood.register_forward_hook(lambda m, *_: seen.append(m.training))
    fit(
        (model, guide), binary(7, dtype=DOUBLE, seed=1).tolist(), epochs=1, verbose=False
    )  # a list takes the dtype of the parameters
    assert set(seen) == {True, False}


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_beta_is_not_negative(bad):
    with pytest.raises(UsageError, match="beta must be 0 or more"):
        Beta(bad)


# free bits


def test_free_bits_by_hand():
    """E[log p(x | z)] − Σ_u max(λ, mean_n KL_u) for a guide of known KLs; a whole site is one group."""
    rows = two_units()
    kl, plain = rows.kl.detach(), rows.per_row(Bound(estimator=MEAN_FIELD))
    assert kl.mean(0)[0] < 0.1 and kl.mean(0)[1] > 2
    for nats, per, counted in [
        (0.5, "unit", [0.5, kl[:, 1].mean()]),
        (0.0, "unit", [*kl.mean(0)]),
        (9.0, "unit", [9.0, 9.0]),
        (0.5, "site", [kl.sum(1).mean()]),
        (5.0, "site", [5.0]),
    ]:
        with_bits = rows.per_row(Bound(estimator=MEAN_FIELD, terms=[free_bits(nats, per)]))
        close(with_bits.mean(), plain.mean() + kl.sum(1).mean() - sum(counted))
        assert with_bits.mean() <= plain.mean() + 1e-12  # a looser bound


def test_the_threshold_is_of_the_batch_mean():
    """A unit above λ in one row and below in the others is one group: here it counts whole."""
    rows = Rows([[3.0], [0.0], [0.0]], [[1.0], [1.0], [1.0]])  # KLs 4.5, 0, 0: mean 1.5
    plain = rows.per_row(Bound(estimator=MEAN_FIELD))
    close(rows.per_row(Bound(estimator=MEAN_FIELD, terms=[free_bits(1.0)])), plain)
    above = rows.per_row(Bound(estimator=MEAN_FIELD, terms=[free_bits(2.0)]))
    close(above - plain, torch.tensor([4.5, 0, 0], dtype=DOUBLE) - 2.0)


def test_a_unit_below_lambda_has_no_gradient_of_its_kl():
    """The encoder then follows E[log p(x | z)] alone there; the other unit's gradient is as it was."""
    rows = two_units()
    _, loc, scale = rows.gradients(Bound(estimator=MEAN_FIELD))
    _, free_loc, free_scale = rows.gradients(Bound(estimator=MEAN_FIELD, terms=[free_bits(0.5)]))
    kl_loc, kl_scale = torch.autograd.grad(rows.kl.sum(), (rows.loc, rows.scale))
    close(free_loc[:, 0], (loc - kl_loc)[:, 0])
    close(free_scale[:, 0], (scale - kl_scale)[:, 0])
    close(free_loc[:, 1], loc[:, 1])
    close(free_scale[:, 1], scale[:, 1])


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
def test_beta_weighs_free_bits_as_the_kl(beta):
    """log p(x | z) − β Σ max(λ, KL), and no gradient of β KL below λ, whatever scale is around the pair."""
    rows = two_units()
    pair = Beta(beta).pair((rows.model, rows.guide))
    kl, objective = rows.kl.detach(), Bound(estimator=MEAN_FIELD, terms=[free_bits(0.5)])
    loss, loc, _ = rows.gradients(objective, pair)
    reconstruction, _, _ = rows.gradients(Bound(estimator=MEAN_FIELD), Beta(0.0).pair((rows.model, rows.guide)))
    recon_loc = rows.loc.grad.clone()
    _, loc, _ = rows.gradients(objective, pair)
    close(loss, reconstruction + 3 * beta * (0.5 + kl.mean(0)[1]))
    close(loc[:, 0], recon_loc[:, 0])
    tenth = tuple(poutine.scale(program, scale=0.1) for program in pair)
    close(rows.gradients(objective, tenth)[0], loss / 10)


def test_handlers_that_leave_no_one_beta_are_refused():
    rows = two_units()
    one_sided = poutine.scale(rows.model, scale=0.5), rows.guide
    with pytest.raises(ProgramError, match=r"site 'z'.*no one β"):
        Bound(terms=[free_bits(0.5)]).loss(*one_sided, rows.x)


def test_free_bits_under_a_pathwise_gradient_are_right_in_expectation():
    """The KL at the draws less its closed form: the mean over draws is that of the closed form, within 4 standard errors."""
    rows = two_units()
    objective = Bound(elbo, 4000, terms=[free_bits(0.5)])
    _, loc, _ = rows.gradients(objective)
    wanted = rows.gradients(Bound(elbo, 4000, estimator=MEAN_FIELD, terms=[free_bits(0.5)]))[1]
    # per draw, log q − log p has a gradient of z in loc (the score's part is a constant), and z ~ N(loc, scale²)
    se = (rows.scale / 4000**0.5).detach()
    assert ((loc - wanted).abs() < 4 * se).all() and (loc != wanted).any()


def test_a_posterior_that_does_not_factorise():
    x = binary(7, dtype=DOUBLE, seed=1)
    full = Conditional(MLP(6, 5, (8,)), posteriors.full_normal(2))
    vae = small_vae(posterior=full, seed=0).double()
    with pytest.raises(ProgramError, match=r"site 'z': .*no KL per unit.*per=\"site\""):
        Bound(terms=[free_bits(0.5)]).loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    value = Bound(estimator=analytic_kl(), terms=[free_bits(100.0, per="site")]).per_row(vae.model, vae.guide, x)
    torch.manual_seed(0)
    q = vae.posterior(x)
    z = q.expand((1, 7)).rsample()
    close(value, vae.likelihood(z).log_prob(x)[0].detach() - 100.0)  # Σ_n: all KL cancels


def test_free_bits_of_a_masked_row_are_none():
    rows, mask = two_units(), torch.tensor([True, False, True])
    pair = tuple(poutine.mask(program, mask=mask) for program in (rows.model, rows.guide))
    value = Bound(estimator=MEAN_FIELD, terms=[free_bits(9.0)]).loss(*pair, rows.x)
    torch.manual_seed(3)
    plain = Bound(estimator=MEAN_FIELD)
    kl, draws = rows.kl.detach(), []
    for objective in (plain, Bound(estimator=MEAN_FIELD, terms=[free_bits(9.0)])):
        torch.manual_seed(3)
        draws.append(-objective.loss(*pair, rows.x))
    close(draws[1] - draws[0], kl[mask].sum() - 2 * 3 * 9.0)
    assert value.isfinite()


# capacity


def test_capacity_by_hand():
    """log p(x | z) − γ |KL − C|, row by row."""
    rows = two_units()
    kl, plain = rows.kl.detach().sum(1), rows.per_row(Bound(estimator=MEAN_FIELD))
    value = rows.per_row(Bound(estimator=MEAN_FIELD, terms=[capacity(3.0, gamma=7.0)]))
    close(value, plain + kl - 7 * (kl - 3.0).abs())
    assert (kl > 3).any() and (kl < 3).any()
    with pytest.raises(UsageError, match="take one of the two"):
        Bound(terms=[capacity(3.0)]).loss(*Beta(2.0).pair((rows.model, rows.guide)), rows.x)


def test_the_schedule_of_capacity_through_fit():
    term, seen = capacity(8.0, gamma=2.0, schedule=lambda done: min(1.0, 2 * done)), []
    fit(
        small_vae(seed=0), torch.ones(16, 6), objective=Bound(terms=[term]), epochs=2, batch_size=8, verbose=False,
        on_step=lambda done: (term.at(done), seen.append(term.now)),
    )  # fmt: skip
    assert seen == [0.0, 4.0, 8.0, 8.0]


# the decomposition


def gaussian_rows(n=6, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(n, d, generator=g).tolist(), (0.3 + torch.rand(n, d, generator=g)).tolist())


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


# together


def test_terms_add_up_in_value_and_gradient():
    rows = gaussian_rows()
    terms = [free_bits(5.0), total_correlation(3.0, dataset_size=60), capacity(2.0)]
    for bound, estimator in [(elbo, MEAN_FIELD), (iwae, dreg)]:
        plain = rows.gradients(Bound(bound, 3, estimator=estimator))
        alone = [rows.gradients(Bound(bound, 3, estimator=estimator, terms=[t])) for t in terms]
        together = rows.gradients(Bound(bound, 3, estimator=estimator, terms=terms))
        for i in range(3):
            close(together[i] - plain[i], sum(a[i] - plain[i] for a in alone))
            assert all((a[i] != plain[i]).any() for a in alone)


def test_a_term_is_differentiated_through_the_plain_path_whatever_the_estimator():
    """DReG weighs the path of each particle in log w; a term, even of KLs at the draws and of a hierarchy, keeps its own."""

    def pair(shift):
        def model(x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.StudentT(5.0, torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1))
                z2 = pyro.sample("z2", dist.Normal(z1, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z2.squeeze(-1), 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(x.unsqueeze(-1) * shift, 1.0).to_event(1))
                pyro.sample("z2", dist.Normal(z1 + shift, 0.5).to_event(1))

        return model, guide

    x, gradients = torch.linspace(-1, 1, 5, dtype=DOUBLE), []
    for estimator in (dreg, None):
        shift = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        with_term = []
        for terms in ([], [capacity(1.0, gamma=2.0)]):
            shift.grad = None
            torch.manual_seed(0)
            options = {} if estimator is None else {"estimator": estimator}
            Bound(iwae, 6, terms=terms, **options).loss_and_grads(*pair(shift), x)
            with_term.append(shift.grad.clone())
        gradients.append(with_term[1] - with_term[0])
    close(*gradients)


def test_no_terms_without_a_path():
    with pytest.raises(UsageError, match="rws draws without a path"):
        Bound(elbo, 2, estimator=rws, terms=[free_bits(0.5)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: free_bits(-1.0), lambda: capacity(-1.0), lambda: capacity(1.0, gamma=-1.0), lambda: mmd(-1.0),
        lambda: total_correlation(-1.0, 10), lambda: total_correlation(2.0, 0), lambda: free_bits(math.nan),
    ],
)  # fmt: skip
def test_numbers_below_their_range(make):
    with pytest.raises(UsageError, match="or more, got"):
        make()


def test_free_bits_take_units_or_sites():
    with pytest.raises(UsageError, match="'unit' or per 'site', got 'row'"):
        free_bits(1.0, per="row")


@pytest.mark.parametrize("term", [free_bits(0.5), capacity(4.0), total_correlation(4.0, dataset_size=64), mmd(1.0)])
def test_each_trains_in_fit_and_the_true_elbo_is_logged(term):
    vae = small_vae(seed=0)
    x = torch.bernoulli(torch.rand(64, 1, generator=torch.Generator().manual_seed(0)).expand(64, 6))
    run = fit(vae, x, objective=Bound(terms=[term]), optimizer=adam(1e-2), epochs=6, batch_size=16, verbose=False)
    last = run.history[-1]
    assert last["loss"] < run.history[0]["loss"]
    assert last["elbo"] == pytest.approx(last["reconstruction"] - last["kl"], abs=1e-4)


def test_kl_by_hand_is_torchs():
    rows = two_units()
    close(rows.kl, kl_divergence(Normal(rows.loc, rows.scale), Normal(0.0, torch.ones((), dtype=DOUBLE))))
