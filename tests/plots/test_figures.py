"""Pictures: they draw, without pyplot, the same file each time, and what they show is what they were given."""

import errno
import os

import numpy as np
import pytest

from pyro_vae.errors import StorageError
from pyro_vae.plots import bars, calibration, evidence, figures, images, latents, marginals
from pyro_vae.plots.khat import khat_histogram
from tests.helpers import late_imports
from tests.helpers.children import printed_by

POINTS = [
    {"epoch": e, "log_px": -90 - 50 / e, "log_px_mc_se": 0.1, "elbo": -95 - 60 / e, "num_samples": 200, "rows": 40}
    for e in (1, 3, 30)
]
HISTORY = [{"epoch": e, "elbo": -100 - 200 / e, "train_elbo": -95 - 200 / e} for e in range(1, 30)]
GAPS = {
    "a": {"approximation": {"value": 1.4, "mc_se": 0.1}, "amortisation": {"value": 0.8, "mc_se": None}},
    "b_$x$": {"approximation": {"value": 0.4, "mc_se": 0.1}, "amortisation": {"value": -0.05, "mc_se": 0.1}},
}
GAPS = {name: parts | {"rows": 10, "rows_flagged": 1} for name, parts in GAPS.items()}
PARTS = {
    "a": {
        "rows": 100,
        "parts": {"mutual information": {"value": 3.0, "mc_se": 0.1}, "marginal KL": {"value": 2.0, "mc_se": 0.1}},
    },
    "b": {
        "rows": 50,
        "parts": {k: {"value": 1.0, "mc_se": 0.0} for k in ("mutual information", "total correlation", "dw")},
    },
}
CALIBRATION = {
    "names": ["z[0]", "z[1]", "log p(x, z)"], "differences": [[0.2, 0.1, -0.2], [0.0, 0.02, 0.01], [0.0, 0.01, 0.02]],
    "lower": [-0.1, -0.12, -0.1], "upper": [0.1, 0.12, 0.1], "coverage": 0.953, "adjusted": [1e-6, 0.3, 0.8],
    "words": ["too narrow", "uniform", "uniform"], "level": 0.05, "rows": 100, "num_draws": 3,
}  # fmt: skip
CHECK = {
    "kind": "posterior", "rows": 8, "num_draws": 20,
    "statistics": {
        "mean": {"observed": [2.5], "replicated": list(np.linspace(0, 2, 20)), "p": 0.0},
        "share of zeros": {"observed": [0.0], "replicated": [0.0] * 20, "p": 1.0},
        "log p(x | z)": {"observed": list(np.linspace(-3, -2, 20)), "replicated": list(np.linspace(-4, -1, 20)), "p": 0.4},
    },
}  # fmt: skip
BRACKETS = {
    name: {
        "importance": -20.5, "importance_mc_se": 0.02, "annealing": -20.4, "annealing_mc_se": None, "lower": -20.4,
        "upper": -20.3, "upper_mc_se": 0.01, "upper_is": kind, "gap": 0.1, "gap_se": 0.03, "rows": 9,
    }
    for name, kind in (("drawn", "strict in expectation"), ("real", "approximate"))
}  # fmt: skip
EXACT = {"log_px": -20.35, "method": "quadrature in 2 dimensions"}
GROWING = [
    {"num_samples": k, "rows": 9, "log_px": -20.4 - 1 / k, "log_px_mc_se": se, "jackknife": j, "elbo": -21.5}
    for k, se, j in ((1, None, None), (10, 0.1, -20.3), (100, 0.05, -20.41))
]
KHAT, FLAGGED, X = np.array([0.1, 0.9, -np.inf, 0.75, np.nan, 0.3, 0.7, 0.65]), [1, 3, 4, 6], np.eye(8, 16)
SPENT = {"kl": {"value": 2.5, "mc_se": 0.05}, "reconstruction": {"value": -18.5, "mc_se": 0.1}}
CURVE = ([0.0, 1.0, 2.0, 2.6], [90.0, 21.0, 18.2, 17.75])
DRAWN = {
    "bracket": lambda: evidence.bracket_ends(BRACKETS, {"drawn": EXACT}),
    "bracket without exact": lambda: evidence.bracket_ends({"real": BRACKETS["real"] | {"gap_se": None}}),
    "khat": lambda: khat_histogram(KHAT, FLAGGED, 0.7, X, (1, 4, 4), most=5),
    "khat in colour": lambda: khat_histogram(KHAT, FLAGGED, 0.7, np.eye(8, 48), (3, 4, 4), most=5),
    "khat of a table": lambda: khat_histogram(KHAT, FLAGGED, 0.7, X, (16,)),
    "khat, none flagged": lambda: khat_histogram(KHAT[:1], [], 0.7, X[:1], (1, 4, 4)),
    "khat, no tails": lambda: khat_histogram(np.full(5, -np.inf), [], 0.7),
    "convergence": lambda: evidence.convergence_curve(GROWING, EXACT),
    "rate and distortion": lambda: evidence.rate_distortion_curve(*CURVE, {"a": SPENT, "b_$x$": SPENT}, -20.35),
    "gaps": lambda: bars.gap_bars(GAPS),
    "decomposition": lambda: bars.decomposition_bars(PARTS),
    "training": lambda: figures.training_curve(HISTORY, floor=-110.0),
    "evidence": lambda: figures.evidence_curve(POINTS),
    "images": lambda: images.image_grid([np.eye(16)[:3], np.eye(16)[:2]], ["a", "b"], (1, 4, 4), "t"),
    "colour": lambda: images.sample_grid(np.random.default_rng(0).random((5, 48)), (3, 4, 4), columns=3),
    "table": lambda: images.sample_grid(np.arange(12.0).reshape(2, 6), (6,)),
    "units": lambda: latents.unit_bars([0.1, 2.0, 0.001], [0.5, 0.9, 0.0]),
    "units without activity": lambda: latents.unit_bars([0.5]),
    "40 units": lambda: latents.unit_bars(np.linspace(0, 2, 40), np.zeros(40)),
    "latent 1": lambda: latents.latent_map(np.arange(5.0)[:, None], None),
    "latent 2": lambda: latents.latent_map(np.eye(2), np.array([0, 1])),
    "latent names": lambda: latents.latent_map(np.eye(3), np.array(["_a", "$b", "c" * 99])),
    "latent 7": lambda: latents.latent_map(np.random.default_rng(0).normal(size=(30, 7)), np.arange(30) % 10),
    "calibration": lambda: calibration.ecdf_differences(CALIBRATION),
    "one quantity": lambda: calibration.ecdf_differences(CALIBRATION, most=1),
    "predictive check": lambda: calibration.predictive_panels(CHECK),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_the_same_picture_twice(name, tmp_path):
    a, b = (figures.save(DRAWN[name](), tmp_path / f"{i}.png").read_bytes() for i in (1, 2))
    assert a == b and len(a) > 3000


def test_gradients_that_coincide_show_as_marks_within_marks_and_ticks_are_plain_numbers():
    noise = {"encoder": {"snr_mean": 0.5}, "decoder": {"snr_mean": 0.2}}
    of_k = {
        "objectives": dict.fromkeys(("pathwise", "stl", "dreg"), noise),
        "snr_floor": 0.04,
        "draws": 400,
        "rows": 32,
    }
    fig = figures.signal_to_noise({1: of_k, 64: of_k})
    figures.png(fig)
    for ax in fig.axes:
        sizes = [line.get_markersize() for line in ax.lines[:3]]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
        assert [line.get_zorder() for line in ax.lines[:3]] == [2, 2, 2]  # the later, smaller one is above
    assert "0.1" in [tick.get_text() for tick in fig.axes[0].get_yticklabels()]


def test_evidence_curve_shows_its_numbers():
    ax = figures.evidence_curve(POINTS).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert np.allclose(lines["ELBO"], [p["elbo"] for p in POINTS])
    assert any("5.33 nats" in text.get_text() for text in ax.texts)


def test_what_is_said_of_draws_beyond_lies_above_every_bar():
    values, draws = np.repeat(np.arange(7.0), 3), np.concatenate([np.full(10, 6.0), np.full(2, 99.0)])
    fig = marginals.marginal_panels(["a"], [values], [draws], ["0.5 apart"])
    fig.draw_without_rendering()
    (ax,) = fig.axes
    tops = [patch.get_window_extent().y1 for patch in ax.patches]
    assert "17% of draws beyond" in ax.get_legend().get_texts()[0].get_text()
    assert max(tops) <= ax.get_legend().get_texts()[0].get_window_extent().y0


@pytest.mark.parametrize("draw", ["evidence", "training"])
def test_legends_stand_beside_the_curves_and_inside_the_picture(draw):
    """A legend within the axes lies on a curve sooner or later."""
    fig = DRAWN[draw]()
    fig.draw_without_rendering()
    (legend,), (ax,) = fig.legends, fig.axes
    box, whole = legend.get_window_extent(), fig.bbox
    assert not box.overlaps(ax.get_window_extent()) and not box.overlaps(ax.xaxis.label.get_window_extent())
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0


def test_training_curves_mark_the_best_epoch_and_show_an_ordinary_first_one():
    history = [{"epoch": e, "elbo": -10 - 1 / (e + 9), "train_elbo": -10 - 1 / (e + 9)} for e in range(1, 41)]
    ax = figures.training_curve(history, -10.05).axes[0]
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert "their highest, epoch 40" in lines and "independent elements (test rows), exact" in lines
    assert ax.get_ylim()[0] < -10.1
    history[0]["elbo"] = -1e4
    assert figures.training_curve(history).axes[0].get_ylim()[0] > -20


def test_unit_bars_are_sorted_and_coloured_by_activity():
    """Not by their KL: a unit of little KL can be active, and one of much (a scale that is off) need not be."""
    ax = latents.unit_bars([0.1, 2.0, 0.7], [0.5, 0.9, 0.005]).axes[0]
    bars = sorted((bar.get_x(), bar.get_height(), bar.get_facecolor()) for group in ax.containers for bar in group)
    assert [height for _, height, _ in bars] == [2.0, 0.7, 0.1]
    assert bars[0][2] == bars[2][2] != bars[1][2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "0"]
    assert ax.get_title() == "KL of each unit: 2 of 3 active"


def test_gap_bars_end_where_the_gap_does():
    """Parts end to end; a part below 0 goes to the left; the sum is said in words."""
    ax = bars.gap_bars(GAPS).axes[0]
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    assert np.allclose(ends[:4], [(0, 1.4), (1.4, 2.2), (0, 0.4), (0, -0.05)])
    assert [text.get_text() for text in ax.texts] == ["2.200 = 1.400 + 0.800", "0.350 = 0.400 − 0.050"]
    assert len(ax.collections) == 3  # error bars, where an error is known


def test_decomposition_bars_say_how_much_information_there_can_be():
    ax = bars.decomposition_bars(PARTS).axes[0]
    assert "log 50 = 3.91, log 100 = 4.61" in ax.get_xlabel()
    assert [text.get_text() for text in ax.texts] == ["5.00 = 3.00 + 2.00", "3.00 = 1.00 + 1.00 + 1.00"]


def test_pictures_leave_pyplot_alone():
    printed_by(late_imports.pictures_leave_pyplot_alone)


@pytest.mark.parametrize(("count", "most"), [(1, 10), (2, 10), (7, 10), (150, 10), (400, 12)])
def test_thin_is_from_first_to_last(count, most):
    chosen = figures.thin(count, most)
    assert chosen[0] == 1 and chosen[-1] == count and len(chosen) <= most and chosen == sorted(set(chosen))


def test_a_quantity_of_fewer_rows_has_a_band_of_its_own():
    wide = {"lower_by_quantity": [[-0.5] * 3] * 3, "upper_by_quantity": [[0.5] * 3] * 3}
    ends = [calibration.ecdf_differences(c).axes[0].collections[0].get_paths()[0].vertices[:, 1].max()
            for c in (CALIBRATION, CALIBRATION | wide)]  # fmt: skip
    assert ends == [0.12, 0.5]


def test_ecdf_differences_show_curve_band_and_verdict():
    """Rejected quantities stand out; where there is no room, the least p-values and log p(x, z) are shown."""
    fig = calibration.ecdf_differences(CALIBRATION)
    assert [ax.get_title() for ax in fig.axes] == [
        "z[0]\ntoo narrow, p 1e-06", "z[1]\nuniform, p 0.3", "log p(x, z)\nuniform, p 0.8"
    ]  # fmt: skip
    curve, other = (ax.get_lines()[0] for ax in fig.axes[:2])
    assert np.allclose(curve.get_ydata(), [0, 0.2, 0.1, -0.2, 0]) and np.allclose(
        curve.get_xdata(), [0, 0.25, 0.5, 0.75, 1]
    )
    assert curve.get_color() != other.get_color()
    assert fig.axes[0].collections[0].get_datalim(fig.axes[0].transData).extents[1::2].tolist() == [-0.12, 0.12]
    few = calibration.ecdf_differences(CALIBRATION, most=2)
    assert [ax.get_title().split("\n")[0] for ax in few.axes] == ["z[0]", "log p(x, z)"]


def test_predictive_panels_show_the_data_beside_the_model():
    mean, zeros, log_p = calibration.predictive_panels(CHECK).axes
    assert mean.get_title() == "mean\np < 0.05" and zeros.get_title() == "share of zeros\nalways the same"
    assert log_p.get_title() == "log p(x | z)\np 0.400"
    assert mean.get_lines()[0].get_xdata()[0] == 2.5
    assert sum(bar.get_height() for bar in mean.containers[0]) == 20


def test_bracket_ends_tell_strict_from_approximate():
    """By mark, line and name; the exact value is drawn where it is known, and no error where it is not."""
    strict, real = evidence.bracket_ends(BRACKETS, {"drawn": EXACT}).axes
    assert [t.get_text().split("\n")[1] for t in strict.get_yticklabels()] == [
        "lower end",
        "lower end",
        "upper end, strict",
    ]
    assert real.get_yticklabels()[2].get_text() == "reverse annealing\nAPPROXIMATE upper end"
    marks = {ax: [line for line in ax.get_lines() if line.get_marker() in "<>"] for ax in (strict, real)}
    for found in marks.values():
        assert [(m.get_marker(), m.get_xdata()[0]) for m in found] == [(">", -20.5), (">", -20.4), ("<", -20.3)]
    fills = [found[2].get_markerfacecolor() for found in marks.values()]
    assert fills == [figures.ORANGE, "white"]
    spans = [[s[:, 0].tolist() for s in bar.get_segments()] for bar in strict.collections]
    assert np.allclose(np.array(spans)[:, 0], [(-20.54, -20.46), (-20.4, -20.4), (-20.32, -20.28)])
    assert [bar.get_linestyle()[0][1] is None for bar in real.collections] == [True, True, False]
    at = [line.get_xdata()[0] for line in strict.get_lines() if list(line.get_ydata()) == [0, 1]]
    assert at == [-20.35] and strict.get_title("left") == "9 drawn: upper − lower end = 0.100 ± 0.030 (s.e. over rows)"
    assert not [line for line in real.get_lines() if line.get_xdata()[0] == -20.35]


def test_khat_histogram_counts_every_row_once_and_shows_the_flagged():
    """No tail (−∞) at the left edge; not known (NaN) only counted; the worst row first, each under its own k̂."""
    fig = khat_histogram(KHAT, FLAGGED, 0.7, X, (1, 4, 4), most=5)
    ax, *images = [ax for ax in fig.axes if ax.images or ax.patches]
    kept, flagged = ([bar.get_height() for bar in group] for group in ax.containers)
    assert (sum(kept), sum(flagged)) == (4, 3) and kept[0] >= 1
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[0] if bar.get_height()]
    starts = [bar.get_x() for bar in ax.containers[1] if bar.get_height()]
    assert max(ends) <= 0.7 + 1e-9 and min(starts) >= 0.7 - 1e-9  # the threshold parts them
    assert ax.get_title() == "4 of 8 rows flagged"
    assert "(1 not known)" in [t.get_text() for t in fig.subfigs[0].legends[0].get_texts()]
    assert [i.get_title() for i in images] == ["?", "0.90", "0.75", "0.70"]
    assert [int(i.images[0].get_array()[..., 0].argmin()) for i in images] == [4, 1, 3, 6]  # 1 is black
    few = khat_histogram(KHAT, FLAGGED, 0.7, X, (1, 4, 4), most=2)
    assert len([i for i in few.axes if i.images]) == 2
    assert few.subfigs[1].get_suptitle().startswith("2 of 4 flagged")


