"""Models on the same rows: the paired error is the right one, unlike rows are refused, and the tables hold the numbers."""

import csv
import io
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae import Evidence, Exact, ais, log_likelihood
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.evidence.compare import MIXED, compare
from pyro_vae.evidence.comparison import Compared
from pyro_vae.plots.bars import forest
from tests.helpers.comparison import by_name
from tests.helpers.conjugate import GammaPoisson
from tests.helpers.exact import LinearGaussian

GP = GammaPoisson()


def evidence(log_px, mc_se=0.0, ess=50.0, elbo_gap=1.0, num_samples=50, flagged=0):
    """Evidence with these values, row by row or the same in all, whose first rows are flagged."""
    log_px = torch.as_tensor(log_px, dtype=torch.float64)
    mc_se, ess, elbo_gap = (torch.as_tensor(v, dtype=torch.float64).expand(len(log_px)) for v in (mc_se, ess, elbo_gap))
    khat = torch.where(torch.arange(len(log_px)) < flagged, 2.0, 0.1).double()
    weights = {"khat": khat, "max_share": khat, "jackknife": log_px}
    return Evidence(log_px, mc_se, ess, log_px - elbo_gap, mc_se, num_samples=num_samples, seed=0, **weights)


# the numbers


def test_a_comparison_is_the_hand_calculation():
    a, b = np.array([-1.0, -5.0, -9.0, -20.0]), np.array([-2.0, -5.5, -8.0, -27.0])
    noise_a, noise_b = np.array([0.1, 0.2, 0.1, 0.4]), np.array([0.3, 0.1, 0.1, 0.2])
    made = compare(
        {"b": evidence(b, noise_b, elbo_gap=2.0), "a": evidence(a, noise_a, ess=[9.9, 10, 1, 50])},
        seconds={"a": 3.0},
        active_units={"b": 7},
    )
    assert [m.name for m in made.models] == ["a", "b"] and made.rows == 4
    best, other = made.models
    assert (best.difference, best.difference_se, best.difference_mc_se) == (0.0, 0.0, 0.0)
    d = b - a
    assert other.difference == pytest.approx(d.mean(), rel=1e-12)
    assert other.difference_se == pytest.approx(d.std(ddof=1) / 2, rel=1e-12)
    assert other.difference_mc_se == pytest.approx(np.sqrt((noise_a**2).sum() + (noise_b**2).sum()) / 4, rel=1e-12)
    assert best.log_px == a.mean() and best.mc_se == pytest.approx(np.sqrt((noise_a**2).sum()) / 4, rel=1e-12)
    assert best.data_se == pytest.approx(a.std(ddof=1) / 2, rel=1e-12)
    assert (best.low_ess, other.low_ess, best.gap, other.gap) == (0.5, 0.0, 1.0, 2.0)
    assert best.gap_mc_se == pytest.approx(
        np.sqrt(2 * (noise_a**2).sum()) / 4, rel=1e-12
    )  # of log p(x), and of the ELBO
    gap = made.cells()[0].index("gap")
    assert [line[gap] for line in made.cells()[1:]] == [
        f"1.000 ± {best.gap_mc_se:.3f}",
        f"2.000 ± {other.gap_mc_se:.3f}",
    ]
    assert (best.seconds, other.seconds, best.active_units, other.active_units) == (3.0, None, None, 7)


def two_gaussians():
    """Two models with p(x) in closed form, of which the first made the data, and E_p[log q(x) − log p(x)] = −KL(p ‖ q)."""
    a, b = LinearGaussian(), LinearGaussian()
    b.noise = b.noise * 1.5
    p, q = (MultivariateNormal(m.mean, m.a.T @ m.a + m.noise.diag()) for m in (a, b))
    return a, b, p, q, -kl_divergence(p, q).item()


def test_the_difference_of_two_models_is_the_exact_one():
    a, b, p, q, truth = two_gaussians()
    x = p.sample((300,))
    made = compare(
        {m: log_likelihood(g.model, g.mean_field_guide, x, num_samples=400) for m, g in (("a", a), ("b", b))}
    )
    found = by_name(made)["b"]
    assert abs(found.difference - truth) < 4 * found.difference_se
    assert abs(found.difference - (q.log_prob(x) - p.log_prob(x)).mean()) < 4 * found.difference_mc_se
    assert found.difference_mc_se < found.difference_se
    apart = sum(m.data_se**2 for m in made.models) ** 0.5
    assert apart > 3 * found.difference_se  # the error that forgets the pairing


