"""A word on values that stand again and again, under a density that can be driven up on them without end."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, fit, normal
from pyro_vae.data import dequantize
from pyro_vae.likelihoods import SharedNormal, columns, gamma, laplace, normal_fixed, poisson, student_t
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.programs import data_atoms
from pyro_vae.programs.data_scale import scale_findings
from tests.helpers.small import small_vae

draw = torch.Generator().manual_seed(0)
REAL = torch.randn(200, 6, generator=draw)
COUNTS = torch.randint(0, 9, (200,), generator=draw).float()


def with_column(values, i=2):
    x = REAL.clone()
    x[:, i] = values
    return x


def atoms(x, family=normal, features=2, standardize=False):
    torch.manual_seed(0)
    vae = small_vae(likelihood=family, features=features)
    if standardize:
        vae.standardize(x)
    return [found.line for found in scale_findings(vae.model, vae.guide, (x,)) if found.kind == "atoms"]


TOLD = {
    "constant": (with_column(3.0), "column 2 holds one value:"),
    "whole": (with_column(COUNTS), "column 2 holds whole numbers:"),
    "classes": (with_column((COUNTS > 4).float()), "column 2 holds whole numbers:"),
    "many zeros": (with_column(REAL[:, 0].relu()), "column 2 holds one value in a fifth of the rows or more:"),
    "rounded to halves": (with_column((REAL[:, 0] * 2).round() / 2), "column 2 holds one value in a fifth"),
    "all": (COUNTS[:, None].expand(200, 6), "columns 0, 1, 2, 3, 4, … (6 in all) hold whole numbers"),
}


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("kind", TOLD)
def test_columns_that_repeat_values_are_named(kind, standardize):
    (line,) = atoms(TOLD[kind][0], standardize=standardize)
    assert TOLD[kind][1] in line and "driven up there without end" in line


@pytest.mark.parametrize("family", [student_t(3.0), laplace, SharedNormal(6)], ids=["student-t", "laplace", "shared"])
def test_whatever_the_density(family):
    features = 1 if isinstance(family, SharedNormal) else 2
    assert len(atoms(with_column(0.0), family, features)) == 1 and not atoms(REAL, family, features)


def test_nothing_is_said_of_what_cannot_narrow():
    assert not atoms(with_column(COUNTS), normal_fixed(0.5), 1) and not atoms(
        COUNTS[:, None].expand(200, 6), poisson, 1
    )
    assert not atoms(with_column(COUNTS)[:15])  # few rows repeat by chance
    assert not atoms(with_column((REAL[:, 0] * 10).round() / 10))
    (line,) = atoms(with_column(COUNTS).abs().round() + 1, gamma)
    assert "whole numbers" in line


def test_in_a_table_only_columns_of_densities_count():
    family = columns([(normal, 4, 2), (poisson, 1, 1), (normal, 6, 3)])
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 11), family), Conditional(MLP(6, 4), normal))
    for column, told in ((2, False), (1, True), (4, True)):
        x = with_column(COUNTS, column)
        x[:, 2] = COUNTS
        found = [f for f in scale_findings(vae.model, vae.guide, (x,)) if f.kind == "atoms"]
        assert bool(found) == told and (not told or f"column {column} holds" in found[0].what)


def test_missing_values_are_left_out():
    x = with_column(COUNTS)
    x[::3] = torch.nan
    vae = VAE(
        StandardNormal(2), SkipMissing(Conditional(MLP(2, 12), normal)), Conditional(WithMask(MLP(12, 4)), normal)
    )
    (found,) = [f for f in scale_findings(vae.model, vae.guide, (x,)) if f.kind == "atoms"]
    assert "column 2 holds whole numbers" in found.what


def test_fit_warns_of_it_and_not_of_dequantized_counts():
    counts = COUNTS[:, None].expand(200, 6).contiguous()
    run = fit(small_vae(likelihood=normal, features=2), counts, epochs=1, verbose=False)
    assert any("whole numbers" in line for line in run.warnings)
    run = fit(small_vae(likelihood=normal, features=2), counts, epochs=1, transform=dequantize(9), verbose=False)
    assert not any("whole numbers" in line for line in run.warnings)


def test_what_is_warned_of_is_so():
    """The likelihood of a constant rises without end as the scale falls; of other values it does not."""
    at = [dist.Normal(3.0, scale).log_prob(torch.full((9,), 3.0)).mean().item() for scale in (1e-1, 1e-4, 1e-8)]
    assert at[0] < at[1] < at[2] and at[2] > 10 and math.isfinite(at[2])


def test_a_broken_variant_says_nothing(monkeypatch):
    monkeypatch.setattr(data_atoms, "is_trained", lambda fn: False)
    assert not atoms(with_column(3.0))
