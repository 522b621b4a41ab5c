"""What is on disk is of one model: weights, evidence and metrics of other moments are told apart, whatever ended between."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import compare_runs
from pyro_vae.common.safe_read import seal
from pyro_vae.errors import BusyError, Interrupted, RunFolderError
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import folder, replacement
from pyro_vae.runs import load as load_module
from pyro_vae.runs import resume_run as resume_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_opened, evaluate_run
from pyro_vae.runs.evaluation_options import EvaluationOptions
from pyro_vae.runs.evaluations import evaluations
from pyro_vae.runs.load import load_run, open_data
from pyro_vae.runs.lock import locked
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from pyro_vae.runs.weights import Weights, save_model
from tests.helpers import kills
from tests.helpers.bits import same

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES = {"num_samples": 20, "device": "cpu"}


class Killed(BaseException):
    """The process ends here: nothing more is written."""


def killed(*_, **__):
    raise Killed


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for module in (train_module, resume_module):
        monkeypatch.setattr(module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_: None)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    x = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(x, np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    return Config(data=str(x), hidden=(4,), latent_dim=2, epochs=3, batch_size=16, learning_rate=0.01)


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """The same run: never interrupted; and interrupted in its second epoch, and scored then."""
    here = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "draw_figures", lambda *_: None)
        patch.setattr(evaluate_module, "draw_khat", lambda *_: None)
        whole = train_run(config, here / "whole", **SAMPLES)
        call = train_module.Curve.__call__

        def interrupted(self, record):
            made = call(self, record)
            if record["epoch"] == 2:
                raise KeyboardInterrupt
            return made

        patch.setattr(train_module.Curve, "__call__", interrupted)
        with pytest.raises(Interrupted):
            train_run(config, here / "cut", **SAMPLES)
        patch.setattr(train_module.Curve, "__call__", call)
        early = evaluate_run(here / "cut", **SAMPLES)
    assert early["log_px"] < whole["log_px"]
    return here / "whole", here / "cut", whole["log_px"], early["log_px"]


@pytest.fixture
def cut(made, tmp_path):
    return Path(shutil.copytree(made[1], tmp_path / "cut"))


def state(path):
    return load_run(path).vae.state_dict()


ENDS = {  # what is not reached any more once training has saved its last state
    "before the weights": (train_module, "save_model"),
    "before the evidence": (train_module, "evaluate_opened"),
}


@pytest.mark.parametrize("end", ENDS)
def test_after_ctrl_c_evaluate_resume_and_kill_the_new_weights_count_and_the_old_evidence_does_not(
    end, made, cut, monkeypatch, capsys
):
    whole, _, log_px, early = made
    with monkeypatch.context() as patch:
        patch.setattr(*ENDS[end], killed)
        with pytest.raises(Killed):
            resume_run(cut, **SAMPLES)
    assert json.loads((cut / "evidence.json").read_bytes())["log_px"] == early
    assert same(state(cut), state(whole))
    capsys.readouterr()
    assert load_run(cut).evidence == {} and evaluations(cut) == []
    assert "evidence.json is of weights from before" in capsys.readouterr().err
    with pytest.raises(RunFolderError, match=r"is of weights that it has no longer. Make it: pyro-vae evaluate"):
        compare_runs([cut, whole])
    scored = Path(shutil.copytree(cut, cut.with_name("scored")))
    assert evaluate_run(scored, **SAMPLES)["log_px"] == log_px == load_run(scored).evidence["log_px"]
    assert resume_run(cut, **SAMPLES)["log_px"] == log_px
    assert "a whole run already" not in capsys.readouterr().err
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    resume_run(cut, **SAMPLES)
    assert "a whole run already" in capsys.readouterr().err


def test_a_run_killed_while_it_draws_is_whole_and_draws_again(made, cut, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "draw_figures", killed)
        with pytest.raises(Killed):
            resume_run(cut, **SAMPLES)
    drawn = []
    monkeypatch.setattr(resume_module, "draw_figures", lambda *given: drawn.append(given))
    assert resume_run(cut, **SAMPLES)["log_px"] == made[2]
    run, _, history, points, floor = drawn[0]
    assert same(run.vae.state_dict(), state(made[0])) and [r["epoch"] for r in history] == [1, 2, 3]
    assert points and floor == load_run(cut).evidence["floor"]["log_px"]
    for name in resume_module.PICTURES:
        (cut / "figures" / f"{name}.png").write_bytes(b"a picture")
    resume_run(cut, **SAMPLES)
    assert len(drawn) == 1


def test_where_the_newer_checkpoint_is_damaged_the_whole_weights_count(made, cut, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_model", killed)
        with pytest.raises(Killed):
            resume_run(cut, **SAMPLES)
    newest = Weights.of(cut).file
    assert newest.name == "best.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert Weights.of(cut).file == cut / "model.safetensors" and load_run(cut).evidence["log_px"] == made[3]


def test_an_evaluation_that_was_opened_before_training_ended_scores_the_weights_that_are_there_then(made, cut):
    opened = load_run(cut)
    data = open_data(opened)
    resume_run(cut, **SAMPLES)
    assert evaluate_opened(opened, data, EvaluationOptions(num_samples=20))["log_px"] == made[2]
    assert load_run(cut).evidence["log_px"] == made[2]


@pytest.mark.parametrize("rows", [None, 5], ids=["all rows", "some"])
def test_weights_that_change_while_they_are_scored_are_said_and_their_numbers_are_not_told_as_new(
    rows, made, cut, monkeypatch, capsys
):
    score, new = evaluate_module.log_px_of, load_run(made[0]).vae

    def meanwhile(*given):
        save_model(cut, new, 3)
        return score(*given)

    monkeypatch.setattr(evaluate_module, "log_px_of", meanwhile)
    evaluate_run(cut, rows=rows, **SAMPLES)
    assert "training went on meanwhile: these numbers are of the weights" in capsys.readouterr().err
    assert evaluations(cut) == [] and load_run(cut).evidence == {}


def test_weights_put_there_by_hand_count_and_evidence_of_the_others_does_not(made, tmp_path):
    """As an older version left them: without a word on their epochs."""
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    opened = load_run(run)
    next(opened.vae.parameters()).data.add_(1.0)
    save_model(run, opened.vae)
    assert same(state(run), opened.vae.state_dict()) and load_run(run).evidence == {}
    save_model(run, load_run(made[0]).vae)
    assert load_run(run).evidence["log_px"] == made[2]


def test_evidence_of_an_older_version_that_does_not_say_its_weights_is_taken(made, tmp_path):
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    record = {k: v for k, v in folder.read_json(run / "evidence.json").items() if k not in ("weights", "sha256")}
    (run / "evidence.json").write_text(json.dumps(seal(record)))
    assert load_run(run).evidence["log_px"] == made[2]


def test_metrics_of_another_training_are_not_told_beside_the_evidence(made, tmp_path):
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    assert all(m.active_units is not None for m in compare_runs([run, made[0]]).models)
    records = folder.read_lines(run / "metrics.jsonl")
    folder.write_lines(run / "metrics.jsonl", [record | {"active_units": 0} for record in records])
    assert {m.name: m.active_units is None for m in compare_runs([run, made[0]]).models} == {
        "run": True,
        "whole": False,
    }


# --overwrite


def left_beside(run):
    return [entry.name for entry in run.parent.iterdir() if entry.name != run.name]


def overwritten_and_killed(run, config, moment):
    """A process of its own, that is killed, kill -9, at a moment of replacing the run."""
    assert kills.child(partial(train_run, config, run, overwrite=True, **SAMPLES), moment) == -9


@pytest.mark.parametrize("how", ["resume", "overwrite"])
@pytest.mark.parametrize("moment", ["beside", "exchanged", "cleared"])
def test_killed_inside_overwrite_the_folder_is_one_whole_run(moment, how, made, config, tmp_path):
    """The one before, or the new one, which has not begun; entries of somebody else's are there again at the end."""
    run = Path(shutil.copytree(made[1], tmp_path / "here" / "run"))
    for mine in (run / "mine.txt", run / "figures" / "mine.txt"):
        mine.write_text("mine")
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and ".lock" not in p.name}
    overwritten_and_killed(run, config, moment)
    if moment == "beside":
        assert before == {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and ".lock" not in p.name}
        assert load_run(run).evidence["log_px"] == made[3]
    else:
        with pytest.raises(RunFolderError, match="is missing"):
            load_run(run)
    if how == "resume" and moment != "beside":
        anew = resume_run(run, **SAMPLES)
    else:
        anew = train_run(config, run, overwrite=True, **SAMPLES)
    assert anew["log_px"] == made[2] and same(state(run), state(made[0]))
    assert (run / "mine.txt").read_text() == (run / "figures" / "mine.txt").read_text() == "mine"
    assert left_beside(run) == [] and not list(run.glob(".*.part"))


