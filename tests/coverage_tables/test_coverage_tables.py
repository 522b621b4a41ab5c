"""The command that makes results/coverage.md: its arithmetic on known errors, and a case of each kind."""

import pytest
import torch

from tests.coverage_tables.__main__ import covered, line
from tests.coverage_tables.cases import CASES, Errors
from tests.helpers.environment import HEAVY, ROOT


def test_the_share_that_is_covered():
    """10,000 normal numbers in 500 repetitions: 0.95; half as wide errors cover 0.67 = P(|z| < 0.98); each to 4 errors."""
    z = torch.randn(500, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for width, expected in ((1.0, 0.95), (2.0, 0.6729)):
        share, coverage, error, everything = covered(Errors.of(width * z))
        assert share == 1 and coverage == everything and abs(coverage - expected) < 4 * error < 0.03


def test_what_is_not_reliable_is_left_out():
    z = torch.tensor([[0.0, 9.0]] * 5, dtype=torch.float64)
    assert covered(Errors.of(z, z < 5)) == (0.5, 1.0, 0.0, 0.5)


@pytest.mark.parametrize(
    "name", CASES if HEAVY else ("row-25", "mean-biased", "paired", "ais-short-row", "bdmc", "gap")
)
def test_every_case_runs(name):
    assert line(name, 2, 5).count(" | ") == 4


def test_the_table_says_how_it_was_made():
    """results/coverage.md is of this command, and has a line a case."""
    page = (ROOT / "results" / "coverage.md").read_text(encoding="utf-8")
    assert "python -m tests.coverage_tables" in page and "200 repetitions" in page
    for case in CASES.values():
        assert f"| {case.error} | {case.what} |" in page
