"""Tables as pandas and numpy write them: which line is a header, which column an index, which one the labels."""

import io

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from pyro_vae.data import load
from pyro_vae.data.table_layout import TableOptions, is_header, layout_of_table
from pyro_vae.errors import DataError, UsageError

draw = np.random.default_rng(0)
SETS = {"wine": load_wine, "cancer": load_breast_cancer, "diabetes": load_diabetes, "digits": load_digits}


def pandas_csv(table, columns, index=None):
    """What ``DataFrame(table, index, columns).to_csv(index=index is not None)`` writes."""
    head = ([""] if index is not None else []) + [str(c) for c in columns]
    rows = [
        ([str(index[i])] if index is not None else []) + [repr(v) for v in row.tolist()] for i, row in enumerate(table)
    ]
    return "".join(",".join(line) + "\n" for line in [head, *rows])


def numpy_csv(table, **options):
    out = io.StringIO()
    np.savetxt(out, table, delimiter=",", **options)
    return out.getvalue()


def rows_of(data):
    return sum(map(len, (data.train, data.validation, data.test)))


@pytest.fixture
def read(tmp_path):
    """Writes a text as a .csv, and loads it."""

    def reading(text, **options):
        (tmp_path / "x.csv").write_text(text)
        return load(tmp_path / "x.csv", table=TableOptions(**options))

    return reading


@pytest.mark.parametrize("name", SETS)
def test_every_way_to_write_a_table_gives_its_rows(read, name):
    """With and without index, names or numbers as header, floats or whole numbers; and by numpy, with and without header."""
    bunch = SETS[name]()
    x, d = bunch.data[:120], bunch.data.shape[1]
    shuffled = draw.permutation(len(x))
    for table in (x, x.astype(int)):
        for columns in (bunch.feature_names, range(d)):
            for index in (None, range(len(x)), shuffled, [f"s{i}" for i in range(len(x))]):
                data = read(pandas_csv(table, columns, index))
                assert data.shape == (d,) and rows_of(data) == len(x), (columns, index)
                assert np.array_equal(data.test.x, table.astype(np.float32)[data.test.numbers])
                if index is not None:
                    assert data.test.index.tolist() == [str(index[n]) for n in data.test.numbers]
    for options in ({}, {"fmt": "%g"}, {"header": ",".join(map(str, range(d)))}):
        data = read(numpy_csv(x, **options))
        assert data.shape == (d,) and rows_of(data) == len(x), options


