"""Commands that look into the gap: what they write is of the weights that the run has, and enters its report."""

import json

import pytest

from pyro_vae import gaps, load_run
from pyro_vae.cli.main import main
from pyro_vae.errors import RunFolderError
from pyro_vae.runs.load import open_data
from pyro_vae.runs.report.facts import read_facts
from pyro_vae.runs.report.page import write_report

QUICK = ["--rows", "4", "--device", "cpu"]


def page_of(run):
    return (run / "report.html").read_text()


def test_a_split_of_the_gap_is_that_of_the_programs_and_enters_the_report(run, capsys):
    assert main(["gaps", str(run), *QUICK, "--steps", "4", "--chunk-size", "128"]) == 0
    opened = load_run(run)
    direct = gaps(
        opened.vae.model, opened.vae.guide, open_data(opened).test.x[:4], steps=4, chunk_size=128, verbose=False
    )
    kept = json.loads((run / "gaps.json").read_text())
    assert kept["of_gap"]["gap"]["value"] == pytest.approx(direct.gap.mean().item(), abs=1e-9) and kept["rows"] == 4
    assert str(direct) in capsys.readouterr().out
    assert "What the gap is spent on" in page_of(run) and (run / "figures" / "gaps.png").is_file()


def test_a_bracket_of_some_rows_enters_the_report(run, capsys):
    assert main(["bracket", str(run), *QUICK, "--num-temperatures", "5", "--num-chains", "4"]) == 0
    kept = json.loads((run / "bracket.json").read_text())
    assert (kept["rows"] == 4 and kept["lower"] <= kept["upper"] + 1e-9) or kept["gap"] < 0
    assert "annealed: log p(x)" in capsys.readouterr().out and "Between two ends" in page_of(run)


def split_of(run, flagged=0, **change):
    """What gaps.json holds; `change` is of its split, or of what stands about it."""
    part = {"value": 1.25, "mc_se": 0.125, "data_se": 0.25}
    about = {"rows": 4, "rows_flagged": flagged, "weights": json.loads((run / "evidence.json").read_text())["weights"]}
    about |= {key: value for key, value in change.items() if key in about}
    split = {"gap": part, "approximation": part, "amortisation": part}
    return about | {"of_gap": split | {key: value for key, value in change.items() if key not in about}}


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "0" * 64},
        {"rows": "4"},
        {"rows": 0},
        {"rows_flagged": None},
        {"gap": 1.0},
        {"gap": {"value": "<b>"}},
        {"amortisation": {"value": 1.0, "mc_se": [1]}},
    ],
    ids=["other-weights", "rows-text", "no-rows", "no-flags", "no-parts", "text", "list"],
)
def test_what_is_of_other_weights_or_no_split_is_left_out_or_refused(run, change):
    """A stranger's file may hold anything."""
    (run / "gaps.json").write_text(json.dumps(split_of(run)))
    assert read_facts(run).gaps is not None
    (run / "gaps.json").write_text(json.dumps(split_of(run, **change)))
    try:
        write_report(run)
    except RunFolderError as error:
        assert "gaps.json cannot be used" in str(error)
        return
    assert read_facts(run).gaps is None and "What the gap is spent on" not in page_of(run)


def test_a_loose_split_has_a_bound_without_an_error(run):
    (run / "gaps.json").write_text(json.dumps(split_of(run, flagged=4)))
    write_report(run)
    page = page_of(run)
    assert page.count("≥ 1.250 nats a row") == 2 and page.count("1.250 ± 0.125 (Monte Carlo) nats a row") == 1


@pytest.mark.parametrize("flags", [["--rows", "0"], ["--steps", "0"], ["--rows", "-3"]], ids=["rows", "steps", "less"])
def test_numbers_that_are_none_are_refused(run, flags, capsys):
    assert main(["gaps", str(run), "--device", "cpu", *flags]) == 2
    assert not (run / "gaps.json").exists() and "Traceback" not in capsys.readouterr().err
