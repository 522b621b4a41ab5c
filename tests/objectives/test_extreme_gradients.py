"""Slopes, curvatures and baselines of every bound at extreme log weights, against sixty digits."""

import itertools
import math

import mpmath as mp
import pytest
import torch

from pyro_vae import ciwae, elbo, iwae, jackknife, miwae, piwae, renyi, tvo
from pyro_vae.objectives import curvature, leave_one_out
from pyro_vae.objectives.curvature import second, twice_differentiated
from pyro_vae.objectives.gradient_estimators import first
from pyro_vae.objectives.leave_one_out import log_sum_of_others, sum_of_others, without_one
from tests.helpers.exact_bounds import as_tensor, exact_baselines, exact_curvatures, exact_slopes, exact_value

BOUNDS = {
    "elbo": elbo, "iwae": iwae, "miwae": miwae, "piwae": piwae, "ciwae": ciwae(0.3), "ciwae_0": ciwae(0.0),
    "ciwae_1": ciwae(1.0), "renyi_half": renyi(0.5), "renyi_2": renyi(2.0), "renyi_near_1": renyi(1 - 1e-6),
    "renyi_1": renyi(1.0), "tvo": tvo(), "tvo_3": tvo((0, 0.1, 1)), "jackknife_1": jackknife(1), "jackknife_2": jackknife(2),
}  # fmt: skip
ROWS = {  # log weights of one row, six particles
    "equal": [3.0] * 6,
    "nearly equal": [0.0, 1e-7, -1e-7, 2e-7, 0.0, 1e-7],
    "one dominates by 40": [0.0, -40.0, -41.0, -42.0, -40.5, -43.0],
    "one dominates by 1e4": [1e4, 0.0, 1.0, -3.0, 2.0, -1.0],
    "two dominate": [5.0, 5.0, -90.0, -95.0, -1000.0, -90.0],
    "ladder": [0.0, -10.0, -30.0, -90.0, -300.0, -1000.0],
    "far below": [-1e4, -1e4 + 1, -1e4 - 2, -1e4, -1e4 + 3, -1e4],
    "far above": [1e4, 1e4 - 1, 1e4 + 2, 1e4, 1e4 - 30, 1e4 + 1],
    "a group far below": [0.0, -1.0, 2.0, -5000.0, -5001.0, -5003.0],
}
CURVED = {name: bound for name, bound in BOUNDS.items() if not isinstance(bound, jackknife)}  # it refuses, and says so
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=[name.replace(" ", "_") for name in ROWS])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def shaped(bound, row, dtype):
    log_w = torch.tensor(row, dtype=dtype).unsqueeze(-1)
    return log_w.unflatten(0, (2, -1)) if bound in (miwae, piwae) else log_w


def logs_of(log_w):
    """The numbers that the tensor holds, exactly."""
    return [mp.mpf(v) for v in log_w.flatten().tolist()]


def rounding(bound):
    """What the jackknife's coefficients make of the rounding of float64."""
    return 6**bound.order if isinstance(bound, jackknife) else 1


def worst(found, exact, least):
    error = (found.double().flatten() - as_tensor(exact)).abs() / as_tensor(exact).abs().clamp_min(least)
    return math.inf if error.isnan().any() else error.max().item()


@every_dtype
@every_row
@every_bound
def test_slopes_and_values(bound, row, dtype):
    """F to the rounding of its weights, F_k to that of a share; no NaN."""
    log_w = shaped(bound, row, dtype)
    logs, eps = logs_of(log_w), torch.finfo(dtype).eps
    size = max(1.0, *(abs(v) for v in row))
    assert abs(bound(log_w).item() - float(exact_value(bound, logs))) <= 4 * eps * size * rounding(bound)
    spread = max(row) - min(row)  # rounds the log weights' differences, and shares of e^-100 are 0
    spread = spread if isinstance(bound, jackknife) else min(spread, 100)
    assert worst(first(bound, log_w), exact_slopes(bound, logs), 1.0) <= (8 + spread) * eps * rounding(bound)


@every_dtype
@every_row
@pytest.mark.parametrize("bound", CURVED.values(), ids=CURVED)
def test_curvatures(bound, row, dtype):
    log_w = shaped(bound, row, dtype)
    eps = torch.finfo(dtype).eps
    assert worst(second(bound, log_w), exact_curvatures(bound, logs_of(log_w)), 1.0) <= 100 * eps


