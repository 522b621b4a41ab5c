"""Every bound against the identities that tie it to the others, brute force, and expectations that are known exactly."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks

from pyro_vae import elbo, iwae, log_weights
from pyro_vae.errors import PyroVAEError, ShapeError, UsageError
from pyro_vae.objectives.bounds import ciwae, miwae, piwae, renyi, tvo
from pyro_vae.objectives.jackknife import jackknife
from tests.helpers.exact import LinearGaussian

DOUBLE = torch.float64
FLAT = [elbo, iwae, ciwae(0.0), ciwae(0.3), ciwae(1.0), tvo(), tvo(1), tvo((0, 0.1, 1))]  # (K, N)
FLAT += [renyi(alpha) for alpha in (0.0, 0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 2.0)]
GROUPED = [miwae, piwae]  # (M, K, N)
BOUNDS = FLAT + GROUPED
ESTIMATES = [jackknife(0), jackknife(1), jackknife(2)]
EVERY = [pytest.param(b, id=getattr(b, "__name__", repr(b))) for b in BOUNDS + ESTIMATES]
every = pytest.mark.parametrize("bound", EVERY)


@pytest.fixture
def log_w(device):
    """Log weights (K, N) = (12, 30): row n has scale 0.1 to 10 about -90 nats."""
    scale = torch.logspace(-1, 1, 30, dtype=DOUBLE)
    return (-90 + scale * torch.randn(12, 30, dtype=DOUBLE)).to(device)


def close(a, b, atol=1e-12, rtol=1e-13):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def shaped(bound, log_w):
    """(K, N) as the bound wants it: groups of 2, if it takes any."""
    return log_w.unflatten(0, (2, -1)) if bound in GROUPED else log_w


# identities


def test_one_weight_a_row_is_the_elbo(log_w):
    one = log_w[:1]
    for bound in FLAT:
        close(bound(one), elbo(one))
    close(miwae(one[None]), elbo(one))


def test_miwae_lies_between_iwae_of_one_group_and_the_elbo_of_groups_of_one(log_w):
    close(miwae(log_w[None]), iwae(log_w))
    close(miwae(log_w[:, None]), elbo(log_w))
    close(miwae(log_w.unflatten(0, (3, 4))), sum(iwae(group) for group in log_w.split(4)) / 3)


def test_a_miwae_over_the_wrong_axis_fails_these(log_w):
    """A published implementation normalises over M and averages over K: invisible where M = K."""

    def swapped(log_w):
        return miwae(log_w.transpose(0, 1))

    with pytest.raises(AssertionError):
        close(swapped(log_w[None]), iwae(log_w))
    with pytest.raises(AssertionError):
        close(swapped(log_w[:, None]), elbo(log_w))


def test_piwae_is_iwae_over_all_and_sends_its_guide_to_miwae(log_w):
    close(piwae(log_w.unflatten(0, (3, 4))), iwae(log_w))
    assert piwae.guide_bound is miwae
    assert [b for b in BOUNDS + ESTIMATES if hasattr(b, "guide_bound")] == [piwae]


def test_ciwae_mixes_the_elbo_and_iwae(log_w):
    close(ciwae(0)(log_w), iwae(log_w), 0, 0)
    close(ciwae(1)(log_w), elbo(log_w), 0, 0)
    close(ciwae(0.25)(log_w), 0.25 * elbo(log_w) + 0.75 * iwae(log_w))


def test_renyi_against_its_formula(log_w):
    """Weights about 1, so that powers can be taken as they stand."""
    log_w = (log_w + 90) / 5
    for alpha in (0.0, 0.3, 0.9, 1.2, 3.0):
        direct = (log_w.exp() ** (1 - alpha)).mean(0).log() / (1 - alpha)
        close(renyi(alpha)(log_w), direct, 1e-11)
    close(renyi(0)(log_w), iwae(log_w))
    close(renyi(1)(log_w), elbo(log_w), 0, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 1e-12, 1e-16, -1e-3, -1e-6, -1e-9, -1e-12])
def test_renyi_close_to_1_is_the_elbo_plus_half_the_variance_times_the_step(log_w, step, dtype):
    """1/a log mean e^(a d) = mean d + a var(d) / 2 + O(a² d³), with a = 1 - α: no cancellation, in float32 either."""
    alpha = 1 - step
    for k in range(2, 13):
        few = log_w[:k].to(dtype)
        value, mean, variance = renyi(alpha)(few), elbo(few), few.var(0, correction=0)
        rounding = 4 * torch.finfo(dtype).eps * few.abs().amax(0)
        third = (1 - alpha) ** 2 * (few - mean).abs().amax(0) ** 3
        assert ((value - mean - (1 - alpha) * variance / 2).abs() <= rounding + third).all()
        assert ((value - mean).abs() <= abs(step) * variance + rounding).all()


def test_the_textbook_renyi_fails_close_to_1(log_w):
    """log mean w^a / a, taken at once in float32, is rounded by 1e-7 / a."""
    a, log_w = 1e-6, log_w.float()
    value = ((a * log_w).logsumexp(0) - math.log(len(log_w))) / a
    assert ((value - elbo(log_w)).abs() > 1e-2).any()


def test_renyi_falls_as_alpha_rises(log_w):
    values = [renyi(alpha)(log_w) for alpha in (0, 0.1, 0.5, 0.9, 1 - 1e-6, 1, 1 + 1e-6, 1.5, 4)]
    for high, low in pairwise(values):
        assert (low <= high + 1e-12).all() and (low < high).any()
    close(renyi(1e6)(log_w), log_w.amin(0), 1e-4)


def test_tvo_of_one_partition_is_the_elbo_and_nested_ones_rise_to_iwae(log_w):
    close(tvo(1)(log_w), elbo(log_w), 0, 0)
    close(tvo((0, 1))(log_w), elbo(log_w), 0, 0)
    nested = [tvo([j / parts for j in range(parts + 1)])(log_w) for parts in (1, 2, 4, 8, 64, 4096)]
    for coarse, fine in pairwise(nested):
        assert (coarse < fine).all()
    assert (nested[-1] < iwae(log_w)).all()
    gap = (log_w.amax(0) - elbo(log_w)) / 4096  # of a left sum of a rising function: at most its rise times the width
    assert (nested[-1] >= iwae(log_w) - gap).all()


def test_tvo_against_its_sum(log_w):
    betas = (0, 0.1, 0.4, 1)
    sums = sum((b - a) * ((a * log_w).softmax(0) * log_w).sum(0) for a, b in pairwise(betas))
    close(tvo(betas)(log_w), sums)


def test_tvo_betas_are_log_spaced_from_the_smallest():
    close(torch.tensor(tvo(4, smallest=0.001).betas), torch.tensor([0, 0.001, 0.01, 0.1, 1]), 1e-7)
    assert tvo(2, smallest=0.3).betas == (0, 0.3, 1)
    assert tvo(1).betas == (0, 1)
    for partitions in range(1, 60):
        betas = tvo(partitions).betas
        assert tvo(betas).betas == betas and len(betas) == partitions + 1


def test_draw_by_draw_order(log_w):
    """No bound lies above IWAE of the same weights; the two that may lie below the ELBO are renyi's of alpha > 1."""
    for bound in BOUNDS:
        value = bound(shaped(bound, log_w))
        assert (value <= iwae(log_w) + 1e-12).all()
        if getattr(bound, "alpha", 0) <= 1:
            assert (value >= elbo(log_w) - 1e-12).all()


