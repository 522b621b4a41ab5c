"""Tables as they are found in the wild: what would be a wrong number without a word is taken as meant, or refused by column."""

import numpy as np
import pandas as pd
import pytest

from pyro_vae.data import TableOptions, load
from pyro_vae.errors import DataError

from .test_table_files import AUTO, joined, read


def test_labels_that_are_numbers_have_their_order_and_their_value(tmp_path):
    rows = [f"{month}{'.0' * (i % 2)}" for i in range(2) for month in (10, 2, 1, 12)]
    text = "a,m\n" + "".join(f"{i}.5,{m}\n" for i, m in enumerate(rows))
    for family in ("discretized_logistic", "CumulativeLogit", "categorical"):
        data = read(tmp_path / "x.csv", text, TableOptions(columns=f"auto,m={family}"))
        assert data.columns[1].labels == ("1", "2", "10", "12")
        assert joined(data)[:, 1].tolist() == [2, 1, 0, 3] * 2
    padded = read(tmp_path / "x.csv", "a,m\n1.5,007\n2.5,7\n3.5,007\n", TableOptions(columns="auto,m=categorical"))
    assert padded.columns[1].labels == ("007", "7")
    ordered = TableOptions(columns="auto,m=discretized_logistic")
    words = read(tmp_path / "x.csv", "a,m\n1.5,low\n2.5,high\n3,mid\n", ordered)
    assert any("in the order of the alphabet" in note for note in words.notes)


@pytest.mark.parametrize("name", [None, "pid"])
def test_the_index_of_a_pandas_table_is_no_column_of_its_parquet(name, tmp_path):
    frame = pd.DataFrame({"a": np.arange(12) % 5 + 0.5, "b": list("xyz") * 4})
    frame = frame[frame.a != 2.5].rename_axis(name)  # its index has holes, so that it is written
    frame.to_parquet(tmp_path / "x.parquet")
    data = load(tmp_path / "x.parquet", table=AUTO, verbose=False)
    assert [c.name for c in data.columns] == ["a", "b"] and "was the index of a pandas table" in data.notes[1]
    assert list(data.train.ids.index) == [str(frame.index[i]) for i in data.train.numbers]


def test_a_column_that_numbers_the_rows_is_left_out_wherever_it_stands(tmp_path):
    order = np.random.default_rng(0).permutation(30) + 1000
    text = "a,n\n" + "".join(f"{i % 7}.5,{n}\n" for i, n in enumerate(order))
    data = read(tmp_path / "x.csv", text)
    assert [c.name for c in data.columns] == ["a"] and any("numbers the rows, 1000 to 1029" in n for n in data.notes)
    assert len(read(tmp_path / "x.csv", text, TableOptions(columns="auto,n=normal")).columns) == 2


@pytest.mark.parametrize(
    "values", [("train", "test", "holdout"), ("Train", "val", "test", "p7"), ("1", "2", "3", "1.0")]
)
def test_a_split_that_is_half_said_is_refused(values, tmp_path):
    text = "a,b,s\n" + "".join(f"{i}.5,{i % 3},{values[i % len(values)]}\n" for i in range(24))
    with pytest.raises(DataError, match="the column that splits the rows has"):
        read(tmp_path / "x.csv", text, TableOptions(columns="auto", split_by="s"))


def test_numbers_that_single_precision_takes_for_others_are_refused_of_any_file(tmp_path):
    seconds = np.stack([np.arange(30) % 7 + 0.5, 1.6e9 + 3.25 * np.arange(30)], 1)
    for x in (seconds, np.stack([np.arange(30) % 7, 2**53 - np.arange(30)], 1)):
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(DataError, match=r"column 'x\[:, 1\]' holds"):
            load(tmp_path / "x.npy", verbose=False)
        pd.DataFrame(x, columns=["a", "t"]).to_csv(tmp_path / "x.csv", index=False)
        with pytest.raises(DataError, match="column 't' holds"):
            load(tmp_path / "x.csv", verbose=False)
    np.save(tmp_path / "x.npy", np.stack([np.full(30, 0.1), seconds[:, 1] - 1.6e9 + 0.1], 1))
    assert load(tmp_path / "x.npy", verbose=False).shape == (2,)
