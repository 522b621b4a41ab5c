"""The ELBO taken apart, against quadrature in two dimensions, enumeration, and the identities that hold for any draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, latents, normal, posteriors
from pyro_vae.common.random import seeded
from pyro_vae.diagnostics import aggregate_posterior, elbo_decomposition
from pyro_vae.diagnostics.elbo_decomposition import decompose
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.problem import Problem

X = torch.tensor([[-1.5, -1.0], [0.2, 0.6], [1.0, 0.4], [1.6, 1.8], [-0.3, -0.9]]).double()
SCALE = torch.tensor([0.5, 0.8]).double()


def likelihood(z, x):
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def model(x):
    with pyro.plate("data", len(x)):
        likelihood(pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1)), x)


def guide(x):
    """The rows' means lie near a diagonal, so that the units of q(z) are correlated."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, SCALE).to_event(1))


GRID = torch.linspace(-7, 7, 281, dtype=torch.float64)


def by_quadrature(q, p):
    """MI, TC, dimension-wise KL, KL(q(z) || p(z)) from densities (rows, grid, grid) and (grid, grid), by the trapezoid rule."""
    h = GRID[1] - GRID[0]

    def integral(density, log):
        return (torch.where(density > 1e-300, density * log, 0.0)).sum((-2, -1)) * h**2

    qz = q.mean(0)
    one, two = qz.sum(1) * h, qz.sum(0) * h
    p_one, p_two = p.sum(1) * h, p.sum(0) * h
    log_product = one.log()[:, None] + two.log()[None, :]
    log_q, log_z = q.clamp_min(1e-300).log(), qz.clamp_min(1e-300).log()
    each = (one * (one / p_one).log()).sum() * h + (two * (two / p_two).log()).sum() * h
    return {
        "mutual_information": integral(q, log_q - log_z).mean().item(),
        "total_correlation": integral(qz, log_z - log_product).item(),
        "dimension_wise_kl": each.item(),
        "marginal_kl": integral(qz, log_z - p.log()).item(),
    }


def on_grid(fn):
    """exp log_prob at all points of the grid: (*batch, grid, grid)."""
    points = torch.stack(torch.meshgrid(GRID, GRID, indexing="ij"), -1)
    shape = (*points.shape[:2], *fn.batch_shape)
    values = points.reshape(*points.shape[:2], *[1] * len(fn.batch_shape), 2).expand(*shape, 2)
    return fn.log_prob(values).movedim((0, 1), (-2, -1)).exp()


STANDARD = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
TRUTH = by_quadrature(on_grid(dist.Normal(X, SCALE).to_event(1)), on_grid(STANDARD))


def agrees(found, truth, names=tuple(TRUTH)):
    for name in names:
        quantity = getattr(found, name)
        assert abs(quantity.value - truth[name]) < 4 * quantity.mc_se < 0.2, (name, quantity, truth[name])


@pytest.fixture(scope="module")
def found():
    return decompose(model, guide, X, num_samples=4000)


# against quadrature


def test_the_parts_are_those_of_quadrature(found):
    assert TRUTH["total_correlation"] > 0.1
    agrees(found, TRUTH)


def test_quadrature_agrees_with_itself_and_with_the_kl_in_closed_form():
    t, kl = TRUTH, 0.5 * (SCALE**2 + X**2 - 1 - 2 * SCALE.log()).sum(1).mean().item()
    assert t["marginal_kl"] == pytest.approx(t["total_correlation"] + t["dimension_wise_kl"], abs=1e-9)
    assert t["marginal_kl"] + t["mutual_information"] == pytest.approx(kl, abs=1e-6)


def test_the_parts_add_up_to_the_kl_at_the_draws_exactly(found):
    assert sum(part.value for part in found.parts().values()) == pytest.approx(found.kl.value, abs=1e-12)
    assert found.mutual_information.value + found.marginal_kl.value == pytest.approx(found.kl.value, abs=1e-12)
    assert found.per_unit.sum().item() == pytest.approx(found.dimension_wise_kl.value, abs=1e-12)
    assert abs(found.kl.value - found.sites["z"].kl.sum().item()) < 4 * found.kl.mc_se


