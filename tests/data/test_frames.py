"""Tables of pandas, polars and pyarrow as numbers: the same ones whatever holds them, or refused by column and row."""

import io

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pyro_vae.data import Column, table
from pyro_vae.errors import DataConversionWarning, DataError, UsageError

D = {"sp": ["A", "B", None, "A"], "m": [1.5, None, 3.0, 2.0], "k": [1, 2, None, 4], "b": [True, None, False, True]}
NAN = float("nan")
X = torch.tensor([[0, 1.5, 1, 1], [1, NAN, 2, NAN], [NAN, 3, NAN, 0], [0, 2, 4, 1]])
COLUMNS = (Column("sp", "category", ("A", "B")), Column("m"), Column("k"), Column("b", "boolean"))
PANDAS = pd.DataFrame(D)
FRAMES = {
    "pandas": PANDAS,
    "nullable": PANDAS.convert_dtypes(),
    "arrow dtypes": PANDAS.convert_dtypes(dtype_backend="pyarrow"),
    "object": PANDAS.astype(object),
    "category": PANDAS.astype({"sp": "category"}),
    "polars": pl.DataFrame(D),
    "lazy": pl.LazyFrame(D),
    "polars category": pl.DataFrame(D, schema_overrides={"sp": pl.Categorical}),
    "pyarrow": pa.table(D),
    "dictionary": pa.table({**D, "sp": pa.DictionaryArray.from_arrays([1, 0, None, 1], ["B", "A"])}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_the_same_numbers_whatever_holds_them(name):
    found = table(FRAMES[name])
    assert torch.equal(found.x.isnan(), X.isnan()) and torch.equal(found.x.nan_to_num(), X.nan_to_num())
    assert found.columns == COLUMNS and found.x.dtype == torch.float32


def test_declared_categories_keep_their_order_and_those_that_no_row_has():
    frame = pd.DataFrame({"size": pd.Categorical(["L", "S"], ["S", "M", "L"], ordered=True), "a": [1.0, 2.0]})
    found = table(frame)
    assert found.columns[0] == Column("size", "category", ("S", "M", "L"), ordered=True) and found.x[0, 0] == 2
    assert table(pl.DataFrame({"a": ["y", "x"]}, schema={"a": pl.Enum(["y", "z", "x"])})).x[:, 0].tolist() == [0, 2]


def test_new_rows_have_the_same_codes_by_name():
    """In another order, from another library, with a category less and a column more."""
    known = table(PANDAS).columns
    new = pl.DataFrame({"more": [1], "b": [False], "k": [7], "m": [0.25], "sp": ["B"]})
    found = table(new, known)
    assert found.x.tolist() == [[1.0, 0.25, 7.0, 0.0]] and found.columns == known
    assert "'more'" in found.notes[0] and "another order" in found.notes[1]
    alone = table(pd.DataFrame({"sp": ["B"], "m": [1.0], "k": [1], "b": [True]}))
    assert alone.x[0, 0] == 0, "codes of a table of its own would be others"


NEW = {"sp": ["A", "B"], "m": [1.0, 2.0], "k": [1, 2], "b": [True, False]}
UNLIKE = {
    "unseen": ({"sp": ["A", "C"]}, r"column 'sp', row 1 .*'C' is a category that was never seen; it has A, B"),
    "text": ({"m": ["1.0", "heavy"]}, r"column 'm', row 1 .*'heavy' is no number, and numbers stood there in training"),
    "boolean": ({"b": [0, 2]}, r"column 'b', row 1 .*'2' is neither true nor false"),
    "infinite": ({"k": [np.inf, 1]}, r"column 'k' has infinite values in 1 row, first in row 0"),
    "dates": ({"k": pd.date_range("2020", periods=2)}, r"column 'k' holds dates"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_new_rows_unlike_those_of_training_are_refused(name):
    change, words = UNLIKE[name]
    with pytest.raises(DataError, match=words):
        table(pd.DataFrame(NEW | change), COLUMNS)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"lacks 1 of 4 columns .* 'm'; beside the others it has M"):
        table(pd.DataFrame(NEW).rename(columns={"m": "M"}), COLUMNS)


EYE = np.eye(2)
REFUSED = {
    "dates": (pd.DataFrame({"t": pd.date_range("2020", periods=3)}), "'t' holds dates or times"),
    "times": (pl.DataFrame({"t": [1, 2]}).select(t=pl.duration(days="t")), "'t' holds dates or times"),
    "mixed": (pd.DataFrame({"t": [1, "a", None]}), r"'t' .* mixes numbers \(1, row 0\) and texts \('a', row 1\)"),
    "mixed booleans": (pd.DataFrame({"t": [True, 0.5, None]}), r"'t' .* mixes booleans \(True, row 0\) and numbers"),
    "lists": (pl.DataFrame({"t": [[1], [2]]}), "'t' .* holds objects of type list"),
    "alike": (pd.DataFrame(EYE, columns=["a", "a"]), "columns 0 and 1 are both called 'a'"),
    "nameless": (pd.DataFrame(EYE, columns=["a", ""]), "column 1 has no name"),
    "levels": (pd.DataFrame(EYE, columns=pd.MultiIndex.from_tuples([("a", "b"), ("c", "d")])), "names on several levels"),
    "nothing": (pl.DataFrame({"t": [None, None]}), "'t' has no value in any of its 2 rows"),
    "infinite": (pd.DataFrame({"t": [1, -np.inf]}), "'t' has infinite values in 1 row, first in row 1"),
    "large": (pd.DataFrame({"t": [2**25, 2**25 + 1]}), "'t' holds whole numbers up to 33554433"),
    "huge": (pa.table({"t": [2**60, 2**60 + 1]}), "'t' holds whole numbers up to 1152921504606846977"),
    "names": (pd.DataFrame({"b": 1.0, "t": map(str, range(100_000))}), "'t' has 100,000 different labels"),
    "no rows": (pd.DataFrame({"t": []}), "is empty"),
    "no table": (EYE, "a ndarray is no table"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_number_stands_for_is_refused_by_column(name):
    frame, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        table(frame)


def test_a_column_in_trouble_may_be_left_out():
    frame = pd.DataFrame({"t": pd.date_range("2020", periods=4), "m": [1.0, 2.5, 3.0, 4.0]})
    assert table(frame, "auto,t=ignore").names == ["m"]
    with pytest.raises(DataError, match=r"names 'x', and there is no such column"):
        table(frame, "auto,x=ignore")
    for text in ("all", "auto,m", "auto,m="):
        with pytest.raises(UsageError, match="it is auto, or auto with corrections"):
            table(frame, text)


@pytest.mark.parametrize("rows", [3, 40])
def test_an_index_that_pandas_wrote_without_a_name_is_left_out_and_told(rows):
    frame = pd.DataFrame({"a": np.linspace(0, 1, rows), "b": 2.0 * np.arange(rows)})
    again = pd.read_csv(io.StringIO(frame.to_csv()))
    with pytest.warns(DataConversionWarning, match="'Unnamed: 0' counts the rows"):
        assert table(again).names == ["a", "b"]
    again["Unnamed: 0"] *= 2.0
    again["Unnamed: 0"] = again["Unnamed: 0"] / 3
    with pytest.raises(DataError, match="column 0 has no name"):
        table(again)


def test_a_table_tells_its_columns():
    told = repr(table(PANDAS.assign(c=5.0)))
    assert "sp      A, B" in told and "note: column 'c' is constant" in told


@pytest.mark.parametrize(
    "held", [[1.0, 2.0], ["1", "2"], ["1.0", "2.0"], pd.Categorical([1.0, 2.0]), pd.Categorical([1, 2])]
)
def test_a_label_that_is_a_number_is_found_however_it_is_written(held):
    known = table(pd.DataFrame({"a": [0.5, 1.5, 2.5], "c": ["2", "1", "3"]}), None).columns
    assert table(pd.DataFrame({"a": [0.5, 1.5], "c": held}), known).x[:, 1].tolist() == [0, 1]
    other = table(pd.DataFrame({"a": [0.5, 1.5], "c": pd.Categorical(["1.0", "2.0"])})).columns
    assert table(pd.DataFrame({"a": [0.5, 1.5], "c": held}), other).x[:, 1].tolist() == [0, 1]
    with pytest.raises(DataError, match="'007' is a category that was never seen"):
        table(pd.DataFrame({"a": [0.5], "c": ["007"]}), table(pd.DataFrame({"a": [0.5, 1], "c": ["7", "8"]})).columns)


def test_new_rows_may_be_few_and_near_to_one_another():
    known = table(pd.DataFrame({"p": [101325.12, 101000.5, 99000.25]})).columns
    assert len(table(pd.DataFrame({"p": [101325.121, 101325.122]}), known)) == 2


@pytest.mark.parametrize("gap", ["", " ", "NA", "nan"])
def test_a_text_that_stands_for_a_gap_is_one_as_in_a_text_file(gap):
    """Else a table is another one once it is written to a .csv, and its empty cells another value."""
    texts = ["x", gap, "y", gap]
    for held in (texts, pd.Categorical(texts), pl.Series(texts), pa.array(texts), pa.array(texts).dictionary_encode()):
        frame = (
            pa.table({"a": [1.5, 2.5, 3.5, 1.5], "c": held})
            if isinstance(held, pa.Array | pa.DictionaryArray)
            else None
        )
        kind = pl.DataFrame if isinstance(held, pl.Series) else pd.DataFrame
        found = table(kind({"a": [1.5, 2.5, 3.5, 1.5], "c": held}) if frame is None else frame)
        assert found.columns[1].labels == ("x", "y") and found.x[:, 1].nan_to_num(9.0).tolist() == [0, 9, 1, 9]
