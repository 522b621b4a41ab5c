"""The command line and run folders: what a newcomer types, what stays on disk, and every bad input's exit code."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyro_vae.cli.main import main
from pyro_vae.errors import RunFolderError
from pyro_vae.runs import folder
from pyro_vae.runs.load import load_run
from tests.helpers.children import printed_by
from tests.helpers.data import few_digits

SMALL = {"--hidden": "8", "--latent-dim": "2", "--epochs": "2", "--batch-size": "256", "--num-samples": "20"}


def test_a_run_folder_holds_what_it_says(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    pictures = ("training", "evidence", "reconstructions", "samples", "sample_means", "latent")
    generation = [f"{name}.safetensors" for name in ("model", "best", "optimizer", "rng")] + [
        "state.json",
        "manifest.json",
    ]
    kept = {f"checkpoints/{number:06d}/{name}" for number in (1, 2) for name in generation}
    locks = {".lock", ".evaluation.lock", "checkpoints/.lock"}
    assert names == {
        "config.json",
        "model.safetensors",
        *(name for name in folder.OURS if name not in ("bracket.json", "gaps.json")),
        *(f"figures/{name}.png" for name in pictures),
        *kept,
        *locks,
    }
    record = folder.read_config(run)
    assert record["config"]["likelihood"] == "binomial" and record["data"]["policy"] == "counts 0..16"
    metrics = folder.read_lines(run / "metrics.jsonl")
    assert [m["epoch"] for m in metrics] == [1, 2]
    assert all(abs(m["elbo"] - (m["reconstruction"] - m["kl"])) < 1e-6 for m in metrics)
    assert metrics[-1]["evidence"]["log_px"] > metrics[-1]["evidence"]["elbo"]
    evidence = folder.read_json(run / "evidence.json")
    assert evidence["rows"] == 180 and evidence["num_samples"] == 20
    assert {"floor", "policy", "machine", "seed", "versions", "training"} <= evidence.keys()


def test_a_reloaded_run_gives_the_same_log_px_to_the_last_bit_in_a_fresh_process(run, device):
    if device.type == "cpu":
        before = (run / "evidence.csv").read_bytes()
        (run / "evidence.csv").unlink()
    else:
        main(["evaluate", str(run), "--num-samples", "20", "--device", str(device)])
        before = (run / "evidence.csv").read_bytes()
    printed_by(main, ["evaluate", str(run), "--num-samples", "20", "--device", str(device)])
    assert (run / "evidence.csv").read_bytes() == before


def test_a_runs_own_config_trains_the_same_weights_again(run, tmp_path, device):
    again = ["train", "--config", str(run / "config.json"), "--run", str(tmp_path / "b"), "--num-samples", "2"]
    assert main([*again, "--device", str(device)]) == 0
    a, b = (load_file(path / "model.safetensors") for path in (run, tmp_path / "b"))
    assert all(torch.equal(a[k], b[k]) for k in a) if device.type == "cpu" else a.keys() == b.keys()


def test_another_seed_trains_other_weights(run, tmp_path, train):
    assert train("b", "--seed", "1", "--epochs", "2") == 0
    a, b = (load_file(path / "model.safetensors") for path in (run, tmp_path / "b"))
    assert not any(torch.equal(a[k], b[k]) for k in a if "units" not in k)  # which are those of the data


def test_using_a_run(run, tmp_path, capsys):
    for command, shape in {
        ("sample", "--num-samples", "7"): (7, 64),
        ("encode", "--rows", "9"): (9, 2),
        ("reconstruct", "--rows", "4"): (4, 64),
        ("interpolate", "--start", "2", "--end", "5", "--steps", "6"): (6, 64),
    }.items():
        out = tmp_path / f"{command[0]}.npy"
        arguments = [command[0], str(run), *command[1:], "--out", str(out)]
        assert main(arguments) == 0
        first = np.load(out, allow_pickle=False)
        assert first.shape == shape
        assert main(arguments) == 0
        assert np.array_equal(first, np.load(out))
        assert "figures" in capsys.readouterr().out
    assert set(np.unique(np.load(tmp_path / "sample.npy"))) <= set(range(17))


def test_arrays_as_csv_are_text_and_other_endings_are_refused(run, tmp_path, capsys):
    for name, ending in (("a", "npy"), ("b", "csv"), ("c", "CSV")):
        assert main(["encode", str(run), "--rows", "9", "--out", str(tmp_path / f"{name}.{ending}")]) == 0
    array, text = np.load(tmp_path / "a.npy"), (tmp_path / "b.csv").read_text()
    assert text.splitlines()[0] == "row,source_row,label,z0,z1" and (tmp_path / "c.CSV").read_text() == text
    assert np.array_equal(
        np.genfromtxt(tmp_path / "b.csv", delimiter=",", names=True)["z1"].astype(array.dtype), array[:, 1]
    )
    assert main(["reconstruct", str(run), "--rows", "2", "--out", str(tmp_path / "x.csv")]) == 0
    assert (tmp_path / "x.csv").read_text().startswith("row,source_row,label,x0,x1,") and len(
        (tmp_path / "x.csv").read_text().splitlines()
    ) == 3
    capsys.readouterr()
    for wrong in ("d.txt", "d.png", "d"):
        assert main(["encode", str(run), "--out", str(tmp_path / wrong)]) == 2
        assert ".npy or .csv" in " ".join(capsys.readouterr().err.split()) and not (tmp_path / wrong).exists()


@pytest.mark.parametrize("rows", ["0", "-1", "181"])
@pytest.mark.parametrize("command", ["encode", "reconstruct", "impute"])
def test_rows_that_are_not_there_are_refused(run, command, rows, capsys):
    """Minus one is no row from the end."""
    if (command, rows) == ("reconstruct", "181"):
        return  # it takes as many as there are
    assert main([command, str(run), "--rows", rows]) == 2
    assert "rows" in capsys.readouterr().err and not list(run.glob("*.npy"))


def test_an_existing_run_is_refused_unless_overwritten(run, train, capsys, monkeypatch):
    few_digits(monkeypatch)
    before = (run / "model.safetensors").read_bytes()
    assert train("run", "--seed", "1") == 4
    assert "--overwrite" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before
    assert train("run", "--seed", "1", "--overwrite") == 0
    assert (run / "model.safetensors").read_bytes() != before


def test_a_folder_of_somebody_elses_is_never_touched(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert train("run", "--overwrite") == 4
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "run" / "config.json").write_text('{"somebody": "else"}')
    assert train("run", "--overwrite") == 4
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_bad_data_is_refused_before_a_run_is_overwritten(run, train, tmp_path, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).random((40, 6), dtype=np.float32))
    options = ["--likelihood", "bernoulli", "--binarization", "none", "--batch-size", "8"]
    assert train("run", "--overwrite", "--data", str(tmp_path / "grey.npy"), *options) == 3
    said = capsys.readouterr().err
    assert "site 'x': 32 of 32 rows" in said and "Bernoulli" in said and "binarize" in said
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_damaged_run_folders_exit_4(run, capsys):
    def evaluated(message):
        assert main(["evaluate", str(run), "--num-samples", "5"]) == 4
        assert message in capsys.readouterr().err

    whole = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}

    def restore():
        for path, content in whole.items():
            path.write_bytes(content)

    weights, config = run / "model.safetensors", run / "config.json"
    weights.write_bytes(whole[weights][:-100])
    evaluated("damaged")
    weights.write_bytes(b"PK\x03\x04 a pickle, perhaps")
    evaluated("damaged")
    weights.unlink()
    assert main(["evaluate", str(run), "--num-samples", "5"]) == 0  # from the checkpoint, which has the same weights
    shutil.rmtree(run / "checkpoints")
    evaluated("model.safetensors is missing")
    save_file({"other": torch.zeros(3)}, weights)
    evaluated("not of the model")
    state = {k: v * torch.nan for k, v in load_bytes(whole[weights]).items()}
    save_file(state, weights)
    evaluated("non-finite")
    restore()
    config.write_bytes(whole[config][:-40])
    evaluated("damaged")
    config.write_text('{"name": "another program"}')
    evaluated("not a run of pyro_vae")
    record = json.loads(whole[config])
    config.write_text(json.dumps(record | {"schema": 99}))
    evaluated("schema 99")
    config.write_text(json.dumps(record | {"config": record["config"] | {"prior": "os.system"}}))
    evaluated("prior")
    config.write_text(json.dumps(record | {"config": record["config"] | {"priior": "x"}}))
    evaluated("did you mean 'prior'")
    changed = record | {"data": record["data"] | {"digest": "0" * 64}}
    config.write_text(json.dumps(changed))
    evaluated("has changed")
    config.unlink()
    evaluated("config.json is missing")
    with pytest.raises(RunFolderError, match="no run folder"):
        load_run(run / "nowhere")


def load_bytes(content):
    from safetensors.torch import load

    return load(content)


def test_a_torn_last_metrics_line_is_left_out(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [m["epoch"] for m in folder.read_lines(path)] == [1]
    path.write_text("{\n" + path.read_text())
    with pytest.raises(RunFolderError, match="line 1"):
        folder.read_lines(path)