def test_the_paired_error_covers_data_and_particles_once():
    """z = (Δ − truth) / SE over 400 data sets has sd 1 (its own s.e.: 1 / √800). Monte Carlo noise of 0.5 nats a row."""
    _, _, p, q, truth = two_gaussians()
    z, unpaired, twice = [], [], []
    for _ in range(400):
        x = p.sample((60,))
        noisy = [evidence(d.log_prob(x) + 0.5 * torch.randn(60, dtype=torch.float64), mc_se=0.5) for d in (p, q)]
        made = compare(dict(zip("ab", noisy, strict=True)))
        a, b, other = *by_name(made).values(), made.models[1]
        error = (by_name(made)["b"].difference - by_name(made)["a"].difference) - truth
        z.append(error / other.difference_se)
        unpaired.append(error / (a.data_se**2 + b.data_se**2) ** 0.5)
        twice.append(error / (other.difference_se**2 + other.difference_mc_se**2) ** 0.5)
    off = 4 / 800**0.5
    assert abs(np.mean(z)) < 4 / 400**0.5 and abs(np.std(z) - 1) < off
    assert np.std(unpaired) < 1 - off and np.std(twice) < 1 - off


def test_the_same_rows_twice_differ_by_nothing():
    e = evidence(torch.randn(9))
    other = compare({"a": e, "b": evidence(e.log_px)}).models[1]
    assert (other.name, other.difference, other.difference_se) == ("b", 0.0, 0.0)


def test_what_is_not_known_is_none_and_says_so():
    one_row = compare({"a": evidence([-1.0]), "b": evidence([-2.0])})
    assert one_row.models[1].difference_se is None and one_row.models[1].data_se is None
    one_particle = compare({"a": evidence([-1.0, -2.0], mc_se=torch.nan), "b": evidence([-2.0, -2.5], mc_se=0.1)})
    assert one_particle.models[0].mc_se is None and one_particle.models[1].difference_mc_se is None
    assert one_particle.models[1].difference_se == pytest.approx(0.25)
    assert "unknown" in str(one_row) and "unknown" in str(one_particle)
    assert json.dumps(one_row.to_dict(), allow_nan=False)


def test_bounds_that_are_loose_are_noted():
    made = compare({"a": evidence([-1.0, -2.0]), "b": evidence([-2.0, -2.0], num_samples=5000, ess=3.0)})
    assert "50, 5000 samples" in made.notes[0] and made.notes[1].startswith("b: rows with an ESS below 10")
    assert compare({"a": evidence([-1.0, -2.0]), "b": evidence([-2.0, -2.0])}).notes == ()


GOOD = evidence([-1.0, -2.0, -3.0])