def test_reconstruction_rate_distortion_and_active_units(found):
    expected = dist.Normal(X, 1.0).log_prob(X) - SCALE**2 / 2
    assert abs(found.reconstruction.value - expected.sum(1).mean().item()) < 4 * found.reconstruction.mc_se
    with seeded(0):
        drawn = Problem.on(model, guide, X).log_probs(4000)
    assert abs(found.elbo - drawn.log_w.mean().item()) < 6 * (found.reconstruction.mc_se + found.kl.mc_se)
    assert found.elbo == pytest.approx(-found.distortion - found.rate) and found.active() == 2
    assert found.active(threshold=1.4) == int((X.var(0) > 1.4).sum()) == 1
    assert "2 of 2 units active" in str(found) and "log 5 = 1.61" in str(found) and found.why_fewer_parts is None


def test_errors_are_those_of_repetition(found):
    """Over 24 seeds the values scatter as one run's Monte Carlo error says (± 15 % is a standard error of it); the data error
    is that of row means."""
    runs = [decompose(model, guide, X, num_samples=8, seed=seed) for seed in range(24)]
    for name in ("kl", "mutual_information", "total_correlation", "dimension_wise_kl", "reconstruction"):
        values = torch.tensor([getattr(r, name).value for r in runs])
        said = torch.tensor([getattr(r, name).mc_se for r in runs]).square().mean().sqrt()
        assert 0.6 < values.std() / said < 1.45, name
    exact = 0.5 * (SCALE**2 + X**2 - 1 - 2 * SCALE.log()).sum(1)
    assert found.kl.data_se == pytest.approx((exact.std() / 5**0.5).item(), rel=0.1)


# the ends of the scale


def test_identical_posteriors_carry_no_information():
    found = decompose(model, guide, X[:1].expand(30, 2), num_samples=3)
    assert abs(found.mutual_information.value) < 1e-12 and abs(found.total_correlation.value) < 1e-12
    assert found.mutual_information.mc_se < 1e-12 and found.active() == 0


def test_posteriors_far_apart_tell_the_row():
    x = 100.0 * torch.arange(6).double().unsqueeze(1).expand(6, 2)
    found = decompose(model, guide, x)
    assert found.mutual_information.value == pytest.approx(math.log(6), abs=1e-12)
    assert found.total_correlation.value == pytest.approx(math.log(6), abs=1e-9)  # one unit tells the other


def test_a_part_of_the_rows_is_not_enough(monkeypatch):
    """Broken on purpose: q(z) from the draws' neighbours alone, as a minibatch would have it."""
    whole = elbo_decomposition.posteriors
    monkeypatch.setattr(elbo_decomposition, "posteriors", lambda some, *rest: whole(some.rows(slice(3)), *rest))
    broken = decompose(model, guide, X, num_samples=4000)
    with pytest.raises(AssertionError):
        agrees(broken, TRUTH)


def test_blocks_change_nothing(monkeypatch):
    a = decompose(model, guide, X, num_samples=7)
    monkeypatch.setattr(elbo_decomposition, "ROWS", 2)
    monkeypatch.setattr(aggregate_posterior, "CELLS", 11)
    b = decompose(model, guide, X, num_samples=7)
    for name in TRUTH:
        assert getattr(a, name).value == pytest.approx(getattr(b, name).value, abs=1e-12)
    assert len(decompose(model, guide, X, num_samples=7, chunk_size=14).per_unit) == 2


# other posteriors and priors

TRIL = torch.tensor([[0.6, 0.0], [0.4, 0.5]]).double()


def full_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(x, scale_tril=TRIL))


def test_a_posterior_with_correlations_has_no_total_correlation_here():
    found = decompose(model, full_guide, X, num_samples=4000)
    truth = by_quadrature(on_grid(dist.MultivariateNormal(X, scale_tril=TRIL)), on_grid(STANDARD))
    agrees(found, truth, ("mutual_information", "marginal_kl"))
    assert found.total_correlation is found.dimension_wise_kl is found.per_unit is None
    assert (
        "q(z | x)" in found.why_fewer_parts
        and "MultivariateNormal" in found.why_fewer_parts
        and found.why_fewer_parts in str(found)
    )
    assert list(found.parts()) == ["mutual information", "marginal KL"]


def mixture_prior():
    parts = dist.Normal(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double(), 0.7).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), parts)


