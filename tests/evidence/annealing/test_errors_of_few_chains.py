"""Standard errors of annealing: Student's for few chains, and rows in which too few of them count are flagged."""

import math

import pytest
import torch

from pyro_vae.evidence.annealing import result
from pyro_vae.evidence.annealing.result import AnnealedRun, student
from pyro_vae.evidence.annealing.schedule import AISSettings, AnnealingPath

N = 20_000


def annealed(log_w):
    """An annealed result of these log weights, ``(C, N)``."""
    path = AnnealingPath(torch.tensor([0.0, 1.0]).double(), torch.ones(2, log_w.shape[1]).double())
    flat = torch.zeros(log_w.shape[1]).double()
    run = AnnealedRun(path, log_w[..., None], log_w, [flat, flat], [flat, flat], [flat])
    return run.result(AISSettings(num_chains=len(log_w)), "continuous")


def normal_weights(chains, sd, rows=N):
    z = torch.randn(chains, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(chains))
    return annealed(sd * z - sd**2 / 2)  # E[w] = 1


def coverage(found, of=0.0):
    return ((found.log_px - of).abs() <= 1.96 * found.mc_se).double()


@pytest.mark.parametrize(("chains", "sd"), [(10, 0.3), (16, 0.3), (16, 0.5), (50, 0.5)], ids="{}".format)
def test_errors_of_rows_cover(chains, sd):
    """Between 0.93 and 0.97 of log p(x), to the binomial error of 20,000 rows, 0.002."""
    found = normal_weights(chains, sd)
    assert found.reliable.all() and 0.93 < coverage(found).mean() < 0.97


def test_the_normal_interval_of_16_chains_does_not(monkeypatch):
    monkeypatch.setattr(result, "student", lambda degrees: 1.0)
    assert coverage(normal_weights(16, 0.5)).mean() < 0.925


def right_skewed(chains):
    """log w ~ Gamma(2, 5): E[w] = (5/4)²."""
    log_w = (
        -(torch.rand(2, chains, N, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log().sum(0)) / 5
    )
    return annealed(log_w), 2 * math.log(1.25)


def gamma_weights(chains):
    """w ~ Gamma(2, 2), whose log is skewed to the left: E[w] = 1."""
    w = -torch.rand(2, chains, N, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).log().sum(0) / 2
    return annealed(w.log()), 0.0


def left_behind(chains):
    """One chain in ten stays where nothing is: E[w] = 0.9."""
    generator = torch.Generator().manual_seed(5)
    z, stays = (f(chains, N, dtype=torch.float64, generator=generator) for f in (torch.randn, torch.rand))
    return annealed(0.5 * z - 0.125 - 30.0 * (stays < 0.1)), math.log(0.9)


SKEWED = {
    "lognormal 0.7": lambda: (normal_weights(16, 0.7), 0.0),
    "lognormal 0.8 of 64": lambda: (normal_weights(64, 0.8), 0.0),
    "right-skewed log": lambda: right_skewed(64),
    "gamma": lambda: gamma_weights(16),
    "chains left behind": lambda: left_behind(16),
}


@pytest.mark.parametrize("kind", SKEWED)
def test_errors_of_skewed_weights_cover(kind):
    found, truth = SKEWED[kind]()
    assert found.reliable.double().mean() > 0.9
    assert 0.93 < coverage(found, truth)[found.reliable].mean() < 0.97


@pytest.mark.parametrize("kind", ["lognormal 0.7", "right-skewed log"])
def test_the_delta_method_alone_does_not(kind, monkeypatch):
    monkeypatch.setattr(result, "lognormal_se", lambda log_w: torch.zeros(log_w.shape[1], dtype=torch.float64))
    found, truth = SKEWED[kind]()
    assert coverage(found, truth)[found.reliable].mean() < 0.93


def test_the_error_of_a_mean_of_rows_has_their_degrees_together():
    """20 rows at a time, the bias of each taken off: 0.93 to 0.97, to the binomial error of 1,000 means, 0.007."""
    found = normal_weights(16, 0.5)
    off = (found.log_px - found.log_px.mean()).view(-1, 20).mean(1)
    errors = [result.mean_error(some, 16) for some in found.mc_se.view(-1, 20)]
    inside = (off.abs() <= 1.96 * torch.tensor(errors, dtype=torch.float64)).double().mean()
    assert 0.93 < inside < 0.97
    said = annealed(found.log_w[:, :20]).summary()["log_px_mc_se"]
    assert said == pytest.approx(errors[0]) and said < found.mc_se[:20].square().sum().sqrt().item() / 20


def test_weights_of_zero_leave_the_errors_as_they_are():
    """Most chains at log w = −inf, or all of them: no NaN where there was none."""
    log_w = torch.full((16, 3), -math.inf, dtype=torch.float64)
    log_w[:9, 0], log_w[:4, 1] = 0.0, 0.0
    assert annealed(log_w).mc_se.isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("sd", [1.2, 1.6, 2.0])
def test_rows_of_few_chains_that_count_are_flagged(sd):
    """All of them, where the median row has less than half: those of high ESS are those whose large weights did not come."""
    found = normal_weights(16, sd, 500)
    assert found.flagged.tolist() == list(range(500)) and found.summary()["rows_flagged"] == 500
    assert "500 rows flagged" in str(found) and coverage(found)[found.ess > 16 / 3].mean() < 0.93


def test_one_row_of_few_is_flagged_alone():
    log_w = torch.zeros(16, 5, dtype=torch.float64)
    log_w[0, 3] = 4.0
    assert annealed(log_w).flagged.tolist() == [3]


@pytest.mark.parametrize("chains", [1, 2, 9])
def test_fewer_than_ten_chains_are_no_error(chains):
    assert len(annealed(torch.zeros(chains, 4).double()).flagged) == 4


def test_ten_equal_weights_are_enough():
    assert len(annealed(torch.zeros(10, 4).double()).flagged) == 0


@pytest.mark.parametrize(("degrees", "quantile"), [(5, 2.571), (9, 2.262), (15, 2.131), (49, 2.010), (10**6, 1.960)])
def test_student(degrees, quantile):
    assert math.isclose(1.96 * student(degrees), quantile, rel_tol=0.01)
