"""The error over seeds: by hand, by simulation, and refused or left out where it would not mean what it says."""

import math

import pytest
import torch

from pyro_vae import Evidence, compare
from pyro_vae.data.row_ids import RowIds
from pyro_vae.diagnostics.given_log_px import as_truth
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.evidence.over_seeds import SeedEvidence, compare_seeds


def scored(log_px, mc_se=0.0, flagged=0, measure="binary", x=None):
    """Evidence of these numbers, of which the first so many rows have a heavy tail."""
    log_px = torch.as_tensor(log_px, dtype=torch.float64)
    ones = torch.ones_like(log_px)
    khat = torch.where(torch.arange(len(ones)) < flagged, 2.0, 0.1).double()
    ids = None if x is None else RowIds.of(x)
    return Evidence(
        log_px, mc_se * ones, 99 * ones, log_px - 1, ones, num_samples=100, seed=0, khat=khat, max_share=0.5 * ones,
        jackknife=log_px, measure=measure, row_ids=ids,
    )  # fmt: skip


def of(*members, **left_out):
    return SeedEvidence(members, tuple(range(len(members))), left_out.get("left_out", {}))


def test_each_error_is_that_of_its_formula():
    rows = torch.tensor([[-10.0, -12.0, -14.0], [-11.0, -12.5, -13.0], [-9.0, -13.0, -17.0]]).double()
    evidence = of(*(scored(r, 0.3) for r in rows))
    summary, means = evidence.summary(), rows.mean(1)
    assert summary["log_px"] == pytest.approx(rows.mean().item())
    assert summary["log_px_seed_se"] == pytest.approx((means.std() / math.sqrt(3)).item())
    mc = 0.3 / math.sqrt(3)  # of each member's mean over 3 rows
    assert summary["log_px_mc_se"] == pytest.approx(mc / math.sqrt(3))
    assert summary["log_px_seed_sd"] == pytest.approx(math.sqrt(means.var().item() - mc**2))
    assert summary["log_px_data_se"] == pytest.approx((rows.mean(0).std() / math.sqrt(3)).item())
    assert [m["member_seed"] for m in summary["members"]] == [0, 1, 2]


