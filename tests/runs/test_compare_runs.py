"""Saved runs compared: on the same rows of the same data, or refused by what differs."""

import inspect
import json
import shutil

import pytest

from pyro_vae import Evidence
from pyro_vae.cli.main import main
from pyro_vae.common.digests import sha256
from pyro_vae.errors import DataError, PyroVAEError, RunFolderError, UsageError
from pyro_vae.evidence.compare import compare
from pyro_vae.evidence.comparison import Comparison
from pyro_vae.likelihoods import FAMILIES
from pyro_vae.plots.figures import save
from pyro_vae.runs import folder
from pyro_vae.runs.compare_runs import compare_runs, kind, scored
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluations import shared
from tests.helpers.comparison import by_name

RUNS = ("narrow", "wide")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """Two small runs on digits."""
    path = tmp_path_factory.mktemp("trained")
    for name, hidden in zip(RUNS, ("4", "16"), strict=True):
        options = [
            "--hidden",
            hidden,
            "--latent-dim",
            "2",
            "--epochs",
            "1",
            "--num-samples",
            "20",
            "--batch-size",
            "256",
        ]
        options += ["--device", request.config.getoption("--device")]
        assert main(["train", "--run", str(path / name), *options]) == 0
    return path


@pytest.fixture
def runs(tmp_path, trained):
    """Copies of them."""
    return [shutil.copytree(trained / name, tmp_path / name) for name in RUNS]


def edit(path, **changes):
    """Changes a run's JSON as if it had been written so: config.data_seed=1 is config__data_seed=1, of evidence.json
    evidence__split."""
    for key, value in changes.items():
        where, _, name = key.partition("__")
        file = path / ("evidence.json" if where == "evidence" else "config.json")
        record = json.loads(file.read_text())
        (record if where == "evidence" else record[where])[name] = value
        folder.write_json(file, record)


def table(path, content):
    """Another evidence.csv, as if it had been written so."""
    (path / "evidence.csv").write_bytes(content)
    edit(path, evidence__csv_sha256=sha256(content))


def test_runs_compare_by_their_evidence(runs):
    made = compare_runs(runs)
    loaded = {p.name: Evidence.from_csv((p / "evidence.csv").read_text(), num_samples=20, seed=0) for p in runs}
    direct = compare(loaded)
    for a, b in zip(made.models, direct.models, strict=True):
        numbers, others = ((m.log_px, m.difference, m.difference_se) for m in (a, b))
        assert a.name == b.name and numbers == pytest.approx(others, rel=1e-13)  # sums in another order of memory
        summary = json.loads((runs[0].parent / a.name / "evidence.json").read_text())
        assert (
            a.log_px == pytest.approx(summary["log_px"], rel=1e-13)
            and a.seconds == summary["training"]["seconds"]
            and a.num_samples == 20
        )
    assert made.rows == 180 and any("of training" in note for note in made.notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__digest": "f" * 64}, "as their data differ.*Train both on the same file"),
        ({"data__policy": "static binarization, once, seed 0"}, "values differ: counts 0..16 and static binarization"),
        (
            {"config__likelihood": "normal", "config__likelihood_options": {}},
            r"kind of log p\(x\) differ: log probability.*and log density.*units",
        ),
        ({"evidence__split": "digits, validation"}, "split differ: test and validation.*evaluate RUN --split"),
    ],
)
def test_runs_whose_numbers_are_not_of_the_same_thing_are_refused(runs, changes, says):
    edit(runs[1], **changes)
    with pytest.raises(DataError, match=says) as caught:
        compare_runs(runs)
    assert "'narrow' and 'wide'" in str(caught.value)
    assert main(["compare", *map(str, runs)]) == 3


def test_own_files_are_compared_on_the_same_shuffle_only(runs):
    for run, seed in zip(runs, (0, 1), strict=True):
        edit(
            run,
            config__data="a, b.npy",
            config__data_seed=seed,
            data__name="a, b.npy",
            evidence__split="a, b.npy, test",
        )
    with pytest.raises(DataError, match=r"shuffle of the data differ: 0 and 1.*--data-seed"):
        compare_runs(runs)
    edit(runs[1], config__data_seed=0)
    assert len(compare_runs(runs)) == 2


def test_digits_are_split_the_same_whatever_the_data_seed(runs):
    edit(runs[1], config__data_seed=1)
    assert len(compare_runs(runs)) == 2


def test_other_likelihoods_of_the_same_kind_are_compared(runs):
    edit(runs[1], config__likelihood="poisson", config__likelihood_options={})
    assert len(compare_runs(runs)) == 2


def test_runs_scored_on_other_rows_are_refused_and_other_samples_are_noted(runs, capsys):
    before = compare_runs(runs)
    assert main(["evaluate", str(runs[0]), "--rows", "50", "--num-samples", "20"]) == 0
    assert compare_runs(runs).models == before.models  # a look at fewer rows changes nothing
    for ending in (".json", ".csv"):
        (runs[0] / f"evidence{ending}").unlink()
    assert main(["compare", *map(str, runs)]) == 3
    assert "rows differ: 50 and 180" in capsys.readouterr().err
    assert main(["evaluate", str(runs[0]), "--rows", "180", "--num-samples", "30"]) == 0  # all rows, named otherwise
    assert main(["compare", *map(str, runs)]) == 0
    assert "scored with 20, 30 samples" in capsys.readouterr().out