@pytest.mark.parametrize(
    ("given", "more", "error", "says"),
    [
        ({}, {}, UsageError, "two models or more, got 0"),
        ({"a": GOOD}, {}, UsageError, "two models or more, got 1"),
        ([("a", GOOD), ("a", GOOD)], {}, UsageError, "'a' stands for 2 models"),
        ({"a": GOOD, "b": GOOD}, {"seconds": {"c": 1.0}}, UsageError, "seconds of 'c'.*a, b"),
        ({"a": GOOD, "b": evidence([-1.0, -2.0])}, {}, ShapeError, "'a' has 3 rows and 'b' has 2"),
        (
            {"a": GOOD, "b": evidence([-1.0, -torch.inf, torch.nan])},
            {},
            DataError,
            r"'b' is not finite in 2 of 3 rows, the first \[1, 2\]",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(given, more, error, says):
    with pytest.raises(error, match=says):
        compare(given, **more)


def exactly(log_px, error=0.0, measure="counts"):
    """What an oracle says of the same rows."""
    log_px = torch.as_tensor(log_px, dtype=torch.float64)
    error = torch.full_like(log_px, error)
    return Exact(log_px, error, error < 1e-4, "by hand", measure, "")


def test_whatever_has_log_px_is_compared():
    """An oracle, annealing and importance sampling: what one does not have is left open, and the methods are named."""
    annealed = ais(GP.model, GP.guide, torch.tensor([1.0, 2.0, 3.0]), num_temperatures=3, num_chains=4, verbose=False)
    made = compare(
        {"exact": exactly([-1.0, -2.0, -2.5], 1e-3), "annealed": annealed, "sampled": evidence([-9.0, -9, -9])}
    )
    first, second, third = (by_name(made)[name] for name in ("exact", "annealed", "sampled"))
    assert (first.gap, first.low_ess, first.num_samples, first.flagged) == (None, None, None, 1.0)
    assert (
        second.method == "annealed importance sampling from the prior"
        and second.mc_se > 0
        and second.flagged == 1  # of four chains
    )
    assert third.difference == pytest.approx(-9 + 5.5 / 3) and third.num_samples == 50 and third.flagged == 0
    assert third.difference_mc_se == pytest.approx(1e-3 / 3**0.5)
    assert "annealed importance sampling from the prior, by hand, importance sampling" in made.notes[0]
    assert "100.0%" in str(made) and json.dumps(made.to_dict(), allow_nan=False)


@pytest.mark.parametrize("other", ["continuous", "score", "continuous x counts"])
def test_another_dominating_measure_is_refused(other):
    assert compare({"a": exactly([-1.0, -2.0]), "b": exactly([-2.0, -2.0], measure="binary")})
    assert compare({"a": exactly([-1.0, -2.0]), "b": exactly([-2.0, -2.0], measure=None)})
    with pytest.raises(DataError, match=f"'a' is of measure 'counts' and that of 'b' is '{other}'"):
        compare({"a": exactly([-1.0, -2.0]), "b": exactly([-2.0, -2.0], measure=other)})


# the tables


def odd():
    """Three models under names that mean something to LaTeX, rich and CSV."""
    numbers = torch.randn(3, 20, dtype=torch.float64) / 3 - 90
    names = (r"a_1 & 50% #2 {x} $y$ ~^\ <b>", 'b, "quoted"', "c [red]d[/red]")
    return compare(
        {n: evidence(v, mc_se=0.1 / 3) for n, v in zip(names, numbers, strict=True)}, seconds={names[0]: 1 / 3}
    )


def test_csv_keeps_every_bit():
    made = odd()
    lines = list(csv.DictReader(io.StringIO(made.csv())))
    assert len(lines) == len(made) == 3
    for line, model in zip(lines, made.models, strict=True):
        for field in (f.name for f in fields(Compared)):
            value = getattr(model, field)
            assert line[field] == "" if value is None else type(value)(line[field]) == value


def test_latex_is_escaped_and_holds_the_numbers():
    made = odd()
    text = made.latex()
    escaped = (
        r"a\_1 \& 50\% \#2 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{} \textless{}b\textgreater{}"
    )
    assert escaped in text
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{l" + "r" * 11 + "}" and lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 4 and all(line.replace(r"\&", "").count("&") == 11 for line in body)
    assert f"$-${abs(made.models[0].log_px):.3f}" in body[1] and "best" in body[1]


def test_the_table_shows_names_as_they_are_and_every_number():
    made = odd()
    shown = str(made)
    for model in made.models:
        assert model.name in shown and f"{model.log_px:.3f}" in shown
    for model in made.models[1:]:
        assert f"{model.difference:.3f}" in shown and f"{model.difference_se:.3f}" in shown
    assert "0.3" in shown and "active units" not in shown


def test_forest_draws_two_standard_errors():
    fig = forest(["best", "$a$", "b"], [0.0, -1.0, -3.0], [0.0, 0.25, None], "K = 50")
    ax = fig.axes[0]
    spans = [(s[0, 0], s[1, 0]) for bars in ax.collections for s in bars.get_segments()]
    assert spans == [(0.0, 0.0), (-1.5, -0.5), (-3.0, -3.0)]
    assert [t.get_text() for t in ax.texts] == ["best", "−1.00 ± 0.25", "−3.00 ± unknown"]
    assert ax.yaxis_inverted()  # the best on top


def test_a_difference_that_is_not_to_be_believed_is_drawn_without_errors():
    verdicts = ["best", "decided", "not to be believed"]
    ax = forest(["a", "b", "c"], [0.0, -1.0, -3.0], [0.0, 0.25, 0.1], "", verdicts).axes[0]
    assert [t.get_text() for t in ax.texts] == ["best", "−1.00 ± 0.25, decided", "−3.00, not to be believed"]
    faces = [line.get_markerfacecolor() for line in ax.get_lines() if line.get_marker() == "o"]
    assert faces[-1] == "white" != faces[0] and len(ax.collections) == 2 and "±" not in ax.get_title()


# verdicts


ROWS = torch.linspace(-1, 1, 40, dtype=torch.float64)


@pytest.mark.parametrize(
    ("worse", "best_flagged", "flagged", "verdict"),
    [
        (ROWS - 1.0, 0, 0, "decided"),
        (ROWS - 1.0, 4, 4, "decided"),  # a tenth is not more than a tenth
        (ROWS - 1.0, 0, 5, "not to be believed"),  # its own bound is loose: it may be the better one
        (ROWS - 1.0, 5, 0, "decided"),  # the best only leads by more
        (-0.9 * ROWS, 0, 0, "tie"),
        (-0.9 * ROWS, 5, 0, "not to be believed"),  # the best may lead by any amount
    ],
    ids=["believed", "tenth-flagged", "worse-loose", "best-loose", "within-errors", "within-errors-best-loose"],
)
def test_a_difference_is_decided_a_tie_or_not_to_be_believed(worse, best_flagged, flagged, verdict):
    noise = 0.3 * torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = compare(
        {"best": evidence(ROWS + 0.01, flagged=best_flagged), "other": evidence(worse + noise, flagged=flagged)}
    )
    best, other = made.models
    assert (best.name, best.verdict, other.verdict) == ("best", "best", verdict)
    shown, latex = str(made), made.latex()
    assert verdict in shown and verdict in latex and other.verdict in made.csv()
    for model in made.models:
        assert (
            (f"≥ {model.log_px:.2f}" in shown)
            == model.loose
            == (f"$\\geq$ {model.log_px:.2f}".replace("-", "$-$") in latex)
        )
    assert (f"{other.difference_se:.3f}" in shown) == (not other.loose and not best.loose)
    assert any("loose by an amount that nobody knows" in note for note in made.notes) == (best.loose or other.loose)


@pytest.mark.parametrize(("models", "times"), [(2, 1.96), (6, 2.58), (11, 2.81)])
def test_many_comparisons_take_more_standard_errors(models, times):
    """Bonferroni's 5 per cent in many rows; a difference just within is a tie, one just beyond is decided."""
    rows = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = (rows - rows.mean()) / rows.std()  # of errors 1 / √4000
    at = times / 4000**0.5
    others = {f"low {i}": evidence(-9 + rows) for i in range(models - 2)}
    for shift, verdict in ((0.99 * at, "tie"), (1.01 * at, "decided")):
        made = compare({"best": evidence(0 * rows), "close": evidence(rows - shift), **others})
        assert by_name(made)["close"].verdict == verdict


def test_few_rows_take_more_standard_errors():
    """Three rows: Student's t with 2 degrees of freedom takes 4.3 standard errors; one row has none."""
    spread = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * 3**0.5  # of standard error 1
    for shift, verdict in ((4.2, "tie"), (4.4, "decided")):
        assert compare({"a": evidence([0.0] * 3), "b": evidence(spread - shift)}).models[1].verdict == verdict
    one = compare({"a": evidence([0.0]), "b": evidence([-99.0])}).models[1]
    assert one.verdict == "not to be believed"


def test_an_oracle_that_flags_its_rows_decides_nothing():
    """It is no bound: as the best it may be too high."""
    made = compare({"oracle": exactly([-1.0, -2.0, -3.0], 1e-3), "sampled": evidence([-9.0, -9.1, -9.2])})
    assert made.models[1].verdict == "not to be believed" and "≈ -2.00" in str(made) and "≥" not in str(made)
    sure = compare({"oracle": exactly([-1.0, -2.0, -3.0]), "sampled": evidence([-9.0, -10.1, -11.2])})
    assert sure.models[1].verdict == "decided" and "≈" not in str(sure)


# evidence read back


def test_evidence_comes_back_to_the_last_bit():
    e = Evidence(*torch.randn(5, 30, dtype=torch.float64), num_samples=7, seed=3)
    e.mc_se[2] = torch.nan
    again = Evidence.from_csv(e.rows_csv(), num_samples=7, seed=3)
    for name in ("log_px", "mc_se", "ess", "elbo", "elbo_se"):
        assert torch.equal(getattr(e, name).nan_to_num(9), getattr(again, name).nan_to_num(9))
    assert again.summary() == Evidence.from_csv(again.rows_csv(), num_samples=7, seed=3).summary()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ("row,log_px,mc_se,ess,elbo\n0,1,1,1,1\n", "'elbo_se' is missing"),
        ("row,log_px,mc_se,ess,elbo,elbo_se\n0,1,1,1,1,1\n2,1,1,1,1,1\n", "not numbered 0 to 1"),
        ("row,log_px,mc_se,ess,elbo,elbo_se\n0,x,1,1,1,1\n", "no number"),
        ("row,log_px,mc_se,ess,elbo,elbo_se\n0,1,1\n", "no number"),
    ],
)
def test_a_damaged_csv_is_refused(text, says):
    with pytest.raises(DataError, match=says):
        Evidence.from_csv(text, num_samples=1, seed=0)


def test_of_densities_and_probabilities_side_by_side_a_note_says_what_cannot_be_seen():
    """Which columns have the density is in no measure: the command line looks, and here it is said."""
    models = {name: evidence([-1.0, -2.0 - shift]) for name, shift in (("a", 0.0), ("b", 1.0))}
    mixed = {name: replace(e, measure="continuous x counts") for name, e in models.items()}
    assert MIXED in compare(mixed).notes
    for measure in ("continuous", "binary x counts", ""):
        assert MIXED not in compare({name: replace(e, measure=measure) for name, e in models.items()}).notes