def test_convergence_curve_marks_the_jackknife_as_no_bound():
    ax = evidence.convergence_curve(GROWING, EXACT).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert np.allclose(lines["jackknife: no bound"], [np.nan, -20.3, -20.41], equal_nan=True)
    bound = next(y for name, y in lines.items() if "a lower bound" in name)
    assert np.allclose(bound, [-21.4, -20.5, -20.41])
    assert lines["ELBO (100 particles)"][0] == -21.5 and lines["log p(x), quadrature in 2 dimensions"][0] == -20.35
    band = ax.collections[0].get_datalim(ax.transData).extents
    assert np.allclose(band, [10, -20.7, 100, -20.3])  # K = 1 has no error


def test_rate_distortion_puts_the_encoder_its_gap_above():
    """Its line of R + D = −ELBO has slope −1, and lies KL(q ‖ posterior) above that of the posterior."""
    ax = evidence.rate_distortion_curve(*CURVE, {"a": SPENT}, -20.35).axes[0]
    lines = {line.get_label(): line for line in ax.get_lines()}
    own, best = lines["R + D = −ELBO = 21.00"], lines["R + D = −log p(x) = 20.35"]
    assert np.allclose(own.get_ydata() - best.get_ydata(), 0.65)
    assert np.allclose(np.diff(own.get_ydata()), -np.diff(own.get_xdata()))
    end = lines["its end, β = 1: the posteriors"]
    assert end.get_xdata()[0] + end.get_ydata()[0] == pytest.approx(20.35)
    assert ax.get_ylim()[0] < 17.75 and ax.get_ylim()[1] < 90 and ax.get_xlim()[1] > 2.6