@every_dtype
@every_row
@every_bound
def test_baselines(bound, row, dtype):
    log_w = shaped(bound, row, dtype)
    exact = exact_baselines(bound, logs_of(log_w), groups=1 if log_w.dim() == 2 else 2)
    size = max(1.0, *(abs(v) for v in row))
    assert worst(without_one(bound, log_w), exact, size) <= 8 * torch.finfo(dtype).eps * rounding(bound)


@every_row
@every_bound
def test_closed_forms_are_what_copies_and_two_derivatives_give(bound, row, monkeypatch):
    """The forms for any bound, in pieces of one and of many particles, agree with those of each bound."""
    log_w = shaped(bound, row, torch.float64)
    opaque = lambda weights: bound(weights)  # noqa: E731 (no bound that is known)
    for at_once in (1, 17, 2**20):
        monkeypatch.setattr(leave_one_out, "AT_ONCE", at_once)
        size = max(1.0, *(abs(v) for v in row))
        torch.testing.assert_close(without_one(opaque, log_w), without_one(bound, log_w), rtol=1e-13, atol=1e-13 * size)
        if not isinstance(bound, jackknife):
            torch.testing.assert_close(twice_differentiated(bound, log_w), second(bound, log_w), rtol=1e-9, atol=1e-9)


def test_a_bound_of_ones_own_with_an_attribute_of_a_known_one():
    """An attribute `alpha` of 1 makes no bound Renyi's."""

    class Squared:
        alpha = beta = 1

        def __call__(self, log_w):
            return log_w.square().sum(0)

    assert (second(Squared(), torch.randn(4, 3)) == 2).all()


@pytest.mark.parametrize("minus_infinity", [1, 3, 5])
@every_bound
def test_weights_of_zero_have_no_share_and_no_curvature(bound, minus_infinity):
    """With one, three or five of six weights 0, what is finite is right, and nothing is NaN where the bound is finite."""
    row = [0.5, 0.0, 1.0, -1.0, 2.0, 0.7]
    for i in range(minus_infinity):
        row[i] = -math.inf
    log_w = shaped(bound, row, torch.float64)
    if not bound(log_w).isfinite():
        return
    far = shaped(bound, [max(v, -1e12) for v in row], torch.float64)
    torch.testing.assert_close(first(bound, log_w), first(bound, far))
    assert without_one(bound, log_w).isfinite().all()
    if not isinstance(bound, jackknife):
        torch.testing.assert_close(second(bound, log_w), second(bound, far))


def test_sums_of_others_subtract_nothing():
    """The sum less one term is 0 where that term is nearly all, and NaN where it is infinite."""
    values = torch.tensor([1e20, 1.0, 2.0, -math.inf], dtype=torch.float64)
    assert sum_of_others(values[:3], 0).tolist() == [3.0, 1e20, 1e20]
    assert sum_of_others(values, 0)[3] == 1e20 and (sum_of_others(values, 0)[:3] == -math.inf).all()
    subtracted = values.sum() - values
    assert subtracted[3].isnan() and (values[:3].sum() - values[:3])[0] != 3
    logs = torch.tensor([0.0, -50.0, -51.0], dtype=torch.float64)
    assert log_sum_of_others(logs, 0)[0].item() == pytest.approx(-50 + math.log1p(math.exp(-1)), abs=1e-14)
    assert (logs.logsumexp(0).exp() - 1).item() == 0


def test_a_wrong_curvature_would_show(monkeypatch):
    """Without the term of E that moves with the weight, tvo's fails the comparison above."""

    def held(betas, log_w):
        total = torch.zeros_like(log_w)
        for low, high in itertools.pairwise(betas[1:]):
            share = (low * log_w).softmax(0)
            total = total + (high - low) * low * share * (1 - share)
        return total

    log_w = shaped(tvo(), ROWS["ladder"], torch.float64)
    exact = exact_curvatures(tvo(), logs_of(log_w))
    assert worst(second(tvo(), log_w), exact, 1.0) < 1e-12
    monkeypatch.setattr(curvature, "of_tempered_means", held)
    assert worst(second(tvo(), log_w), exact, 1.0) > 1e-3
