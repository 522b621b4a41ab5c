"""k̂: ArviZ's to the last digits, streamed, and the flags that hang on it."""

import math

import numpy as np
import pytest
import torch

from pyro_vae.errors import ShapeError, UnreliableError
from pyro_vae.evidence.importance.pareto import LargestWeights, gpd_shape, khat_threshold, pareto_khat, tail_size
from tests.helpers.importance import (
    Chain,
    check_arviz,
    check_flags,
    log_likelihood,
    narrow_guide,
    of_weights,
    pareto_rows,
)

# k̂


def test_khat_is_arvizs_frozen():
    check_arviz()


def test_khat_is_arvizs():
    arviz = pytest.importorskip("arviz_stats.base")
    rng = np.random.default_rng(0)
    for k in (25, 99, 225, 226, 1000, 5000, 20_000):
        log_w = np.stack(
            [rng.normal(size=k), 3 * rng.normal(size=k), rng.standard_t(3, size=k), rng.gumbel(size=k) - 800], 1
        )
        _, theirs = arviz.array_stats.psislw(-log_w.T)
        np.testing.assert_allclose(pareto_khat(torch.tensor(log_w)).numpy(), theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.7, 1.0])
def test_khat_of_a_generalised_pareto_is_its_shape(shape):
    """y = ((u^-k) − 1) / k: the mean of 200 fits of 500 values, freed of its prior, within 4 SE plus 0.01 (bias O(1/M))."""
    u = torch.rand(200, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = gpd_shape((u.pow(-shape).sub(1) / shape).sort(1).values)
    free = (k * 510 - 5) / 500
    assert (free.mean() - shape).abs() < 4 * free.std() / 200**0.5 + 0.01


def test_khat_where_there_is_no_tail_or_none_known():
    same = torch.zeros(1000, 1, dtype=torch.float64)
    assert pareto_khat(same).item() == -math.inf
    assert pareto_khat(torch.randn(24, 2)).isnan().all() and pareto_khat(torch.randn(25, 2)).isfinite().all()
    gone = torch.full((1000, 1), -math.inf)
    assert pareto_khat(gone).isnan().all()
    with pytest.raises(ShapeError, match=r"\(K, N\), got shape \(5,\)"):
        pareto_khat(torch.zeros(5))


def test_khat_does_not_move_with_a_constant():
    log_w = 2 * torch.randn(2000, 3, dtype=torch.float64)
    torch.testing.assert_close(pareto_khat(log_w + 20_000), pareto_khat(log_w), rtol=0, atol=1e-7)


def test_the_tail_is_streamed():
    log_w = 3 * torch.randn(5000, 4, dtype=torch.float64)
    for step in (1000, 37):
        top = LargestWeights(4, tail_size(5000) + 64)
        for part in log_w.split(step):
            top.add(part)
            assert top.values.shape[1] <= 2 * top.keep + step
        assert torch.equal(top.khat(5000), pareto_khat(log_w))


def test_a_tail_that_was_let_go_is_not_made_up():
    top = LargestWeights(1, 64)
    top.add(torch.arange(1000.0, dtype=torch.float64).flip(0)[:, None])
    top.add(torch.full((4000, 1), -5.0, dtype=torch.float64))
    assert top.khat(5000).isnan().all()


def test_thresholds():
    assert khat_threshold(100) == 0.5 and khat_threshold(10**6) == 0.7 and khat_threshold(1) == -math.inf
    assert khat_threshold(1000) == pytest.approx(2 / 3)


# flags


def test_flags_are_where_the_shape_is_above_the_threshold():
    evidence = of_weights(pareto_rows([0.2, 0.3, 1.2, 0.4, 1.5]))
    check_flags(evidence)
    s = evidence.summary()
    assert s["rows_flagged"] == 2 and s["khat_max"] > 1 and s["khat_threshold"] == 0.7
    assert "2 flagged (k̂ above 0.70)" in str(evidence) and "(no bound)" in str(evidence)
    few = of_weights(pareto_rows([0.2, 0.55], k=100))
    assert few.threshold.tolist() == [0.5, 0.5]


def test_equal_weights_are_reliable_whatever_khat():
    evidence = of_weights(1e-5 * torch.randn(2000, 3, dtype=torch.float64) - 500)
    assert len(evidence.flagged) == 0
    assert "25 particles" in str(of_weights(torch.randn(24, 2, dtype=torch.float64)))


def test_weights_of_zero_are_flagged():
    evidence = of_weights(torch.full((100, 2), -math.inf, dtype=torch.float64))
    assert evidence.flagged.tolist() == [0, 1] and evidence.summary()["max_share"] is None


def test_strict_raises_and_names_the_rows():
    o = Chain(40)
    with pytest.raises(
        UnreliableError, match=r"in \d+ of 40 rows, the first \[\d+, .*k̂ is above 0.67.*defensive"
    ) as caught:
        log_likelihood(o.model, narrow_guide, o.x, num_samples=1000, strict=True)
    assert len(caught.value.result) == 40 and len(caught.value.result.flagged) > 20
    assert len(log_likelihood(o.model, o.guide, o.x, num_samples=1000, strict=True).flagged) == 0