def test_a_full_disk_leaves_the_picture_that_was_there(tmp_path, monkeypatch):
    picture = figures.save(figures.training_curve(HISTORY), tmp_path / "figures" / "training.png")
    before = picture.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"cannot write .*training\.png.*Free some space"):
            figures.save(figures.training_curve(HISTORY[:5]), picture)
    assert picture.read_bytes() == before and list(picture.parent.iterdir()) == [picture]
    with pytest.raises(StorageError, match="cannot write"):  # a file in the place of the folder
        figures.save(figures.training_curve(HISTORY), picture / "more.png")


def test_a_map_of_codes_has_the_names_of_labels():
    legend = latents.latent_map(np.eye(3), np.array(["Gentoo", "_Adelie", "Gentoo"])).axes[0].get_legend()
    assert [text.get_text().strip("\u200b") for text in legend.get_texts()] == ["Gentoo", "_Adelie"]


def test_a_map_of_many_labels_names_as_many_as_there_is_room_for():
    fig = latents.latent_map(np.eye(60), np.array([f"name {i % 40}" for i in range(60)]))
    fig.draw_without_rendering()
    box = fig.axes[0].get_legend().get_window_extent()
    assert fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1
    marks = {
        (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
        for dots in latents.latent_map(np.eye(20), np.arange(20)).axes[0].collections
    }
    assert len(marks) == 20  # where ten colours come again, the marks are others
