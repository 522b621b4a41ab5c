"""Splits by file: columns and labels by their names, rows that stand in two files counted, anything else refused."""

import numpy as np
import pytest
from PIL import Image

from pyro_vae.data import TableOptions, load
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.runs.config import Config
from pyro_vae.runs.load import load_data

DRAW = np.random.default_rng(0)
ROWS = {
    name: DRAW.normal(size=(n, 3)).astype(np.float32) for name, n in (("train", 20), ("validation", 5), ("test", 6))
}
LABELS = {"train": ["b", "c"] * 10, "validation": ["a"] * 5, "test": ["c"] * 6}


def write(folder, order=("x", "y", "z"), **rows):
    """A .csv for each split, with the columns in another order in all but the first."""
    for name, values in {**ROWS, **rows}.items():
        places = [0, 1, 2] if name == "train" else ["xyz".index(c) for c in order]
        lines = [",".join([*(f"{v:.9g}" for v in row[places]), k]) for row, k in zip(values, LABELS[name], strict=True)]
        heads = ["xyz"[i] for i in places]
        (folder / f"{name}.csv").write_text("\n".join([",".join([*heads, "kind"]), *lines]) + "\n")
    return {name: folder / f"{name}.csv" for name in ROWS}


def opened(files, **more):
    others = {split: files[split] for split in ("validation", "test")}
    return load(files["train"], **others, table=TableOptions(label="kind"), verbose=False, **more)


def test_each_file_is_its_split_with_columns_and_labels_by_name(tmp_path):
    data = opened(write(tmp_path, order="zxy"))
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        np.testing.assert_array_equal(split.x.numpy(), ROWS[name])
        assert list(split.ids.label) == LABELS[name], "codes are those of all files together"
    assert data.test.y.tolist() == [2] * 6 and [c.name for c in data.columns] == ["x", "y", "z"]
    assert any(
        n.startswith("split by file: train train.csv, validation validation.csv, test test.csv") for n in data.notes
    )
    assert not any("equal training rows" in note or "80/10/10" in note for note in data.notes)


def test_a_folder_of_files_and_one_of_pictures_are_splits_too(tmp_path):
    write(tmp_path)
    assert len(load(tmp_path, table=TableOptions(label="kind"), verbose=False).test) == 6
    for split, n in (("train", 6), ("val", 2), ("test", 3)):
        for i in range(n):
            folder = tmp_path / "pictures" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(DRAW.integers(0, 256, (5, 4, 3), np.uint8)).save(folder / f"{i}.png")
    data = load(tmp_path / "pictures", verbose=False)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [6, 2, 3] and data.shape == (3, 5, 4)
    assert set(data.train.ids.label) == {"class0", "class1"}, "and not the names of the splits"


def test_without_a_file_for_validation_a_tenth_of_the_training_rows_is_held_out(tmp_path):
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", ROWS[name])
    data = load(tmp_path / "train.npy", test=tmp_path / "test.npy", verbose=False)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [18, 2, 6]
    np.testing.assert_array_equal(data.test.x.numpy(), ROWS["test"])


def test_rows_that_stand_in_two_files_are_counted(tmp_path):
    files = write(tmp_path, test=ROWS["train"][[0, 0, 1, 2, 3, 4]])
    notes = opened(files).notes
    assert any(n.startswith("6 of 6 test rows equal training rows") for n in notes)
    assert not any("validation rows equal" in n for n in notes)


def test_other_files_are_another_digest_and_moved_ones_are_found_again(tmp_path):
    files = write(tmp_path)
    config = Config(
        data=str(files["train"]), validation=str(files["validation"]), test=str(files["test"]), label="kind"
    )
    config = config.resolved()
    before = load_data(config, None)
    (tmp_path / "moved").mkdir()
    for file in files.values():
        file.rename(tmp_path / "moved" / file.name)
    assert load_data(config, tmp_path / "moved").digest == before.digest
    write(tmp_path, test=ROWS["test"] + 1)
    assert load_data(config, None).digest != before.digest


def test_what_is_no_split_is_refused_by_name(tmp_path):
    files = write(tmp_path)
    (tmp_path / "test.csv").write_text("x,y,kind\n1,2,a\n3,4,b\n5,6,a\n")
    with pytest.raises(DataError, match=r"test.csv.* 'z'"):
        opened(files)
    np.save(tmp_path / "wide.npy", np.zeros((4, 7), np.float32))
    np.save(tmp_path / "rows.npy", ROWS["train"])
    with pytest.raises(ShapeError, match="rows differ in shape"):
        load(tmp_path / "rows.npy", test=tmp_path / "wide.npy", verbose=False)
    with pytest.raises(UsageError, match=r"--validation .* without --test"):
        load(tmp_path / "rows.npy", validation=tmp_path / "rows.npy")
    with pytest.raises(UsageError, match="digits has splits of its own"):
        load("digits", test=tmp_path / "rows.npy")
    with pytest.raises(UsageError, match="--split-by kind beside files"):
        load(files["train"], test=files["test"], table=TableOptions(split_by="kind"))
    np.savez(tmp_path / "split.npz", **{f"x_{name}": rows for name, rows in ROWS.items()})
    with pytest.raises(DataError, match=r"split.npz holds splits of its own, and is given as the test split"):
        load(tmp_path / "rows.npy", test=tmp_path / "split.npz", verbose=False)
    with pytest.raises(DataError, match="no file"):
        load(tmp_path / "rows.npy", test=tmp_path / "nowhere.npy", verbose=False)