def test_a_prior_that_is_no_product_leaves_the_marginal_kl_whole():
    def mixed(x):
        with pyro.plate("data", len(x)):
            likelihood(pyro.sample("z", mixture_prior()), x)

    found = decompose(mixed, guide, X, num_samples=4000)
    truth = by_quadrature(on_grid(dist.Normal(X, SCALE).to_event(1)), on_grid(mixture_prior()))
    agrees(found, truth, ("mutual_information", "marginal_kl", "total_correlation"))
    assert (
        found.dimension_wise_kl is None
        and "p(z)" in found.why_fewer_parts
        and "MixtureSameFamily" in found.why_fewer_parts
    )


def chained_model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(0.5 * a, 1.0))
        likelihood(torch.stack(torch.broadcast_tensors(a, b), -1), x)


def chained_guide(x):
    """N(x, TRIL TRIL'), one coordinate after the other."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x[:, 0], TRIL[0, 0]))
        pyro.sample("b", dist.Normal(x[:, 1] + TRIL[1, 0] / TRIL[0, 0] * (a - x[:, 0]), TRIL[1, 1]))


def test_a_hierarchy_is_taken_whole():
    prior = torch.tensor([[1.0, 0.0], [0.5, 1.0]]).double()
    found = decompose(chained_model, chained_guide, X, num_samples=3000)
    truth = by_quadrature(
        on_grid(dist.MultivariateNormal(X, scale_tril=TRIL)),
        on_grid(dist.MultivariateNormal(torch.zeros(2).double(), scale_tril=prior)),
    )
    agrees(found, truth, ("mutual_information", "marginal_kl"))
    assert found.total_correlation is None and "'b' depends on draws of another" in found.why_fewer_parts


def test_two_sites_and_an_inner_plate_are_units_side_by_side(found):
    def two_model(x):
        with pyro.plate("data", len(x)):
            pair = [pyro.sample(n, dist.Normal(x.new_zeros(()), 1.0)) for n in "ab"]
            likelihood(torch.stack(torch.broadcast_tensors(*pair), -1), x)

    def two_guide(x):
        with pyro.plate("data", len(x)):
            for i, n in enumerate("ab"):
                pyro.sample(n, dist.Normal(x[:, i], SCALE[i]))

    def inner_model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def inner_guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", 2, dim=-1):
            pyro.sample("z", dist.Normal(x, SCALE))

    for pair in ((two_model, two_guide), (inner_model, inner_guide)):
        other = decompose(*pair, X, num_samples=2000)
        agrees(other, TRUTH)
        assert other.why_fewer_parts is None and len(other.per_unit) == 2


def test_discrete_latents_against_enumeration():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.5, 2.0]]).double()
    prior = torch.tensor([0.5, 0.3, 0.2]).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(prior))
            pyro.sample("x", dist.Normal(z.double(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits[x.long()]))

    found = decompose(model, guide, torch.arange(3).double(), num_samples=3000)
    q = logits.softmax(-1)
    qz = q.mean(0)
    information = (q * (q / qz).log()).sum(1).mean().item()
    assert abs(found.mutual_information.value - information) < 4 * found.mutual_information.mc_se
    marginal = (qz * (qz / prior).log()).sum().item()
    assert abs(found.dimension_wise_kl.value - marginal) < 4 * found.dimension_wise_kl.mc_se
    assert found.total_correlation.value == pytest.approx(0, abs=1e-12)


def test_a_flow_posterior():
    """Untrained on purpose: whatever it is, the identities hold and I is at most log N."""
    with seeded(0):
        flow = posteriors.FlowPosterior(MLP(2, 3), 2, "nsf", context_features=3).double()

    def flow_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow(x))

    found = decompose(model, flow_guide, X, num_samples=50)
    assert found.mutual_information.value + found.marginal_kl.value == pytest.approx(found.kl.value, abs=1e-12)
    assert -0.01 < found.mutual_information.value <= math.log(5) and found.why_fewer_parts.startswith("q(z | x)")
    few = latents(model, flow_guide, X, num_samples=50)
    assert abs(few.mutual_information - found.mutual_information.value) < 4 * (
        few.mutual_information_se + found.mutual_information.mc_se
    )


def test_positive_latents():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal((x + 1).log(), 0.3))

    x = torch.tensor([0.0, 3.0, 9.0]).double()
    found = decompose(model, guide, x, num_samples=4000)
    z = torch.linspace(1e-3, 60, 60_001, dtype=torch.float64)
    q = dist.LogNormal((x + 1).log(), 0.3).log_prob(z.unsqueeze(-1))
    log_q = q.logsumexp(-1) - math.log(3)
    h = z[1] - z[0]
    truth = {
        "mutual_information": (q.exp() * (q - log_q.unsqueeze(-1))).sum().item() * h / 3,
        "dimension_wise_kl": (log_q.exp() * (log_q - dist.Gamma(2.0, 1.0).log_prob(z))).sum().item() * h,
    }
    agrees(found, truth, tuple(truth))


# what is refused, and what is left alone


def test_a_prior_that_differs_between_rows_is_refused():
    def conditional(x, c):
        with pyro.plate("data", len(x)):
            likelihood(pyro.sample("z", dist.Normal(c, 1.0).to_event(1)), x)

    def blind(x, c):
        guide(x)

    with pytest.raises(ProgramError, match="not the same for every row"):
        decompose(conditional, blind, X, X)
    assert decompose(conditional, blind, X, torch.zeros_like(X)).why_fewer_parts is None


def test_masked_latents_are_refused():
    def masked(program):
        def wrapped(x):
            with pyro.poutine.mask(mask=x.reshape(len(x), -1)[:, 0] > 0):
                program(x)

        return wrapped

    with pytest.raises(ProgramError, match="'z' is masked"):
        decompose(masked(model), masked(guide), X)


@pytest.mark.parametrize("options", [{"num_samples": 1}, {"chunk_size": 0}])
def test_options_out_of_range(options):
    with pytest.raises(UsageError):
        decompose(model, guide, X, **options)


def test_leaves_parameters_modes_and_the_random_state_alone():
    with seeded(0):
        net = torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 4))
        vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(net, normal))
        x = torch.randint(0, 2, (40, 9)).float()
    vae.train()
    before, state = {k: v.clone() for k, v in vae.state_dict().items()}, torch.get_rng_state()
    a = decompose(vae.model, vae.guide, x)
    assert torch.equal(torch.get_rng_state(), state) and vae.training and net.training
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    b = decompose(vae.model, vae.guide, x)
    assert a.kl == b.kl and a.total_correlation == b.total_correlation
    assert decompose(vae.model, vae.guide, x, seed=1).kl != a.kl
    total = sum(part.value for part in a.parts().values())
    assert total == pytest.approx(a.kl.value, abs=1e-9) and 0 <= a.mutual_information.value <= math.log(40)


# rows that are sorted


def sorted_prior(gate):
    """z ~ N(4 c, 1) where the gate opens; exact posteriors."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(4 * gate(c), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 4 * gate(c)) / 2, 0.5**0.5))

    return model, guide