def test_an_exact_run_is_compared_with_a_sampled_one(runs, capsys):
    assert main(["evaluate", str(runs[0]), "--rows", "6", "--method", "exact"]) == 0
    assert main(["evaluate", str(runs[1]), "--rows", "6", "--num-samples", "20"]) == 0
    assert main(["compare", *map(str, runs), "--rows", "6"]) == 0
    assert "importance sampling, quadrature in 2 dimensions: each falls short" in capsys.readouterr().out
    made = compare_runs(runs, rows=6)
    exact, sampled = by_name(made)["narrow"], by_name(made)["wide"]
    assert (exact.method, exact.gap, exact.low_ess, exact.num_samples) == (
        "quadrature in 2 dimensions",
        None,
        None,
        None,
    )
    assert exact.flagged == 0 and sampled.flagged == 1  # k̂ takes more than 20 particles
    assert save(made.plot(), runs[0] / "forest.png").is_file()


@pytest.mark.parametrize("name", ["evidence.json", "evidence.csv"])
def test_a_run_that_was_not_scored_is_sent_to_evaluate(runs, name):
    (runs[1] / name).unlink()
    with pytest.raises(RunFolderError, match=rf"{name}: it was never scored.*pyro-vae evaluate .*wide"):
        compare_runs(runs)
    assert main(["compare", *map(str, runs)]) == 4


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: edit(p, evidence__log_px=-1.0), "different evaluations"),
        (lambda p: edit(p, evidence__rows=179), "different evaluations"),
        (lambda p: edit(p, evidence__log_px="-1"), "cannot be used"),
        (lambda p: edit(p, evidence__split=None), "cannot be used"),
        (lambda p: edit(p, data__shape=8), "cannot be used"),
        (lambda p: table(p, b"row\n0\n"), "cannot be used.*log_px"),
        (lambda p: table(p, b"\xff\xfe"), "cannot be used"),
        (lambda p: (p / "evidence.csv").write_text("row\n0\n"), "different evaluations"),
        (lambda p: (p / "evidence.json").write_text("[]"), "is no evidence"),
        (lambda p: edit(p, config__likelihood="nothing"), "cannot be used.*nothing"),
        (lambda p: shutil.rmtree(p), "no run folder"),
    ],
)
def test_a_damaged_run_is_refused(runs, damage, says):
    damage(runs[1])
    with pytest.raises(RunFolderError, match=says):
        compare_runs(runs)
    assert main(["compare", *map(str, runs)]) == 4


def test_parts_of_ones_own_are_compared(runs):
    for run in runs:
        edit(run, config__prior="mine", config__likelihood="ours", config__likelihood_options={})
    with pytest.raises(RunFolderError, match=r"no likelihood 'ours'.*components="):
        compare_runs(runs)
    assert len(compare_runs(runs, {"ours": FAMILIES["poisson"].make()})) == 2
    edit(runs[1], config__likelihood="normal")
    with pytest.raises(DataError, match=r"log probability.*log density"):
        compare_runs(runs, {"ours": FAMILIES["poisson"].make()})


