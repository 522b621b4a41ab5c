"""Both ends of the bracket against closed forms; rows that the model draws; what is approximate says so."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import ProgramError, ShapeError, UsageError
from pyro_vae.evidence.annealing import bracket as module
from pyro_vae.programs.simulate import simulate
from tests.helpers.annealing import bdmc, bracket, check_unbiased, check_upper, drawn, grouped, grouped_guide, narrow
from tests.helpers.conjugate import PROBLEMS, GammaPoisson, NormalGamma
from tests.helpers.exact import LinearGaussian
from tests.helpers.observed_parts import COV, MEAN, PARTS, SD, guide
from tests.helpers.small import small_vae


@pytest.mark.parametrize("problem", PROBLEMS)
def test_reverse_mean_weight_is_one_over_p(problem):
    p = problem()
    result = narrow(p, 500)
    assert result.strict
    check_upper(p, result)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_both_ends_enclose_log_p_of_x(problem):
    """lower − 4 SE ≤ exact ≤ upper + 4 SE in the mean, SEs over rows; and the gap is above −4 SE."""
    p = problem()
    result = bdmc(p.model, p.guide, drawn(p, 2), num_rows=200)
    exact = p.log_px(result.x)
    for below in (exact - result.lower, result.upper - exact, result.gap):
        assert below.mean() > -4 * below.std() / 200**0.5


def test_the_gap_closes_with_temperatures():
    p = GammaPoisson()
    wide, tight = (
        bdmc(p.model, p.guide, drawn(p, 2), num_rows=200, start="prior", num_samples=1, num_temperatures=t)
        for t in (1, 30)
    )
    gain = wide.gap - tight.gap
    assert gain.mean() > 4 * gain.std() / 200**0.5
    assert tight.gap.mean() < 0.1


@pytest.mark.parametrize("problem", PROBLEMS)
def test_with_the_exact_posterior_both_ends_are_log_p_of_x(problem):
    p = problem()
    for result in (
        bdmc(p.model, p.exact_guide, drawn(p, 9)),
        bracket(p.model, p.exact_guide, drawn(p, 9)),
    ):
        torch.testing.assert_close(result.lower, p.log_px(result.x), rtol=0, atol=1e-8)
        torch.testing.assert_close(result.upper, p.log_px(result.x), rtol=0, atol=1e-8)


def test_linear_gaussian_on_real_rows(device):
    lg = LinearGaussian(device=device)
    result = bracket(
        lg.model, lg.mean_field_guide, lg.x, num_temperatures=20, num_chains=16, step_size=None, num_samples=500
    )
    exact = lg.log_px(lg.x).cpu()
    for below in (exact - result.lower, result.upper - exact):
        assert below.mean() > -4 * below.std() / 40**0.5
        assert below.mean().abs() < 0.03
    assert not result.strict and "APPROXIMATE" in str(result) and result.summary()["upper_is"] == "approximate"


def test_a_strict_end_says_so():
    lg = LinearGaussian()
    result = bdmc(lg.model, lg.mean_field_guide, lg.x, num_rows=100)
    assert (
        len(result) == 100 and result.strict and "strict in expectation" in str(result) and "APPROX" not in str(result)
    )
    check_unbiased((lg.log_px(result.x) - result.upper).exp())


def test_inner_plates_are_drawn_and_reversed():
    result = bdmc(grouped, grouped_guide, torch.zeros(1, 3).double(), num_rows=11, chunk_size=16)
    exact = dist.Normal(0.0, 2**0.5).log_prob(result.x).sum(-1)
    torch.testing.assert_close(result.upper, exact, rtol=0, atol=1e-6)  # float32 scales
    assert result.x.std() > 0.5


def test_a_vae_goes_through():
    vae = small_vae(seed=0)
    result = bdmc(vae.model, vae.guide, torch.zeros(1, 6), num_rows=30)
    assert ((result.x == 0) | (result.x == 1)).all() and result.x.std() > 0
    assert result.gap.mean() > -4 * result.gap.std() / 30**0.5


# the lower end


def test_the_choice_for_a_row_does_not_look_at_the_row():
    a, b = torch.zeros(20), torch.zeros(20)
    assert module.by_annealing(a, b).all()
    b[3] = 5.0  # one lucky row decides nothing, least of all for itself
    assert module.by_annealing(a, b).all()
    b = torch.full((20,), 0.1) + 0.01 * torch.arange(20)
    assert not module.by_annealing(a, b).any() and module.by_annealing(b, a).all()
    b[7] = -9.0  # the 19 others see one bad row, and no clear lead; row 7 sees 19 good ones
    assert module.by_annealing(a, b).tolist() == [i != 7 for i in range(20)]
    assert module.by_annealing(a[:2], b[:2]).all()  # too few to tell


def test_the_choice_keeps_the_bound_where_the_maximum_breaks_it():
    """Two unbiased, noisy p̂ of equal quality: the leave-one-out choice stays unbiased, the rowwise maximum does not."""
    torch.manual_seed(0)
    a, b = (0.5 * torch.randn(2, 4000, 5).double()) - 0.125  # E[exp] = 1; 4000 repetitions of 5 rows
    chosen = torch.stack([torch.where(module.by_annealing(*pair), *pair) for pair in zip(a, b, strict=True)])
    assert (chosen != a).any()
    check_unbiased(chosen.exp().mean(1))
    with pytest.raises(AssertionError, match="the mean is"):
        check_unbiased(torch.maximum(a, b).exp().mean(1))


# rows that the model draws


def halves(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])
        pyro.sample("b", dist.Normal(z, 1.0), obs=x[:, 1])


def halves_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.mean(-1) * 2 / 3, torch.tensor(1 / 3).double().sqrt()))


def test_parts_of_x_take_latents_of_ones_own():
    """Drawn by bdmc or by the user: both ends are exact. Of a part that nothing observes nothing is drawn."""
    assert bdmc(halves, halves_guide, torch.zeros(5, 2).double()).gap.abs().max() < 1e-6
    with pytest.raises(ProgramError, match="entry 2 of each row at no site"):
        bdmc(halves, halves_guide, torch.zeros(5, 3).double())
    torch.manual_seed(0)
    z = torch.randn(5).double()
    result = bracket(halves, halves_guide, z[:, None] + torch.randn(5, 2).double(), latents={"z": z})
    assert result.strict and result.gap.abs().max() < 1e-6


def autoregressive(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        before = torch.nn.functional.pad(x[:, :-1], (1, 0))
        pyro.sample("x", dist.Normal(z[..., None] + before, 1.0).to_event(1), obs=x)


def test_a_model_that_reads_x_is_refused():
    with pytest.raises(ProgramError, match="reads the data"):
        bdmc(autoregressive, halves_guide, torch.zeros(4, 2).double())


def test_a_factor_is_refused():
    def scored(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand((len(x), 2)).to_event(1), obs=x)
            pyro.factor("penalty", -x.square().sum(-1))

    with pytest.raises(ProgramError, match="factor"):
        bdmc(scored, halves_guide, torch.zeros(3, 2).double())


def test_latents_of_ones_own():
    p = NormalGamma()
    own = simulate(p.model, drawn(p, 10))
    x, latents = own.x, own.latents
    result = bracket(p.model, p.exact_guide, x, latents=latents)
    assert result.strict and result.gap.abs().max() < 1e-8
    with pytest.raises(ProgramError, match="'mu'"):
        bracket(p.model, p.exact_guide, x, latents={"precision": latents["precision"]})
    with pytest.raises(ShapeError, match="10 rows, x has 4"):
        bracket(p.model, p.exact_guide, x[:4], latents=latents)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [(bracket, {"refresh": -1}, "refresh"), (bdmc, {"num_rows": 0}, "num_rows"), (bdmc, {"latents": {}}, "latents")],
)
def test_options_out_of_range(run, options, message):
    p = GammaPoisson()
    with pytest.raises(UsageError, match=message):
        run(p.model, p.guide, drawn(p, 2), **options)


@pytest.mark.parametrize("name", PARTS)
def test_rows_are_drawn_of_x_in_parts(name):
    """Exact posterior: no gap, and both ends are log N(x; 3 j, diag(s²) + 1)."""
    model, guide, shape = PARTS[name]
    result = bdmc(model, guide, torch.zeros(6, *shape), num_temperatures=5, num_chains=2, verbose=False)
    exact = torch.distributions.MultivariateNormal(MEAN, COV).log_prob(result.x.reshape(6, -1))
    torch.testing.assert_close(result.lower.float(), exact, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(result.upper.float(), exact, atol=1e-4, rtol=1e-5)
    assert result.strict and result.x.shape == (6, *shape) and (result.x != 0).all()


def test_rows_are_drawn_around_what_is_masked():
    """Masked entries stay, and log p(x) is that of the others: log N(x_kept; 3 j, C_kept)."""
    m = torch.tensor([[True, False, True, True], [False, True, False, False], [True, True, True, True]])

    def model(x, m):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z + MEAN, SD).mask(m).to_event(1), obs=x)

    result = bdmc(
        model, lambda x, m: guide(x.where(m, torch.nan)), torch.full((3, 4), 9.0), m,
        num_temperatures=5, num_chains=2, verbose=False,
    )  # fmt: skip
    assert (result.x[~m] == 9).all() and result.gap.abs().max() < 1e-5
    for x, kept, end in zip(result.x, m, result.lower, strict=True):
        exact = torch.distributions.MultivariateNormal(MEAN[kept], COV[kept][:, kept]).log_prob(x[kept])
        assert abs(end - exact) < 1e-4