@pytest.mark.parametrize("order", ["sorted", "reversed", "one_row_in_the_middle"])
def test_a_prior_that_differs_in_rows_further_on_is_refused(order):
    c = torch.zeros(200, dtype=torch.float64)
    c[{"sorted": slice(100, None), "reversed": slice(100), "one_row_in_the_middle": slice(101, 102)}[order]] = 1
    with pytest.raises(ProgramError, match="not the same for every row"):
        decompose(*sorted_prior(lambda c: c), 4 * c, c)


def test_a_context_that_changes_no_prior_is_none():
    c = torch.arange(200, dtype=torch.float64)
    assert decompose(*sorted_prior(lambda c: 0 * c), 0.1 * c, c).why_fewer_parts is None


def two_levels(x, c):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def two_levels_guide(x, c):
    """b follows a where c is 1."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x / 2, 0.7))
        pyro.sample("b", dist.Normal(c * a, 1.0))


@pytest.mark.parametrize("which", [[199], [101], [0]], ids=["last", "middle", "first"])
def test_a_posterior_that_is_no_product_in_one_row_is_none(which):
    c = torch.zeros(200, dtype=torch.float64)
    c[which] = 1
    found = decompose(two_levels, two_levels_guide, torch.ones_like(c), c)
    assert found.total_correlation is None and "site 'b' depends on draws of another" in found.why_fewer_parts


def test_the_form_of_the_first_rows_is_not_that_of_all(monkeypatch):
    """Broken on purpose: the form as it was read before, off the first 64 rows."""
    monkeypatch.setattr(aggregate_posterior, "spread", lambda problem, count: problem.rows(slice(count)))
    monkeypatch.setattr(elbo_decomposition, "common_form", lambda forms: forms[0])
    with pytest.raises(AssertionError):
        test_a_posterior_that_is_no_product_in_one_row_is_none([199])
