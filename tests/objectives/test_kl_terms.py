"""Beta and the added terms: exact arithmetic, exact gradients, and the stated biases."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import Normal, kl_divergence

from pyro_vae import (
    MLP,
    Beta,
    Bound,
    Conditional,
    adam,
    analytic_kl,
    capacity,
    dreg,
    elbo,
    fit,
    free_bits,
    iwae,
    mmd,
    posteriors,
    rws,
    total_correlation,
)
from pyro_vae.errors import OtherMaskError, ProgramError, UsageError
from tests.helpers.kl_terms import Rows, close, gaussian_rows
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64
MEAN_FIELD = analytic_kl(exact=True)


def two_units():
    """Unit 0 has 0.02 to 0.1 nats a row, unit 1 has 2 to 4."""
    return Rows([[0.1, 2.0], [-0.2, -2.5], [0.3, 1.9]], [[1.1, 0.5], [0.9, 0.6], [1.2, 0.4]])


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


def masked_units(rows, mask):
    """The pair of `rows` with units masked by their own distributions, and a likelihood that reads none."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", rows.prior().base_dist.expand(rows.loc.shape).mask(mask).to_event(1))
            pyro.sample("x", dist.Normal(0 * x, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(rows.loc, rows.scale).mask(mask).to_event(1))

    return model, guide


def test_free_bits_and_kl_of_masked_units():
    rows, mask = two_units(), torch.tensor([[True, False], [False, False], [True, True]])
    pair, kl = masked_units(rows, mask), torch.where(mask, rows.kl.detach(), 0.0)
    plain = Bound(estimator=MEAN_FIELD).per_row(*pair, rows.x)
    close(plain, dist.Normal(0.0, 1.0).log_prob(rows.x) - kl.sum(1))
    bits = Bound(estimator=MEAN_FIELD, terms=[free_bits(9.0)]).per_row(*pair, rows.x)
    close(bits.mean(), plain.mean() + kl.sum(1).mean() - 2 * 9.0)


def test_a_kl_that_is_masked_altogether_is_none():
    rows = two_units()
    found = Bound(estimator=analytic_kl()).per_row(*masked_units(rows, False), rows.x)
    close(found, dist.Normal(0.0, 1.0).log_prob(rows.x))


def test_a_kl_under_two_masks_is_taken_at_the_draws():
    """Pyro's closed form would be under both; the ELBO has log q under the one, and log p under the other."""
    rows, (one, other) = two_units(), (torch.tensor([True, False, True]), torch.tensor([True, True, False]))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", rows.prior().mask(one))
            pyro.sample("x", dist.Normal(0 * x, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(rows.loc, rows.scale).to_event(1).mask(other))

    torch.manual_seed(3)
    drawn = Bound(elbo).loss(model, guide, rows.x)
    torch.manual_seed(3)
    close(Bound(estimator=analytic_kl()).loss(model, guide, rows.x), drawn)
    with pytest.raises(OtherMaskError, match="'z' is masked in the model and not in the guide"):
        Bound(elbo).per_row(model, guide, rows.x)


@pytest.mark.parametrize("term", [mmd(1.0), total_correlation(2.0, dataset_size=10)], ids=["mmd", "total_correlation"])
@pytest.mark.parametrize("how", ["handler", "distribution"])
def test_terms_of_the_aggregate_posterior_refuse_masks(term, how):
    rows = two_units()
    mask = torch.tensor([True, False, True])
    handled = tuple(poutine.mask(program, mask=mask) for program in (rows.model, rows.guide))
    pair = handled if how == "handler" else masked_units(rows, mask[:, None].expand(3, 2))
    with pytest.raises(ProgramError, match="site 'z' is masked"):
        Bound(terms=[term]).loss(*pair, rows.x)


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
