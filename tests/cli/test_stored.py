"""Training on rows on disk from the command line: a folder of shards, or a file under --memory."""

import json

import numpy as np
import pytest
import scipy.sparse

from pyro_vae.cli.main import main
from pyro_vae.data import Stored, load, write_shards
from pyro_vae.errors import DataError, UsageError
from tests.helpers.command_line import small

X = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)


def test_shards_are_trained_on_resumed_and_scored_anew(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "big.npy", X)
    folder, run = tmp_path / "rows", tmp_path / "run"
    cut = ["manifest", str(folder), "--of", str(tmp_path / "big.npy"), "--rows", "200", "--num-rows"]
    assert main([*cut, "901"]) == 3 and "has 900 rows, and num_rows=901" in capsys.readouterr().err
    assert main([*cut, "900"]) == 0
    assert "900 rows × 6 columns of float32 in 5 files, 22.2 kB" in capsys.readouterr().out
    assert (
        main(["manifest", str(tmp_path / "big.npy")]) == 3 and "is a file: pyro-vae manifest" in capsys.readouterr().err
    )
    (folder / "labels").mkdir()
    (folder / "rows.csv").write_text("1,2\n")
    assert main(["manifest", str(folder)]) == 0
    assert "not counted: labels/, rows.csv" in capsys.readouterr().err
    assert main(["manifest", str(folder), "--check"]) == 0
    assert "900 rows in 5 files" in capsys.readouterr().out
    options = small("--data", str(folder), "--memory", "10 kB", "--batch-size", "64", "--epochs", "1")
    assert main(["train", "--run", str(run), *options]) == 0
    assert "on disk" in capsys.readouterr().err
    record = json.loads((run / "config.json").read_text())
    assert record["data"]["rows"] == {"train": 796, "validation": 52, "test": 52}
    assert record["data"]["digest"] == Stored(folder).digest and record["config"]["memory"] == "10 kB"
    before = json.loads((run / "evidence.json").read_text())
    assert before["rows"] == 52 and before["floor"]["log_px"] is not None
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["evaluate", str(run), "--num-samples", "30"]) == 0
    assert main(["evaluate", str(run), "--split", "train", "--num-samples", "5"]) == 2
    assert "training rows are on disk" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    np.save(folder / "00009.npy", X[:5])
    assert main(["evaluate", str(run), "--num-samples", "30"]) == 3
    assert "does not count" in capsys.readouterr().err


def test_what_needs_rows_in_memory_is_refused(tmp_path, capsys):
    folder = tmp_path / "rows"
    write_shards((X > 0).astype(np.uint8), folder)
    for options, message in (
        (["--seeds", "2"], "train one seed at a time"),
        (["--binarization", "static"], "binarization static"),
        (["--columns", "auto"], "needs all rows in memory"),
        (["--model", "sequence"], "needs all rows in memory"),
        (["--model", "semi_supervised", "--model.labelled", "5"], "label"),
    ):
        assert main(["train", "--run", str(tmp_path / "run"), *small("--data", str(folder), *options)]) in (2, 3)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(["train", "--run", str(tmp_path / "run"), *small("--memory", "1 GB")]) == 2
    assert "digits is bundled" in capsys.readouterr().err


def test_a_file_under_memory_is_split_without_being_read_whole(tmp_path):
    np.save(tmp_path / "x.npy", (X > 0).astype(np.uint8))
    data = load(tmp_path / "x.npy", memory="20 kB", verbose=False)
    assert data.kind == "binary" and isinstance(data.train.x, Stored)
    assert len(data.train) + len(data.validation) + len(data.test) == 900
    rows = np.concatenate(
        [data.train.x.numbers_in_files(np.arange(len(data.train))), data.validation.rows, data.test.rows]
    )
    assert np.array_equal(np.sort(rows), np.arange(900))
    assert np.array_equal(data.test.x.numpy(), (X > 0)[data.test.rows].astype(np.float32))
    assert np.array_equal(data.sample.x.numpy(), (X > 0)[data.sample.rows].astype(np.float32))
    with pytest.raises(UsageError, match="needs all rows in memory"):
        load(tmp_path / "x.npy", memory="20 kB", sequences=True, verbose=False)


def test_rows_of_a_zarr_array_are_counted_by_whoever_trains_on_it(tmp_path, capsys):
    """A run remembers the number: it is gone on with, scored and opened anew by itself."""
    zarr = pytest.importorskip("zarr")
    path, run = tmp_path / "x.zarr", tmp_path / "run"
    array = zarr.create_array(str(path), shape=X.shape, chunks=(64, 6), dtype="f4")
    array[:640] = X[:640]
    train = [
        "train",
        "--run",
        str(run),
        *small("--data", str(path), "--memory", "10 kB", "--batch-size", "64", "--epochs", "1"),
    ]
    for more, code, said in (
        ([], 3, "in a shell --num-rows N, of train"),
        (["--num-rows", "901"], 3, "num_rows=901 are more"),
        (["--num-rows", "0"], 2, "num_rows must be a whole number greater than 0"),
    ):
        assert main([*train, *more]) == code and said in capsys.readouterr().err
        assert not run.exists()
    assert main([*train, "--num-rows", "640"]) == 0
    record = json.loads((run / "config.json").read_text())
    assert sum(record["data"]["rows"].values()) == record["config"]["num_rows"] == 640
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["evaluate", str(run), "--num-samples", "5", "--data", str(path)]) == 0
    assert main(["train", "--resume", str(run), "--num-rows", "600"]) != 0
    assert "num_rows" in capsys.readouterr().err


def in_memory(folder):
    """Data of every kind that is read into memory, and the command's name for what it is."""
    np.save(folder / "x.npy", X)
    (folder / "x.csv").write_text("\n".join(",".join(map(str, row)) for row in X[:9].tolist()))
    scipy.sparse.save_npz(folder / "sparse.npz", scipy.sparse.csr_array(X))
    (folder / "pictures").mkdir()
    (folder / "splits").mkdir()
    for name in ("train", "validation", "test"):
        (folder / "splits" / f"{name}.csv").write_text((folder / "x.csv").read_text())
    return {
        "digits": "digits is bundled: leave it out$",
        folder / "x.npy": r"x.npy is read into memory: leave it out, or leave them there: --memory '2 GB'",
        folder / "x.csv": "x.csv is read into memory: leave it out$",
        folder / "pictures": "pictures is read into memory: leave it out$",
        folder / "sparse.npz": "sparse matrix, of which --num-rows is no option",
        folder
        / "splits": "--num-rows is of rows of one file that stay on disk, and a file for each split is given, too",
    }


def test_a_number_of_rows_means_nothing_of_data_that_is_read_whole(tmp_path):
    for name, said in in_memory(tmp_path).items():
        with pytest.raises(UsageError, match=said):
            load(name, num_rows=9, verbose=False)
    with pytest.raises(UsageError, match="no data set"):
        load("digitz", num_rows=9, verbose=False)
    with pytest.raises(DataError, match=r"900 rows, and num_rows=9"):
        load(tmp_path / "x.npy", num_rows=9, memory="1 MB", verbose=False)
    assert len(load(tmp_path / "x.npy", num_rows=900, memory="1 MB", verbose=False).sample) > 0
