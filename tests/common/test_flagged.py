"""No ± beside more than a tenth of flagged rows: in whatever prints log p(x)."""

import pytest
import torch

from pyro_vae import Evidence, Exact
from pyro_vae.common.flagged import format_both_errors, format_difference, format_log_px, is_loose, share_flagged


def evidence(rows, flagged, **more):
    """Evidence of so many rows, of which the first are flagged by k̂."""
    khat = torch.where(torch.arange(rows) < flagged, 0.9, 0.1).double()
    columns = [torch.full((rows,), value, dtype=torch.float64) for value in (-89.0742, 0.5, 50.0, -97.868, 0.07)]
    weights = {"khat": khat, "max_share": khat, "jackknife": columns[0]}
    return Evidence(*columns, num_samples=5000, seed=0, **(weights | more))


def exact(rows, flagged):
    """An oracle's word on so many rows, of which the first are flagged."""
    values = torch.full((rows,), -89.0742, dtype=torch.float64)
    return Exact(values, values * 0 + 1e-6, torch.arange(rows) >= flagged, "quadrature", "counts", "a grid")


@pytest.mark.parametrize(
    ("rows", "flagged", "loose"),
    [(180, 0, False), (180, 18, False), (180, 19, True), (180, 180, True), (1, 1, True), (9, 1, True), (10, 1, False)],
)
def test_more_than_a_tenth_is_loose(rows, flagged, loose):
    said = evidence(rows, flagged)
    assert is_loose(said.summary()) == loose and share_flagged(said.summary()) == flagged / rows
    assert ("±" in str(said)) != loose and ("≥" in str(said)) == loose
    if loose:
        assert f"log p(x) ≥ -89.07 nats (loose: {round(100 * flagged / rows)} % of rows flagged)" in str(said)
        assert "next: ais(model, guide, x)" in str(said) and "gap at least 8.79" in str(said)
        assert "ELBO -97.868 (standard error" in str(said)


def test_rows_short_of_a_target_count():
    """They are flagged, and nothing else is wrong with them."""
    assert "±" not in str(evidence(20, 0, target_se=0.1)) and "≥" in str(evidence(20, 0, target_se=0.1))
    assert "±" in str(evidence(20, 0, target_se=0.6))


def test_without_khat_no_row_is_believed():
    """As evidence.csv of an older version is read; a summary without flags says the same."""
    old = evidence(20, 0, khat=None, max_share=None, jackknife=None)
    assert "rows_flagged" not in old.summary() and share_flagged(old.summary()) == 1
    assert "≥ -89.07 nats (loose: k̂ not known)" in str(old) and "±" not in str(old)


@pytest.mark.parametrize(("flagged", "sign"), [(0, ""), (2, ""), (3, "≈ ")])
def test_an_oracle_is_no_bound(flagged, sign):
    said = str(exact(20, flagged))
    assert ("±" in said) == (not sign) and "≥" not in said and f"log p(x) {sign}-89.07" in said


def test_annealing_has_flags_only_where_its_summary_does():
    about = {"log_px": -1.0, "log_px_mc_se": 0.1, "rows": 10, "num_chains": 16}
    assert format_log_px(about) == "-1.000 ± 0.100"
    assert format_log_px(about | {"rows_flagged": 2}) == "≥ -1.00 (loose: 20 % of rows flagged)"
    assert format_log_px(about | {"log_px_mc_se": None}) == "-1.000 ± unknown"


def test_no_error_prints_as_zero():
    """± 0.000 would say that there is none."""
    about = {"log_px": -1.0, "log_px_mc_se": 4e-5, "log_px_data_se": 0.0, "rows": 10, "rows_flagged": 0}
    assert format_log_px(about) == "-1.000 ± 4e-05"
    assert format_both_errors(about) == "-1.000 ± 4e-05 ± 0.000"  # rows that are all alike have none
    assert format_difference(0.4, 0.004, about) == "+0.40 ± 4e-03"