def test_where_folders_cannot_be_exchanged_the_run_is_emptied_in_place(made, config, tmp_path, monkeypatch):
    run = Path(shutil.copytree(made[1], tmp_path / "here" / "run"))
    (run / "mine.txt").write_text("mine")
    monkeypatch.setattr(replacement, "exchange", lambda *_: False)
    with monkeypatch.context() as patch:
        patch.setattr(replacement, "crash_point", lambda name: killed() if name == "emptied" else None)
        with pytest.raises(Killed):
            train_run(config, run, overwrite=True, **SAMPLES)
    assert left_beside(run) == [] and (run / "config.json").is_file()
    assert train_run(config, run, overwrite=True, **SAMPLES)["log_px"] == made[2]
    assert (run / "mine.txt").is_file()


def test_an_overwritten_run_that_a_link_leads_to_keeps_its_place_and_its_lock(made, config, tmp_path):
    run = Path(shutil.copytree(made[0], tmp_path / "here" / "run"))
    (tmp_path / "latest").symlink_to(run)
    busy = []

    class Asking(train_module.Curve):
        def __call__(self, record):
            for path in (run, tmp_path / "latest"):
                with pytest.raises(BusyError), locked(path):
                    pass
                busy.append(path)
            return super().__call__(record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Curve", Asking)
        assert train_run(config, tmp_path / "latest", overwrite=True, **SAMPLES)["log_px"] == made[2]
    assert len(busy) == 6 and (tmp_path / "latest").is_symlink() and left_beside(run) == []
    with locked(run):
        pass


@pytest.mark.parametrize("moment", ["of", "fill"], ids=["before the weights", "before they are read"])
def test_a_run_that_is_overwritten_under_a_reader_is_said(moment, made, config, tmp_path):
    """With a model of the same layout, so that nothing else shows it."""
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    real, other = getattr(Weights, moment), config.__class__(**(config.__dict__ | {"seed": 1, "epochs": 1}))

    def meanwhile(*given, **more):
        patch.undo()
        train_run(other, run, overwrite=True, **SAMPLES)
        return real(*given, **more)

    patch = pytest.MonkeyPatch()
    patch.setattr(Weights, moment, meanwhile)
    with pytest.raises(RunFolderError, match="has become another run"):
        load_run(run)
    assert load_run(run).config.seed == 1


def test_a_run_is_not_overwritten_while_it_is_scored(made, config, tmp_path):
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    with locked(run, folder.EVALUATION_LOCK), pytest.raises(BusyError):
        train_run(config, run, overwrite=True, **SAMPLES)
    assert load_run(run).evidence["log_px"] == made[2]


def test_an_evaluation_of_a_run_that_was_overwritten_writes_nothing(made, config, tmp_path):
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    opened = load_run(run)
    data = open_data(opened)
    train_run(config.__class__(**(config.__dict__ | {"seed": 1, "epochs": 1})), run, overwrite=True, **SAMPLES)
    before = {p: p.read_bytes() for p in run.rglob("evidence*")}
    with pytest.raises(RunFolderError, match="has become another run"):
        evaluate_opened(opened, data, EvaluationOptions(num_samples=20))
    assert before == {p: p.read_bytes() for p in run.rglob("evidence*")}


def test_without_the_digest_the_old_number_is_told_as_the_new_runs(made, cut, monkeypatch):
    """The broken variant."""
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "evaluate_opened", killed)
        with pytest.raises(Killed):
            resume_run(cut, **SAMPLES)
    monkeypatch.setattr(load_module, "is_stale", lambda *_: False)
    assert load_run(cut).evidence["log_px"] == made[3] and torch.is_tensor(next(iter(state(cut).values())))