HEADERS = {
    "years over counts": pandas_csv(draw.poisson(4, (30, 2)), [2019, 2020]),
    "years over decimals": pandas_csv(draw.normal(size=(30, 2)), [2019, 2020]),
    "every fifth year": pandas_csv(draw.normal(size=(30, 4)) * 1e3, [2000, 2005, 2010, 2015]),
    "wavelengths": pandas_csv(draw.random((30, 8)), np.arange(400.5, 480, 10)),
    "counted over whole numbers": pandas_csv(draw.integers(0, 9, (30, 3)), range(3)),
    "two counted over decimals": pandas_csv(draw.normal(size=(30, 2)), range(2)),
    "a series": pandas_csv(draw.normal(size=(30, 1)), [0]),
    "a name and years": pandas_csv(draw.poisson(4, (30, 3)), ["town", 2019, 2020]),
    "marked by numpy": numpy_csv(draw.integers(0, 9, (30, 3)), fmt="%d", header="1,2,3"),
}
ROWS = {
    "whole numbers": "1,2\n3,4\n5,6\n7,8\n9,10\n",
    "counting on": numpy_csv(np.arange(60).reshape(20, 3), fmt="%d"),
    "zeros and ones": "0,1\n" + numpy_csv(draw.integers(0, 2, (30, 2)), fmt="%d"),
    "decimals that rise": "0.1,0.2,0.3\n" + numpy_csv(draw.random((30, 3))),
    "an outlier that falls": "1e6,1e5,1e4\n" + numpy_csv(draw.random((30, 3))),
    "years as values": "2019,2020\n" + numpy_csv(draw.integers(1990, 2024, (30, 2)), fmt="%d"),
    "counted, with decimals here and there": "0,1\n1.5,2\n3,2.5\n0.5,1\n2,2\n",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_of_numbers_is_no_row(read, kind):
    data = read(HEADERS[kind])
    assert rows_of(data) == 30 and "header: " in data.notes[0] and "30 rows" in data.notes[0]
    if kind != "marked by numpy":
        assert rows_of(read(HEADERS[kind].replace("town", "1"), header="no")) == 31


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_of_numbers_is_no_header(read, kind):
    lines = ROWS[kind].count("\n")
    data = read(ROWS[kind])
    assert rows_of(data) == lines and "no header: the first line is a row" in data.notes[0]
    assert rows_of(read(ROWS[kind], header="yes")) == lines - 1


def test_a_header_of_numbers_is_said_with_the_way_out(read):
    notes = read(HEADERS["years over counts"]).notes
    assert "header: 2019, 2020" in notes[0] and "--header no" in notes[1]


def test_a_column_called_y_stays_unless_it_is_the_label(read):
    text = "a,y\n" + "".join(f"{i / 7},{i % 3}\n" for i in range(30))
    plain, labelled = read(text), read(text, label="y")
    assert plain.shape == (2,) and plain.train.y is None
    assert any("column 'y' is part of x; --label y" in note for note in plain.notes)
    assert labelled.shape == (1,) and labelled.train.y.tolist() == (labelled.train.numbers % 3).tolist()
    assert "labels: column 1 ('y')" in labelled.notes[0]


def test_labels_may_be_text(read):
    text = "x,species\n" + "".join(f"{i}.5,{['dog', 'cat', 'emu'][i % 3]}\n" for i in range(30))
    data = read(text, label="species")
    names = ["cat", "dog", "emu"]
    assert [names[n] for n in data.test.y] == [["dog", "cat", "emu"][n % 3] for n in data.test.numbers]
    assert list(data.test.ids.label) == [names[n] for n in data.test.y]
    assert "3 classes: cat, dog, emu" in data.notes[0]
    with pytest.raises(DataError, match=r"'dog' is no number.*--label species"):
        read(text)


INDICES = {
    "unnamed": ("", range(30)),
    "read back": ("Unnamed: 0", draw.permutation(30)),
    "id": ("id", 900_000 + draw.permutation(30)),
    "patient": ("PatientID", [f"p{i}" for i in range(30)]),
    "counted from 1": ("nr", range(1, 31)),
    "counted, called anything": ("anything", range(30)),
    "names": ("mouse", [f"m{i}" for i in range(30)]),
}


@pytest.mark.parametrize("kind", INDICES)
def test_an_index_is_named_and_left_out(read, kind):
    name, index = INDICES[kind]
    text = f"{name},a,b\n" + "".join(f"{index[i]},{i * i / 7},{i % 5}.5\n" for i in range(30))
    data = read(text)
    assert data.shape == (2,) and data.test.index.tolist() == [str(index[n]) for n in data.test.numbers]
    assert any(f"column 0 ({name!r})" in note and "no part of x" in note for note in data.notes)
    if not isinstance(index[0], str):
        assert read(text, index="none").shape == (3,)


KEPT = {
    "a group": ("id", [i % 4 for i in range(30)]),
    "a measurement": ("dose", [i * 10 for i in range(30)]),
    "few": ("time", range(5)),
    "nitric oxide": ("no", [i / 7 for i in range(30)]),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_no_index_is_part_of_x(read, kind):
    name, values = KEPT[kind]
    text = f"{name},a\n" + "".join(f"{v},{i * i / 7}\n" for i, v in enumerate(values))
    assert read(text).shape == (2,)
    assert read(text, index=name).shape == (1,)


def test_a_first_column_of_text_that_repeats_is_refused(read):
    text = "town,a\n" + "".join(f"t{i % 60},{i / 7}\n" for i in range(90))
    with pytest.raises(DataError, match=r"column 0 \('town'\) holds text that repeats.*--index town"):
        read(text)
    assert read(text, index="town").shape == (1,)


def test_columns_that_are_not_there(read):
    text = "a,b\n" + "".join(f"{i / 7},{i}\n" for i in range(9))
    with pytest.raises(DataError, match=r"has no column 'c', which --label names; it has a, b"):
        read(text, label="c")
    with pytest.raises(DataError, match="give a number from 0 to 1"):
        read("1.5,2\n2.5,3\n4.5,4\n", index="a")
    with pytest.raises(DataError, match="cannot be both label and index"):
        read(text, index="b", label="b")
    assert read("1.5,2\n2.5,3\n4.5,4\n", label="1").shape == (1,)
    with pytest.raises(UsageError, match="header must be one of"):
        TableOptions(header="perhaps")


def test_options_of_tables_are_refused_elsewhere(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 2)), target=np.arange(5))
    for name, table in (("digits", TableOptions(label="y")), (tmp_path / "x.npy", TableOptions(index="a"))):
        with pytest.raises(UsageError, match="is of a"):
            load(name, table=table)
    assert sorted(load(tmp_path / "x.npz", table=TableOptions(label="target")).train.y.tolist())
    with pytest.raises(DataError, match="holds no array 'y_true', which --label names"):
        load(tmp_path / "x.npz", table=TableOptions(label="y_true"))


def test_former_reading_is_that_of_versions_before(read):
    text = "y,0,1\n" + "".join(f"{i % 3},{i / 7},{i / 9}\n" for i in range(30))
    data = read(text.replace("0,1", "a,b", 1), former=True)
    assert data.shape == (2,) and data.train.y is not None
    numbers = read(HEADERS["years over counts"], former=True)
    assert rows_of(numbers) == 31


def test_a_line_of_text_is_a_header_and_numbers_alone_need_more():
    assert is_header(["a", "b"], []) and not is_header(["1", "2"], [])
    assert layout_of_table([["# a", "b"], ["1", "2"]], TableOptions(), "x").names == ("a", "b")
