"""The jackknife, as a bound and of streamed sums, against sixty digits: weights nearly equal, or one that is nearly all."""

import itertools
import math

import mpmath as mp
import pytest
import torch

from pyro_vae import iwae, jackknife
from pyro_vae.evidence.importance.accumulator import WeightSums
from pyro_vae.evidence.importance.pareto import SPARE, tail_size
from tests.helpers.environment import HEAVY

mp.mp.dps = 60
SETS = {  # values of log w, and the share of the K weights that have each; 0 is one weight
    "equal": {0.0: 1},
    "nearly_equal": {0.0: 0.5, 1e-9: 0.5},
    "spread": {0.0: 0.3, -1.0: 0.3, -3.0: 0.4},
    "one_above_30": {0.0: 0, -30.0: 1},
    "one_above_50": {0.0: 0, -50.0: 0.5, -60.0: 0.5},
    "one_above_1e4": {0.0: 0, -1e4: 1},
    "a_second_above_the_rest": {0.0: 0, -20.0: 0, -60.0: 1},
}


def weights(name, k, shift=0.0):
    """Values and counts of them that sum to K, and the weights themselves, shuffled, (K, 1)."""
    values = [v + shift for v in SETS[name]]
    counts = [max(1, int(share * k)) for share in SETS[name].values()]
    counts[-1] = k - sum(counts[:-1])
    log_w = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
    return values, counts, log_w[torch.randperm(k, generator=torch.Generator().manual_seed(k))].unsqueeze(1)


def sets_left_out(counts, size):
    """Ways to leave `size` of the weights out: how many are left of each value, and the number of such sets."""
    if size == 0:
        yield counts, 1
    for i in range(len(counts) if size == 1 else 0):
        yield [n - (j == i) for j, n in enumerate(counts)], counts[i]
    for i, j in itertools.combinations_with_replacement(range(len(counts)) if size == 2 else (), 2):
        number = math.comb(counts[i], 2) if i == j else counts[i] * counts[j]
        yield [n - (a == i) - (a == j) for a, n in enumerate(counts)], number


def exact(values, counts, order):
    """Over all sets of weights that are left out, equal ones counted together; nothing is subtracted."""
    w, k = [mp.exp(mp.mpf(v)) for v in values], sum(counts)
    value = mp.mpf(0)
    for j in range(order + 1):
        c = mp.mpf((-1) ** j * (k - j) ** order) / (math.factorial(order - j) * math.factorial(j))
        sets = [
            (sum(a * n for a, n in zip(w, left, strict=True)), number)
            for left, number in sets_left_out(counts, j)
            if number
        ]
        value += c * sum(number * mp.log(rest / (k - j)) for rest, number in sets) / math.comb(k, j)
    return value


def streamed(log_w):
    sums = WeightSums(1, len(log_w))
    for piece in log_w.split(4096):
        sums.add(piece)
    return sums.jackknife.item()


SIZES = {f"{k}-{at}": (k, shift) for k in (4, 24, 25, 64, 65, 1000, 100_000, 1_000_000)
         for at, shift in (("at_0", 0.0), ("at_minus_1e4", -1e4)) if HEAVY or shift or k < 1_000_000}  # fmt: skip


@pytest.mark.parametrize(("k", "shift"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", SETS)
def test_of_first_order(name, k, shift):
    """Sums of more than 64 leave out what is not among the largest M, at most 0.05 / M² nats; else to 1e-10."""
    values, counts, log_w = weights(name, k, shift)
    truth, m = float(exact(values, counts, 1)), tail_size(k) + SPARE // 2
    assert jackknife(1)(log_w).item() == pytest.approx(truth, abs=1e-10, rel=1e-14)
    assert streamed(log_w) == pytest.approx(truth, abs=1e-10 + (0.05 / m**2 if k > SPARE else 0.0), rel=1e-14)


@pytest.mark.parametrize("shift", [0.0, -1e4], ids=["at_0", "at_minus_1e4"])
@pytest.mark.parametrize("k", [4, 25, 300])
@pytest.mark.parametrize("name", SETS)
def test_of_second_order(name, k, shift):
    values, counts, log_w = weights(name, k, shift)
    rounding = 2e-16 * k * max(map(abs, SETS[name]))
    assert jackknife(2)(log_w).item() == pytest.approx(
        float(exact(values, counts, 2)), abs=1e-10 + 4 * rounding, rel=1e-14
    )


def textbook(log_w):
    """K L_K − (K − 1) L_{K−1}, each of them taken as it stands."""
    k = len(log_w)
    before = torch.cat([torch.full_like(log_w[:1], -math.inf), log_w[:-1]]).logcumsumexp(0)
    after = torch.cat([torch.full_like(log_w[:1], -math.inf), log_w[1:].flip(0)]).logcumsumexp(0).flip(0)
    mean = (torch.logaddexp(before, after) - math.log(k - 1)).mean(0)
    return k * iwae(log_w) - (k - 1) * mean


def by_subtraction(log_w):
    """Σ_k log(1 − s_k), with 1 − s_k as it rounds."""
    share = log_w.softmax(0)
    k = len(log_w)
    return iwae(log_w) + (k - 1) * math.log1p(-1 / k) - (k - 1) / k * torch.log1p(-share).sum(0)


def test_what_cancels_would_show():
    """Differences of K times a value, and 1 − s of a weight that is nearly all."""
    values, counts, log_w = weights("spread", 1_000_000, -1e4)
    assert abs(textbook(log_w).item() - float(exact(values, counts, 1))) > 1e-6
    values, counts, log_w = weights("one_above_50", 1000)
    assert not abs(by_subtraction(log_w).item() - float(exact(values, counts, 1))) < 1


@pytest.mark.parametrize("name", SETS)
def test_its_gradient(name):
    """∂/∂ log w_k by differences of sixty digits, for one weight of each value."""
    values, counts, _ = weights(name, 24)
    log_w = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(counts)).requires_grad_()
    for order in (1, 2):
        (gradient,) = torch.autograd.grad(jackknife(order)(log_w.unsqueeze(1)).sum(), log_w)
        assert gradient.sum().item() == pytest.approx(1, abs=1e-9)
        for i, (value, count) in enumerate(zip(values, counts, strict=True)):
            one, others = [count - (j == i) for j, count in enumerate(counts)], sum(counts[:i])
            ends = [exact([*values, mp.mpf(value) + s * mp.mpf("1e-20")], [*one, 1], order) for s in (1, -1)]
            slope = float((ends[0] - ends[1]) / mp.mpf("2e-20"))
            assert gradient[others].item() == pytest.approx(slope, abs=1e-9), (value, count)


def test_streamed_sums_in_any_pieces():
    """Pieces of one weight, of all, and the largest in any of them."""
    torch.manual_seed(0)
    log_w = 3 * torch.randn(50, 8, dtype=torch.float64)
    log_w[torch.arange(8), torch.arange(8)] += 60
    want = jackknife(1)(log_w)
    for size in (1, 7, 50):
        sums = WeightSums(8, 50)
        for piece in log_w.split(size):
            sums.add(piece)
        torch.testing.assert_close(sums.jackknife, want, rtol=0, atol=1e-12)


def test_of_streamed_sums_of_weights_that_are_zero():
    """All weights but one are 0: infinite. All are 0: not known."""
    sums = WeightSums(2, 3)
    sums.add(torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf], [-math.inf, -math.inf]]))
    assert sums.jackknife[0] == math.inf and not sums.jackknife[1].isfinite()