def test_the_spread_over_seeds_is_found_under_monte_carlo_noise():
    """400 ensembles of 5 seeds: sd 0.5 from seed to seed, noise of 0.4 on each mean; V alone would say 0.64."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(400):
        seeds = 0.5 * torch.randn(5, 1, generator=generator)
        noise = 0.4 * math.sqrt(4) * torch.randn(5, 4, generator=generator)
        found.append(of(*(scored(r, 0.4 * math.sqrt(4)) for r in seeds + noise)))
    variance = torch.tensor([e.variance - 0.4**2 for e in found])
    error = variance.std() / math.sqrt(len(found))
    assert abs(variance.mean() - 0.25) < 4 * error < 0.1
    assert all(e.seed_sd >= 0 for e in found) and any(e.seed_sd == 0 for e in found)


def crossed(generator, members, rows, better=0.0):
    """log p(x) of members on rows that all share: seeds, rows and what only one seed finds hard."""
    a, b = torch.randn(members, 1, generator=generator), RowEffects.of(rows)
    return better + 0.3 * a + b + 0.5 * torch.randn(members, rows, generator=generator)


class RowEffects:
    """What makes rows hard is hard for every model: it leaves the differences."""

    @staticmethod
    def of(rows):
        return 10 * torch.randn(rows, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("better", "least", "most"), [(0.0, 0.0, 0.075), (1.0, 0.9, 1.0)], ids=["alike", "better"])
def test_the_verdict_is_wrong_as_often_as_it_says(better, least, most):
    """300 comparisons of 4 with 5 seeds on 40 rows: at most 5 % (+ 2 standard errors of 300) decided where none is better."""
    generator, decided = torch.Generator().manual_seed(1), 0
    for _ in range(300):
        sides = [crossed(generator, m, 40, shift) for m, shift in ((4, better), (5, 0.0))]
        result = compare_seeds(*(of(*map(scored, side)) for side in sides))
        decided += result.verdict == "decided" and result.difference > 0 if better else result.verdict == "decided"
    assert least <= decided / 300 <= most


def test_one_seed_leaves_the_error_over_seeds_unknown():
    one, more = of(scored([-1.0, -2.0])), of(scored([-1.5, -2.0]), scored([-1.6, -2.5]))
    assert one.seed_se is None and one.seed_sd is None and "± unknown seed" in str(one)
    result = compare_seeds(more, one)
    assert result.seed_se is None and result.verdict.startswith("one seed") and "± unknown seed" in str(result)


def test_a_loose_member_takes_every_error_away():
    """One of three members has 30 % of its rows flagged: the mean is a bound, and ± stands nowhere."""
    loose = of(scored([-1.0] * 10), scored([-2.0] * 10, flagged=3), scored([-3.0] * 10))
    assert "≥ -2.00 (loose: 30 % of rows flagged in a member)" in str(loose)
    head, *members = str(loose).splitlines()
    assert "±" not in head and "sd" not in str(loose) and "≥" in members[1] and "±" in members[0]
    other = of(scored([-5.0] * 10), scored([-6.0] * 10))
    result = compare_seeds(loose, other)
    assert result.verdict == "not to be believed" and "(loose)" in str(result)
    tenth = of(scored([-1.0] * 10), scored([-2.0] * 10, flagged=1))  # not more than a tenth
    assert "± 0.500 seed" in str(tenth)


def test_members_that_diverged_are_named_beside_the_numbers():
    evidence = of(scored([-1.0, -2.0]), scored([-2.0, -2.0]), left_out={7: "seed 7: step 3: the loss is nan"})
    assert "left out: seed 7: step 3" in str(evidence) and evidence.summary()["seeds"] == [0, 1]
    assert "left out: b, seed 7" in str(compare_seeds(of(scored([-1.0, -2.0])), evidence, ("a", "b")))


def test_what_is_of_other_rows_or_measures_is_refused():
    x = torch.rand(2, 3)
    with pytest.raises(ShapeError, match="seed 0 and seed 1 have 2 and 3 rows"):
        of(scored([-1.0, -2.0]), scored([-1.0, -2.0, -3.0]))
    with pytest.raises(DataError, match="seed 0 and seed 1 are not of the same rows"):
        of(scored([-1.0, -2.0], x=x), scored([-1.0, -2.0], x=x.flip(0)))
    with pytest.raises(DataError, match="have no difference"):
        of(scored([-1.0, -2.0]), scored([-1.0, -2.0], measure="continuous"))
    with pytest.raises(DataError, match="a and b is of measures"):
        compare_seeds(of(scored([-1.0])), of(scored([-1.0], measure="continuous")), ("a", "b"))
    with pytest.raises(UsageError, match="0 members and 0 seeds"):
        SeedEvidence((), ())


def test_a_mean_over_seeds_is_no_model_to_the_functions_of_one():
    """`compare` called it decided by rows alone, and `gaps` took it for log p(x) of a model, its flags left out."""
    spread = of(scored([-1.0, -2.0, -3.0]), scored([-3.0, -4.0, -5.1]))
    other = of(scored([-1.0, -2.1, -3.0]), scored([-1.5, -2.5, -3.5]))
    with pytest.raises(UsageError, match=r"'a' is the mean of log p\(x\) over seeds, .* take ensemble.compare"):
        compare({"a": spread, "b": other})
    assert compare_seeds(spread, other).verdict == "tie"
    with pytest.raises(UsageError, match=r"log_px is the mean of log p\(x\) over seeds"):
        as_truth(spread, 3, None)
    assert len(compare({"a": spread.members[0], "b": other.members[0]})) == 2