# the jackknife


def mean_over_subsets(log_w, left_out):
    k = len(log_w)
    return sum(iwae(log_w[list(s)]) for s in combinations(range(k), k - left_out)) / math.comb(k, left_out)


def test_jackknife_0_is_iwae_and_1_the_textbooks(log_w):
    k = len(log_w)
    close(jackknife(0)(log_w), iwae(log_w))
    close(jackknife(1)(log_w), k * iwae(log_w) - (k - 1) * mean_over_subsets(log_w, 1), 1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_jackknife_against_all_subsets(log_w, order):
    for k in (order + 1, order + 2, 9):
        few = log_w[:k]
        c = [(-1) ** j * (k - j) ** order / math.factorial(order - j) / math.factorial(j) for j in range(order + 1)]
        assert math.isclose(sum(c), 1)
        close(jackknife(order)(few), sum(cj * mean_over_subsets(few, j) for j, cj in enumerate(c)), 1e-8)


def test_jackknife_2_of_200_weights_in_little_memory_and_in_float32(device):
    """What autograd keeps stays below 200 MB for (K, N) = (200, 100); float32 agrees with float64 to 1e-4 nats."""
    log_w = (-90 + 2 * torch.randn(200, 100, dtype=DOUBLE)).to(device).requires_grad_()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        value = jackknife(2)(log_w)
    assert sum(t.untyped_storage().nbytes() for t in kept.values()) < 200e6
    (gradient,) = torch.autograd.grad(value.sum(), log_w)
    close(gradient.sum(0), torch.ones_like(value), 1e-8)  # raise every weight by c, and the value rises by c
    close(jackknife(2)(log_w.detach().float()).double(), value.detach(), 1e-4)


# expectations that are known exactly: z is one of two, so the K weights are one of K + 1 sets

P_ZX = torch.tensor([0.3, 0.02], dtype=DOUBLE)  # p(x, z) for z = 0, 1; log p(x) = log 0.32
Q = torch.tensor([0.6, 0.4], dtype=DOUBLE)


def expectation(bound, k, device):
    """E[bound] over K draws: a row for each number of draws with z = 1, with its binomial probability."""
    ones = torch.arange(k + 1)
    value = (torch.arange(k)[:, None] < ones).long()
    log_w = (P_ZX / Q).log()[value].to(device)
    binomial = torch.distributions.Binomial(k, Q[1]).log_prob(ones.double()).exp().to(device)
    return (binomial * bound(log_w)).sum().item()


def group_expectation(bound, k, device):
    """E[bound] over 2 groups of K draws, over all 4^K values."""
    value = torch.cartesian_prod(*[torch.arange(2)] * (2 * k)).T.unflatten(0, (2, k))
    log_w = (P_ZX / Q).log()[value].to(device)
    return (Q[value].prod(0).prod(0).to(device) * bound(log_w)).sum().item()


LOG_PX = P_ZX.sum().log().item()


@pytest.mark.parametrize("bound", [b for b in EVERY if b.values[0] in FLAT])
def test_the_expectation_of_each_bound_is_at_most_log_px(bound, device):
    for k in (1, 2, 3, 10, 40):
        assert expectation(bound, k, device) < LOG_PX - 1e-6


def test_and_so_for_bounds_of_groups(device):
    exact_miwae = [group_expectation(miwae, k, device) for k in (1, 2, 4)]
    exact_piwae = [group_expectation(piwae, k, device) for k in (1, 2, 4)]
    for i, k in enumerate((1, 2, 4)):
        assert math.isclose(exact_miwae[i], expectation(iwae, k, device), abs_tol=1e-12)
        assert math.isclose(exact_piwae[i], expectation(iwae, 2 * k, device), abs_tol=1e-12)
        assert exact_miwae[i] < exact_piwae[i] < LOG_PX


def test_expectations_rise_with_k_for_iwae_and_not_at_all_for_the_elbo(device):
    exact_elbo = (Q * (P_ZX / Q).log()).sum().item()
    for k in (1, 2, 10, 40):
        assert math.isclose(expectation(elbo, k, device), exact_elbo, abs_tol=1e-12)
    rising = [expectation(iwae, k, device) for k in (1, 2, 4, 8, 16)]
    assert rising == sorted(rising) and rising[0] < rising[-1]


def forgets_log_k(log_w):
    return log_w.logsumexp(0)


def averages_normalised(log_w):
    """Σ w̃ log w, which has IWAE's gradient (where w̃ is held) and not its value: tvo's sum with the right ends."""
    return (log_w.softmax(0) * log_w).sum(0)


@pytest.mark.parametrize("wrong", [forgets_log_k, averages_normalised, torch.amax])
def test_wrong_bounds_end_above_log_px(wrong, device):
    assert expectation(lambda w: wrong(w) if wrong is not torch.amax else w.amax(0), 40, device) > LOG_PX + 0.1


def test_the_jackknife_cuts_the_bias_to_its_order_and_is_no_bound(device):
    """The bias of order m falls as K^-(m+1): its slope from K = 80 to 160, in logs, is -1, -2, -3 to within 0.1."""
    for order in (0, 1, 2):
        bias = [expectation(jackknife(order), k, device) - LOG_PX for k in (80, 160)]
        assert abs(math.log2(abs(bias[1] / bias[0])) + order + 1) < 0.1
    above = [order for order in (0, 1, 2) for k in (3, 4, 6, 10) if expectation(jackknife(order), k, device) > LOG_PX]
    assert above and 0 not in above


# the same on a model, drawn


def check_below(bound, lg, takes=8, repeats=2000):
    """The mean over rows and repeats stays below log p(x) by 4 standard errors of `repeats` means over rows."""
    torch.manual_seed(1)
    log_w = log_weights(lg.model, lg.mean_field_guide, lg.x, num_particles=takes * repeats)
    side_by_side = log_w.view(takes, repeats * len(lg.x))
    means = bound(shaped(bound, side_by_side)).view(repeats, -1).mean(1)
    assert means.mean() < lg.log_px(lg.x).mean() + 4 * means.std() / repeats**0.5


@pytest.mark.parametrize("bound", [b for b in EVERY if b.values[0] in BOUNDS])
def test_bounds_of_a_linear_gaussian_model_stay_below_its_log_px(bound, device):
    check_below(bound, LinearGaussian(device=device), repeats=500)


@pytest.mark.parametrize("wrong", [forgets_log_k, averages_normalised])
def test_wrong_bounds_of_it_do_not(wrong, device):
    with pytest.raises(AssertionError):
        check_below(wrong, LinearGaussian(device=device), repeats=500)


# gradients


@every
def test_gradients(bound, log_w):
    few = shaped(bound, log_w[:6, ::10] + 90).clone().requires_grad_()
    assert gradcheck(bound, few)


@every
def test_a_shift_of_all_weights_shifts_the_value(bound, log_w):
    close(bound(shaped(bound, log_w - 5000)), bound(shaped(bound, log_w)) - 5000, 1e-9)


# extremes, types, shapes


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_1e4_nats_stay_finite(bound, dtype, device):
    extreme = torch.tensor([1e4, -1e4, 1e4, 0.0, -1e4, 3.0], dtype=dtype, device=device)
    log_w = torch.stack([extreme, -extreme, torch.full_like(extreme, 1e4), torch.full_like(extreme, -1e4)], 1)
    weights = shaped(bound, log_w).requires_grad_()
    value = bound(weights)
    (gradient,) = torch.autograd.grad(value.sum(), weights)
    assert value.dtype == dtype and value.shape == (4,) and value.device.type == device.type
    assert value.isfinite().all() and gradient.isfinite().all()
    close(value[2:], value.new_tensor([1e4, -1e4]), 1e-2 if dtype == torch.float32 else 1e-8)


@every
def test_float32_agrees_with_float64(bound, log_w):
    close(bound(shaped(bound, log_w.float())).double(), bound(shaped(bound, log_w)), 2e-3)


@every
def test_weights_of_zero_count_as_the_limit(bound, log_w):
    """Column 0 has one weight of 0, column 1 none but 0; the limit is seen from a weight of e^(-1e12)."""
    log_w[3, 0] = log_w[:, 1] = -math.inf
    weights = shaped(bound, log_w).clone().requires_grad_()
    value = bound(weights)
    assert value[1] == -math.inf
    (gradient,) = torch.autograd.grad(value[value.isfinite()].sum(), weights)
    assert gradient[..., value.isfinite()].isfinite().all()
    value = value.detach()
    assert not value.isnan().any() and value[2:].isfinite().all()
    far = bound(shaped(bound, log_w.clamp_min(-1e12)))[0]
    if far > -1e6:
        close(value[0], far, 1e-6)
    else:
        assert value[0] == -math.inf
    finite = (iwae, piwae, miwae, ciwae(0), renyi(0), renyi(0.5), renyi(1 - 1e-6), *ESTIMATES)
    assert value[0].isfinite() == (bound in finite)


def test_the_jackknife_needs_more_weights_above_zero_than_its_order(log_w):
    log_w[1:] = -math.inf
    assert (jackknife(1)(log_w) == math.inf).all() and (jackknife(2)(log_w) == math.inf).all()
    log_w[1] = -90
    assert jackknife(1)(log_w).isfinite().all() and (jackknife(2)(log_w) == -math.inf).all()


@every
def test_another_shape_is_refused(bound):
    wrong = torch.zeros(8, 128) if bound in GROUPED else torch.zeros(2, 8, 128)
    with pytest.raises(ShapeError, match=r"K, N\), got shape \((2, )?8, 128\)"):
        bound(wrong)
    with pytest.raises(ShapeError, match="at least one log weight"):
        bound(torch.zeros(2, 0, 5) if bound in GROUPED else torch.zeros(0, 5))
    if bound in GROUPED:
        with pytest.raises(ShapeError, match="num_groups=M"):
            bound(wrong)
        with pytest.raises(ShapeError, match="at least one log weight"):
            bound(torch.zeros(0, 2, 5))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: renyi(-0.5), "-0.5: below 0 the value is no bound at finite K"),
        (lambda: renyi(-math.inf), "no bound"),
        (lambda: renyi(math.inf), "finite alpha, got inf"),
        (lambda: renyi(math.nan), "finite alpha, got nan"),
        (lambda: ciwae(1.5), "got 1.5"),
        (lambda: ciwae(-0.1), "got -0.1"),
        (lambda: ciwae(math.nan), "got nan"),
        (lambda: tvo(0), "at least 1 partition, got 0"),
        (lambda: tvo(5, smallest=0.0), "smallest between 0 and 1, got 0.0"),
        (lambda: tvo(5, smallest=1), "got 1"),
        (lambda: tvo(()), "from 0 to 1"),
        (lambda: tvo((0,)), "from 0 to 1"),
        (lambda: tvo((0, 0.5)), "from 0 to 1"),
        (lambda: tvo((0.1, 1)), "from 0 to 1"),
        (lambda: tvo((0, 0.5, 0.5, 1)), "got .0.0, 0.5, 0.5, 1.0"),
        (lambda: tvo((0, math.nan, 1)), "from 0 to 1"),
        (lambda: renyi("0.5"), "finite alpha, got '0.5'"),
        (lambda: ciwae(None), "got None"),
        (lambda: tvo(2.5), "sequence from 0 to 1; got 2.5"),
        (lambda: jackknife(-1), "got -1"),
        (lambda: jackknife(1.0), "got 1.0"),
        (lambda: jackknife(True), "got True"),
        (lambda: jackknife(2)(torch.zeros(2, 5)), "at least 3 weights a row, got 2"),
    ],
)
def test_parameters_out_of_range_are_refused(make, says):
    with pytest.raises(UsageError, match=says) as refused:
        make()
    assert isinstance(refused.value, PyroVAEError) and isinstance(refused.value, ValueError)


def test_made_bounds_print_compare_and_hash_as_they_were_made():
    for bound in (renyi(alpha=0.5), ciwae(beta=0.3), tvo(partitions=5, smallest=0.025), jackknife(order=2)):
        assert eval(repr(bound)) == bound and hash(eval(repr(bound))) == hash(bound)
    assert repr(renyi(0.5)) == "renyi(alpha=0.5)" and renyi(0.5) != renyi(0.4)
    assert tvo([0, 0.5, 1]) == tvo((0, 0.5, 1))
