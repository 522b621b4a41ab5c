"""Runs of several seeds on disk: a run folder for each member, whole and damaged, and what the command line says of them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyro_vae import load_run
from pyro_vae.cli.main import main
from pyro_vae.common.optional import installed
from pyro_vae.common.processes import Processes
from pyro_vae.ensembles.ensemble import Ensemble
from pyro_vae.errors import DivergedError, Interrupted, RunFolderError, Terminated, UsageError
from pyro_vae.runs import folder, train_ensemble
from pyro_vae.runs import load as loading
from pyro_vae.runs.config import Config
from pyro_vae.runs.ensemble_folder import counted, note_diverged, read_list, read_summary
from pyro_vae.runs.evaluate_ensemble import load_ensemble
from pyro_vae.runs.list_runs import summary_of
from pyro_vae.runs.lock import locked
from pyro_vae.runs.member_trackers import trackers_of
from pyro_vae.runs.report.seeds import judge, render_seeds
from pyro_vae.runs.weights import save_model
from tests.helpers import kills
from tests.helpers.command_line import small
from tests.helpers.data import few_digits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def fewer():
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fewer):
    path = tmp_path_factory.mktemp("ensembles")
    more = ["--device", "cpu", "--num-samples", "60", "--hidden", "4", "--epochs", "1"]
    followed = ["--tracker", "tensorboard"] if installed("tensorboard") else []
    assert main(["train", "--run", str(path / "a"), "--seeds", "0", "3", *followed, *small(*more)]) == 0
    assert main(["train", "--run", str(path / "b"), "--seeds", "2", "--seed", "5", *small(*more)]) == 0
    return path


@pytest.fixture
def runs(trained, tmp_path):
    return [shutil.copytree(trained / name, tmp_path / name) for name in "ab"]


def test_each_member_is_a_run_of_its_own(runs):
    a, b = runs
    assert folder.read_json(b / "ensemble.json")["seeds"] == [5, 6]
    for seed in (0, 3):
        run = load_run(a / f"seed{seed}")
        assert run.config.seed == seed and run.evidence["num_samples"] == 60
        assert len(folder.read_lines(a / f"seed{seed}" / "metrics.jsonl")) == 1
    summary = folder.read_json(a / "seeds.json")
    means = torch.tensor([load_run(a / f"seed{seed}").evidence["log_px"] for seed in (0, 3)], dtype=torch.float64)
    assert summary["log_px"] == pytest.approx(means.mean().item())
    assert summary["log_px_seed_se"] == pytest.approx((means.std() / 2**0.5).item())
    assert [m["seed"] for m in summary["members"]] == [0, 1]  # of the particles, each member's own


def test_a_mean_over_seeds_of_weights_that_a_member_has_no_longer_is_not_told(runs, capsys):
    a, mean = runs[0], folder.read_json(runs[0] / "seeds.json")["log_px"]
    assert read_summary(a)["log_px"] == mean
    other = load_run(a / "seed3")
    next(other.vae.parameters()).data[0] += 1
    save_model(a / "seed3", other.vae)
    assert read_summary(a) == {}
    assert main(["show", str(a)]) == 0 and f"{mean:.2f}" not in capsys.readouterr().out
    assert "there is no mean over seeds" in render_seeds(a)
    about = summary_of(a)
    assert about["verdict"] == "do not use" and "seeds 0, 3" in about["asked"]["training"]


FLAGGED = {"none": (0, "trusted"), "some": (2, "loose bound"), "all": (9, "do not use")}


@pytest.mark.parametrize("case", [*FLAGGED, "below"])
def test_the_mean_over_seeds_has_a_verdict_as_a_run_has(case):
    """The same in a terminal, in a list and on the page; a mean below the floor is not to be used."""
    flagged, word = FLAGGED.get(case, (0, "do not use"))
    floor = {"log_px": -8.0 if case == "below" else -11.0}
    member = SimpleNamespace(main=object(), summary={"rows": 9, "floor": floor})
    s = {"log_px": -10.0, "rows": 9, "rows_flagged": flagged}
    s |= {f"log_px_{name}_se": 0.1 for name in ("seed", "mc", "data")}
    verdict = judge(Path("a"), s, {0: member, 3: member})
    assert verdict.word == word and verdict.next.startswith("pyro-vae ")
    assert ("below the floor" in verdict.why) == (case == "below")
    by_chance = SimpleNamespace(main=object(), summary={"rows": 9, "floor": {"log_px": -9.9, "cleared_by_se": 0.3}})
    if case == "none":
        verdict = judge(Path("a"), s, {0: by_chance, 3: by_chance})
        assert verdict.word == "trusted" and "no better than its floor beyond chance" in verdict.why
    assert judge(Path("a"), s, {0: member, 3: None}).word == judge(Path("a"), s, {}).word == "do not use"


@pytest.mark.skipif(not installed("tensorboard"), reason="no tensorboard here")
def test_each_member_is_a_training_of_its_own_to_a_tracker(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for seed in (0, 3):
        member = trained / "a" / f"seed{seed}"
        board = EventAccumulator(str(member / "tensorboard"))
        board.Reload()
        (line,) = folder.read_lines(member / "metrics.jsonl")
        assert board.Scalars("elbo")[0].value == pytest.approx(line["elbo"])
        assert {"test/log_px", "test/log_px_bound"} & set(board.Tags()["scalars"])
    assert not (trained / "b" / "seed5" / "tensorboard").exists()


def test_trackers_of_members_are_made_of_their_seeds():
    assert trackers_of(lambda seed: [], 3) == []
    with pytest.raises(UsageError, match="a function of the seed"):
        trackers_of([], 3)
    with pytest.raises(UsageError, match="trackers must be a list"):
        trackers_of(lambda seed: seed, 3)


def test_an_ensemble_is_loaded_from_its_folder_alone(runs):
    ensemble = load_ensemble(runs[0])
    assert len(ensemble) == 2 and ensemble.seeds == (0, 3) and len(ensemble.results[1].history) == 1
    alone = load_run(runs[0] / "seed3").vae
    for ours, theirs in zip(ensemble[1].parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluate_and_compare_give_the_error_over_seeds(runs, capsys, monkeypatch):
    read, load_data = [], loading.load_data
    monkeypatch.setattr(loading, "load_data", lambda *a, **more: read.append(1) or load_data(*a, **more))
    assert main(["evaluate", str(runs[0]), "--rows", "5", "--num-samples", "40", "--device", "cpu"]) == 0
    assert len(read) == 1  # for both members
    assert "mean over 2 seeds: log p(x)" in capsys.readouterr().out
    assert folder.read_json(runs[0] / "seeds-test-first-5.json")["rows"] == 5
    assert (runs[0] / "seeds.json").exists()
    assert main(["compare", *map(str, runs)]) == 0
    assert "a - b:" in capsys.readouterr().out
    assert main(["compare", str(runs[0] / "seed0"), str(runs[1] / "seed5")]) == 0
    assert main(["compare", str(runs[0]), str(runs[1] / "seed5")]) == 2
    assert "compared two at a time" in capsys.readouterr().err
    assert main(["compare", *map(str, runs), "--csv", "x.csv"]) == 2


def test_an_ensemble_of_which_all_diverged_is_not_scored(tmp_path, capsys):
    """Its members hold their best weights, from before: the mean over them would be one of untrained models."""
    run = tmp_path / "run"
    train = ["train", "--run", str(run), "--seeds", "2", "--device", "cpu", *small("--learning-rate", "1e30")]
    assert main(train) == 5 and "all members diverged" in capsys.readouterr().err
    assert sorted(folder.read_json(run / "ensemble.json")["diverged"]) == ["0", "1"]
    assert main(["evaluate", str(run), "--device", "cpu"]) == 4
    assert "every member diverged, so there is nothing to score" in capsys.readouterr().err
    assert not list(run.glob("**/evidence*"))


@pytest.mark.parametrize("ends", [Interrupted, Terminated, DivergedError])
def test_who_diverged_before_an_error_is_listed(runs, ends):
    ensemble = Ensemble([None, None], (0, 3), [], {3: "seed 3: step 2: not finite"})
    note_diverged(runs[0], ends("ended", ensemble))
    note_diverged(runs[0], RuntimeError("of a tracker"))  # it does not say
    assert read_list(runs[0])["diverged"] == {"3": "seed 3: step 2: not finite"} and counted(runs[0]) == [0]


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json"])
def test_a_broken_member_is_named_before_another_is_scored(runs, broken, capsys):
    (runs[0] / "seed3" / broken).write_bytes(b"torn")
    assert main(["evaluate", str(runs[0]), "--rows", "5", "--num-samples", "40", "--device", "cpu"]) == 4
    assert "seed3" in capsys.readouterr().err
    assert not (runs[0] / "seed0" / "evidence-test-first-5.json").exists()


def test_a_folder_that_holds_something_is_not_overwritten(runs, capsys):
    train = ["train", "--run", str(runs[0]), "--device", "cpu", *small()]
    assert main([*train, "--seeds", "2"]) == 4
    assert "holds an ensemble already" in capsys.readouterr().err
    assert main([*train[:2], str(runs[0] / "seed0"), *train[3:], "--seeds", "2"]) == 4
    assert "holds a run of one seed" in capsys.readouterr().err
    assert main(train) == 4  # a run of one seed in the place of an ensemble
    (runs[0] / "seed0" / "mine.txt").write_text("mine")
    with locked(runs[0] / "seed3", folder.EVALUATION_LOCK):  # it is being scored
        assert main([*train, "--seeds", "4", "6", "--overwrite"]) == 75
    assert all((runs[0] / name / "evidence.json").is_file() for name in ("seed0", "seed3"))
    assert main([*train, "--seeds", "4", "6", "--overwrite"]) == 0
    assert (runs[0] / "seed0" / "mine.txt").exists() and not (runs[0] / "seed0" / "config.json").exists()
    assert folder.read_json(runs[0] / "ensemble.json")["seeds"] == [4, 6]


@pytest.mark.parametrize("moment", ["beside", "exchanged", "cleared"])
def test_killed_inside_overwrite_the_folder_is_one_ensemble_and_is_made_again(runs, moment, tmp_path):
    (runs[0] / "seed0" / "mine.txt").write_text("mine")
    options = ["--seeds", "0", "4", "--hidden", "4", "--epochs", "1", "--num-samples", "60", "--overwrite"]
    train = ["train", "--run", str(runs[0]), "--device", "cpu", *small(*options)]
    assert kills.child(lambda: main(train), moment) == -9
    seeds = folder.read_json(runs[0] / "ensemble.json")["seeds"]
    if moment == "beside":
        assert seeds == [0, 3] and len(load_ensemble(runs[0])) == 2
    else:
        assert seeds == [0, 4] and not (runs[0] / "seeds.json").exists()
    assert main(train) == 0
    assert load_ensemble(runs[0]).seeds == (0, 4) and (runs[0] / "seed0" / "mine.txt").exists()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if ".part" in str(p)) == []
    assert not (runs[0] / "seed3").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0"], "at least one member"),
        (["--seeds", "1", "1"], "seeds has 1 more than once"),
        (["--seeds", "2", "--precision", "bf16"], "trained in float32"),
        (["--seeds", "2", "--autotune"], "by the library's kernels: leave autotune out"),
    ],
    ids=["none", "twice", "bf16", "autotune"],
)
def test_options_that_make_no_ensemble_are_refused_before_a_folder_is_made(tmp_path, capsys, options, said):
    assert main(["train", "--run", str(tmp_path / "run"), *options, *small()]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_seeds_do_not_go_with_resume(runs, capsys):
    assert main(["train", "--resume", str(runs[0] / "seed0"), "--seeds", "2"]) == 2
    assert "no checkpoints" in capsys.readouterr().err


def test_damage_is_named(runs):
    listed = json.loads((runs[0] / "ensemble.json").read_text())
    (runs[0] / "ensemble.json").write_text(json.dumps(listed | {"seeds": [0, 4]}))
    with pytest.raises(RunFolderError, match=r"ensemble\.json"):
        load_ensemble(runs[0])
    shutil.rmtree(runs[1] / "seed6")
    with pytest.raises(RunFolderError, match="seed6"):
        load_ensemble(runs[1])
    with pytest.raises(RunFolderError, match=r"is an ensemble of several seeds: .*seed5"):
        load_run(runs[1])


def test_several_processes_do_not_train_one_ensemble(tmp_path, monkeypatch):
    """Each would, into one folder, and wait for the others as it scores."""
    monkeypatch.setattr(train_ensemble, "sharing", lambda: Processes(1, 2))
    with pytest.raises(UsageError, match=r"in one process, and here are 2: .*by_itself"):
        train_ensemble.train_ensemble(Config(data="digits"), (0, 1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