def test_active_units_are_those_of_the_epoch_kept(runs):
    (runs[0] / "metrics.jsonl").unlink()
    record = folder.read_json(runs[1] / "evidence.json")
    del record["training"]["metrics"]  # as of an older version; else lines of another training are not told
    folder.write_json(runs[1] / "evidence.json", record)
    lines = [{"epoch": epoch, "active_units": units} for epoch, units in ((1, 2), (2, 7))]
    (runs[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = compare_runs(runs)
    assert by_name(made)["wide"].active_units == 2 and by_name(made)["narrow"].active_units is None
    assert "active units" in str(made) and "validation rows" in made.notes[-1]
    (runs[1] / "metrics.jsonl").write_text('{"epoch": 1}\n')
    assert "active units" not in str(compare_runs(runs))


def test_folders_of_one_name_go_by_their_paths(runs, tmp_path):
    other = shutil.copytree(runs[1], tmp_path / "more" / "narrow")
    assert {m.name for m in compare_runs([*runs, other]).models} == {str(runs[0]), str(other), "wide"}
    with pytest.raises(UsageError, match="named twice"):
        compare_runs([runs[0], runs[0].parent / "wide" / ".." / "narrow"])


def beside(run, stem, flagged, **name):
    """Evidence by another proposal or method, as if it had been made so: the same numbers, so many of them flagged."""
    record = json.loads((run / "evidence.json").read_text())
    record |= {"rows_flagged": flagged, "evaluation": record["evaluation"] | name}
    shutil.copyfile(run / "evidence.csv", run / f"{stem}.csv")
    folder.write_json(run / f"{stem}.json", record)


def test_a_run_that_is_loose_by_the_common_method_is_taken_by_its_own_trusted_one(runs):
    defensive = {"stem": "evidence-test-defensive", "proposal": "defensive"}
    edit(runs[0], evidence__rows_flagged=90)
    edit(runs[1], evidence__rows_flagged=0)
    assert chosen(runs) == ["evidence", "evidence"]
    beside(runs[0], flagged=40, **defensive)  # loose, too
    assert chosen(runs) == ["evidence", "evidence"]
    assert any("narrow: evidence is taken" in note and "(22 %)" in note for note in compare_runs(runs).notes)
    beside(runs[0], flagged=0, **defensive)
    assert chosen(runs) == ["evidence-test-defensive", "evidence"]
    assert any("narrow by evidence-test-defensive, wide by evidence:" in note for note in compare_runs(runs).notes)
    beside(runs[1], flagged=0, **defensive)  # now by both
    assert chosen(runs) == ["evidence-test-defensive"] * 2
    assert not any("evidence" in note for note in compare_runs(runs).notes)


def test_a_common_method_that_is_not_loose_is_taken_and_a_better_one_is_told(runs):
    edit(runs[0], evidence__rows_flagged=9)
    edit(runs[1], evidence__rows_flagged=0)
    beside(runs[0], "evidence-test-widened", 0, proposal="widened")
    assert chosen(runs) == ["evidence", "evidence"]
    assert any("though evidence-test-widened is there (0 %)" in note for note in compare_runs(runs).notes)


def chosen(runs):
    return [e.stem for e in shared({run.name: scored(run, {}) for run in runs}).values()]


def test_the_command_line_compares(runs, tmp_path, capsys):
    files = {option: tmp_path / "new" / f"out.{option}" for option in ("csv", "latex")}
    files["figure"] = tmp_path / "new" / "forest.png"
    asked = [word for option, path in files.items() for word in (f"--{option}", str(path))]
    assert main(["compare", *map(str, runs), *asked]) == 0
    shown, made = capsys.readouterr().out, compare_runs(runs)
    assert isinstance(made, Comparison)
    for model in made.models:
        assert model.name in shown and f"≥ {model.log_px:.2f}" in shown  # K = 20 has no k̂
        assert f"next: pyro-vae evaluate {runs[0].parent / model.name} --method annealing" in shown
    assert f"{made.models[1].difference_se:.3f}" not in shown and "note: seconds" in shown
    assert made.models[1].verdict == "not to be believed" and "not to be believed" in shown
    assert files["csv"].read_text() == made.csv() and files["latex"].read_text() == made.latex()
    assert files["figure"].read_bytes().startswith(b"\x89PNG") and all(str(p) in shown for p in files.values())


def test_exit_codes_of_compare(runs, tmp_path):
    (tmp_path / "file").write_text("")
    two = list(map(str, runs))
    assert main(["compare"]) == 2 and main(["compare", two[0]]) == 2 and main(["compare", two[0], two[0]]) == 2
    assert main(["compare", *two, "--figure", str(tmp_path / "forest.jpg")]) == 2
    assert main(["compare", *two, "--csv", str(tmp_path / "file" / "a.csv")]) == 4
    assert main(["compare", *two, "--figure", str(tmp_path / "file" / "a.png")]) == 4
    assert main(["compare", two[0], str(tmp_path / "nowhere")]) == 4
    assert issubclass(DataError, PyroVAEError) and DataError.exit_code == 3


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "columns"])
def test_the_kind_of_log_px_is_that_of_the_familys_support(name):
    spec = FAMILIES[name]
    options = {k: 4 for k, default in spec.options.items() if default is inspect.Parameter.empty and k != "dim"}
    said = kind(Config(likelihood=name, likelihood_options=options), (1, 2, 2), {})
    whole = spec.support.startswith(("0 or 1", "counts", "classes", "ordered classes"))
    assert said.startswith("log probability" if whole else "log density")


def of_columns(blocks, names):
    return kind(Config(likelihood="columns", likelihood_options={"blocks": blocks}), (len(names),), {}, names)


def test_a_table_with_a_density_of_other_columns_is_another_kind():
    """normal and poisson columns either way: each is Lebesgue x counting, and no number of one is one of the other."""
    names = ["age", "visits"]
    either, other = of_columns("normal:1,poisson:1", names), of_columns("poisson:1,normal:1", names)
    assert either == "log density in the columns age, log probability in the others"
    assert other == "log density in the columns visits, log probability in the others"
    assert either == of_columns("log_normal:1,negative_binomial:1", names)  # the same measure, other families
    assert of_columns("normal:2", names) == kind(Config(likelihood="normal"), (2,), {})
    assert of_columns("poisson:1,bernoulli:1", names).startswith("log probability")


def test_runs_of_other_columns_are_told_which(runs):
    for run, names in zip(runs, (["age", "mass"], ["mass", "age", "site"]), strict=True):
        edit(run, data__columns=[{"name": name, "kind": "number"} for name in names])
    with pytest.raises(DataError, match=r"columns differ: no further one and 'site' beside those of both.*--columns"):
        compare_runs(runs)
    edit(runs[1], data__columns=None)  # as an older version left them
    assert len(compare_runs(runs)) == 2
