"""Tables of any columns from files: read as they are meant, told, or refused by column and row."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from pyro_vae.data import TableOptions, load
from pyro_vae.data.frames import blocks_of
from pyro_vae.errors import DataError, UsageError
from tests.helpers.tables import HEAD, penguins, write_table

AUTO = TableOptions(columns="auto")
CHOSEN = {
    "species": "categorical:num-classes=3",
    "island": "categorical:num-classes=3",
    **dict.fromkeys(HEAD[2:6], "normal"),
    "sex": "bernoulli",
    "year": "CumulativeLogit:num-classes=3",
}


def joined(data):
    """All rows of a data set, in the order of its file."""
    splits = data.train, data.validation, data.test
    order = np.concatenate([split.numbers for split in splits]).argsort()
    return torch.cat([split.x for split in splits])[torch.from_numpy(order)]


def read(path, text, options=AUTO):
    path.write_text(text, encoding="utf-8")
    return load(path, table=options, missing=True, verbose=False)


def test_a_mixed_table_is_coded_and_each_column_has_a_likelihood(tmp_path):
    rows = penguins()
    data = load(write_table(tmp_path / "p.csv", rows, index=True), table=AUTO, missing=True, verbose=False)
    assert {c.name: c.family for c in data.columns} == CHOSEN
    assert data.columns[-1].labels == ("2007", "2008", "2009") and data.columns[-1].ordered
    x = joined(data)
    for column, (c, values) in enumerate(zip(data.columns, zip(*rows, strict=True), strict=True)):
        told = [c.text(v) for v in x[:, column].tolist()]
        assert [t.removesuffix(".0") for t in told] == [v.removesuffix(".0").replace("NA", "") for v in values]
    assert "column '' counts the rows" in data.notes[1]
    assert data.train.ids.index[0] == str(data.train.numbers[0])
    widths = "categorical:2:num-classes=3,normal:4,bernoulli:1,CumulativeLogit:1:num-classes=3"
    assert blocks_of(data.columns) == widths


def test_corrections_are_taken(tmp_path):
    path = write_table(tmp_path / "p.csv", penguins())
    spec = "auto,year=normal,body_mass_g=ignore,species=discretized_logistic,sex=categorical"
    data = load(path, table=TableOptions(columns=spec), missing=True, verbose=False)
    found = {c.name: c.family for c in data.columns}
    assert "body_mass_g" not in found and found["year"] == "normal" and found["sex"] == "categorical:num-classes=2"
    assert found["species"] == "discretized_logistic:levels=3" and joined(data)[:, -1].min() == 2007
    with pytest.raises(DataError, match=r"'island' holds 3 labels, which 'normal' has no density of"):
        load(path, table=TableOptions(columns="auto,island=normal"), missing=True, verbose=False)


SAME = {
    "comma": "a,b,c\n1.5,x,1\n-2.25,y,2\n,x,3\n7,y,4\n",
    "tab": "a\tb\tc\n1.5\tx\t1\n-2.25\ty\t2\n\tx\t3\n7\ty\t4\n",
    "semicolon and decimal comma": "a;b;c\n1,5;x;1\n-2,25;y;2\nNA;x;3\n7;y;4\n",
    "BOM, quotes, end of lines": '\ufeff"a","b","c"\r\n"1.5","x","1"\r\n"-2.25","y","2"\r\n"","x","3"\r\n7,y,4\r\n',
    "decimal comma in quotes": 'a,b,c\n"1,5",x,1\n"-2,25",y,2\nnan,x,3\n7,y,4\n',
}


@pytest.mark.parametrize("name", SAME)
def test_ways_of_writing_one_table(name, tmp_path):
    data = read(tmp_path / ("x.tsv" if name == "tab" else "x.csv"), SAME[name])
    wanted = torch.tensor([[1.5, 0, 1], [-2.25, 1, 2], [torch.nan, 0, 3], [7, 1, 4]])
    x = joined(data)
    assert torch.equal(x.isnan(), wanted.isnan()) and torch.equal(x.nan_to_num(), wanted.nan_to_num())
    assert [c.name for c in data.columns] == ["a", "b", "c"]


def test_parquet_is_the_same_table(tmp_path):
    frame = pd.DataFrame({"a": [1.5, -2.25, None, 7.0], "b": ["x", "y", "x", "y"], "c": [1, 2, 3, 4]})
    frame.to_parquet(tmp_path / "x.parquet")
    data = load(tmp_path / "x.parquet", table=AUTO, missing=True, verbose=False)
    assert torch.equal(joined(data).nan_to_num(), joined(read(tmp_path / "x.csv", SAME["comma"])).nan_to_num())
    frame[["a", "c"]].to_parquet(tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", missing=True, verbose=False).shape == (2,)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load(tmp_path / "x.parquet", verbose=False)


ROWS = "".join(f"{i / 7},{'xy'[i % 2]},{i}\n" for i in range(12))
REFUSED = {
    "mixed": ("a,b\n1,x\ntwo,y\n3,x\n", r"column 'a' mixes 2 numbers and 1 text: 'two' in row 1"),
    "dates": ("a,b\n2020-01-02,x\n2021-03-04,y\n,x\n", r"column 'a' holds dates or times \('2020-01-02'\)"),
    "alike": ("a,a\n1,x\n2,y\n3,x\n", "columns 0 and 1 are both called 'a'"),
    "nameless": ("a,,c\n1,x,2\n3,y,4\n5,x,6\n", "column 1 has no name"),
    "no value": ("a,b\n1,\n2,NA\n3,null\n", "column 'b' has no value in any of its 3 rows"),
    "all constant": ("a,b\n1,x\n1,x\n1,x\n", "no column is left"),
    "infinite": ("a,b\n1,x\ninf,y\n3,x\n", r"column 'a' has infinite values in 1 row, first in row 1"),
    "huge": ("a,b\n33554432,x\n33554433,y\n5,x\n", "column 'a' holds whole numbers up to 33554433"),
    "huge beyond float64": ("a,b\n9007199254740993,x\n9007199254740992,y\n5,x\n", "column 'a' holds whole numbers"),
    "thousands": ('a,b\n"1,234",x\n"5,678",y\n"9,012",x\n', r"comma in '1,234' \(row 0.* may part thousands"),
    "thousands twice": ('a,b\n"1,234,567",x\n"5,6",y\n3,x\n', "may part thousands"),
    "comma and point": ('a,b\n"1,5",x\n2.5,y\n3,x\n', r"with a comma \('1,5', row 0\) and with a point \('2.5', row 1"),
    "short row": ("a,b\n1,x\n2\n3,y\n", r"row 1 .*line 3 of the file\): 1 cell, wanted 2"),
    "many labels": ("a,b\n" + "".join(f"{i % 5}.5,n{i}\n" for i in range(1001)), "'b' has 1,001 different labels"),
    "control signs": ("a,\x1b[31mb\n1,x\n2,y\n3,x\n", "column 1 is called .* with control signs"),
    "control signs in labels": ("a,b\n1,x\n2,\x1b[2J\n3,x\n", "'b' has a label with control signs"),
    "nothing": ("", "is empty"),
    "seconds since 1970": ("a,b\n" + "".join(f"{1.6e9 + 7.25 * i},x{i % 2}\n" for i in range(9)), "'a' holds 16.* move"),
    "per cent": ("a,b\n" + "".join(f"{i % 5}.5,{i}.5%\n" for i in range(30)), "'b' has 30 labels that .* with '%' beside"),
    "names": ("a,b\n" + "".join(f"{i % 5}.5,n{i}\n" for i in range(30)), "'b' has 30 labels .* names of the rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_column(name, tmp_path):
    text, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        read(tmp_path / "x.csv", text)


def test_columns_of_one_name_in_a_parquet_are_refused_by_name(tmp_path):
    parquet.write_table(pa.table([[1.0, 2, 3], [4, 5, 6]], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="columns 0 and 1 are both called 'a'"):
        load(tmp_path / "x.parquet")


def test_texts_without_columns_are_refused_with_the_way_to_take_them(tmp_path):
    for name, separator in (("x.csv", ","), ("x.csv", ";"), ("x.tsv", "\t")):
        with pytest.raises(DataError, match="--columns auto"):
            read(tmp_path / name, ROWS.replace(",", separator), TableOptions())
    with pytest.raises(UsageError, match="--columns is of a table"):
        np.save(tmp_path / "x.npy", np.eye(4))
        load(tmp_path / "x.npy", table=AUTO)


def test_gaps_are_named_by_column(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n,3\n4,\n,5\n")
    with pytest.raises(DataError, match=r"3 of 4 rows lack values of 'a' \(2\), 'b' \(1\), first row 1"):
        load(tmp_path / "x.csv", verbose=False)


def test_families_follow_type_and_support(tmp_path):
    draw = np.random.default_rng(0)
    columns = {
        "real": (draw.normal(size=200), "normal"),
        "positive": (draw.lognormal(0, 2, 200), "log_normal"),
        "count": (draw.poisson(2, 200), "negative_binomial"),
        "binary": (draw.integers(0, 2, 200), "bernoulli"),
        "flag": (draw.choice(["true", "false"], 200), "bernoulli"),
        "grade": (draw.integers(1, 6, 200), "CumulativeLogit:num-classes=5"),
        "kind": (draw.choice(list("abcd"), 200), "categorical:num-classes=4"),
        "far": (draw.integers(1000, 2000, 200), "normal"),
        "same": (np.full(200, 3), None),
    }
    frame = pd.DataFrame({name: values for name, (values, _) in columns.items()})
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = load(tmp_path / "x.csv", table=AUTO, verbose=False)
    assert {c.name: c.family for c in data.columns} == {n: f for n, (_, f) in columns.items() if f}
    assert any("'same' is left out: it is constant (3)" in note for note in data.notes)


def test_rows_are_split_as_a_column_says_or_by_whole_groups(tmp_path):
    names = ["train"] * 5 + ["val"] * 3 + ["Test"] * 2
    rows = [[str(i / 7), name, f"p{i % 4}"] for i, name in enumerate(names)]
    path = write_table(tmp_path / "x.csv", rows, ["a", "part", "patient"])
    data = load(path, table=TableOptions(columns="auto,patient=ignore", split_by="part"), verbose=False)
    assert [s.numbers.tolist() for s in (data.train, data.validation, data.test)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7],
        [8, 9],
    ]
    assert [c.name for c in data.columns] == ["a"]
    by_group = load(path, table=TableOptions(columns="auto,part=ignore", split_by="patient"), verbose=False)
    groups = [{i % 4 for i in s.numbers} for s in (by_group.train, by_group.validation, by_group.test)]
    assert all(groups) and sum(map(len, groups)) == 4 and set().union(*groups) == {0, 1, 2, 3}
    assert by_group.digest != data.digest and any("each of its 4 groups" in note for note in by_group.notes)


@pytest.mark.parametrize(
    "values, words", [("ab" * 5, "2 groups are too few"), (["train", "test"] * 5, "no row is of the validation split"),
                      ([*"abcabcabc", ""], r"column 'part', row 9 .* is empty")], ids=["groups", "split", "gap"]
)  # fmt: skip
def test_splits_that_cannot_be_are_refused(tmp_path, values, words):
    path = write_table(tmp_path / "x.csv", [[str(i / 7), v] for i, v in enumerate(values)], ["a", "part"])
    with pytest.raises(DataError, match=words):
        load(path, table=TableOptions(split_by="part"), verbose=False)


@pytest.mark.parametrize("columns", [None, "auto"])
@pytest.mark.parametrize("names", [("b", "a"), ("7", "10")])
def test_a_label_that_is_missing_is_no_class(columns, names, tmp_path):
    texts = [("", *names)[i % 3] for i in range(60)]
    lines = [f"{i * 0.37 % 1:.3f},{i * 0.11 % 1:.3f},{text}" for i, text in enumerate(texts)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["u,v,kind", *lines]) + "\n")
    options = TableOptions(columns=columns, label="kind")
    codes = {"": -1, "b": 1, "a": 0, "7": 7, "10": 10}
    for path in (tmp_path / "train.csv", tmp_path):  # one file, and one for each split
        data = load(path, table=options, verbose=False)
        for split in (data.train, data.validation, data.test):
            assert split.y.tolist() == [codes[texts[n]] for n in split.numbers]
            if split.classes:
                assert split.ids.label == tuple(texts[n] for n in split.numbers)


def test_many_columns_are_told_by_groups_of_one_likelihood(tmp_path):
    rng = np.random.default_rng(0)
    columns = {f"g{i}": rng.normal(size=20) for i in range(70)} | {f"n{i}": rng.poisson(2, 20) for i in range(3)}
    frame = pd.DataFrame(columns).round(3)
    frame.loc[:4, "g0"] = np.nan
    frame.to_csv(tmp_path / "wide.csv", index=False)
    notes = load(tmp_path / "wide.csv", table=AUTO, missing=True, verbose=False).notes
    (normal,), (counts,) = (
        [n.split() for n in notes if f" {family} " in n] for family in ("normal", "negative_binomial")
    )
    assert normal[0] == "70" and "64 more" in " ".join(normal) and "5" in normal  # gaps of the group
    assert counts[:4] == ["3", "'n0',", "'n1',", "'n2'"] and not any(n.startswith("g1 ") for n in notes)
    frame[["g1", "g2"]].to_csv(tmp_path / "narrow.csv", index=False)
    assert any(n.startswith("g1 ") for n in load(tmp_path / "narrow.csv", table=AUTO, verbose=False).notes)


def test_one_row_and_another_encoding_say_what_to_do(tmp_path):
    (tmp_path / "latin.csv").write_bytes("größe,b\n1,x\n3,y\n".encode("latin1"))
    for table in (AUTO, TableOptions()):
        with pytest.raises(DataError, match=r"in UTF-8.* Save it as UTF-8"):
            load(tmp_path / "latin.csv", table=table)
    with pytest.raises(DataError, match=r"it has one row: .* Give a table of more rows"):
        read(tmp_path / "x.csv", "a,b,c\n1.5,2.5,x\n")


@pytest.mark.parametrize("sign", [";", "\t", "|"], ids=["semicolon", "tab", "bar"])
@pytest.mark.parametrize("columns", ["auto", None], ids=["auto", "numbers"])
def test_other_signs_between_cells_are_the_same_table(tmp_path, sign, columns):
    rows = [f"{i}.25,{i % 7}" for i in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b", *rows]))
    (tmp_path / "b.csv").write_text("\n".join(["a,b", *rows]).replace(",", sign))
    (tmp_path / "c.csv").write_text("\n".join(["a,b", *rows]).replace(",", sign).replace(".", ","))  # decimal commas
    first, *others = (load(tmp_path / f"{n}.csv", table=TableOptions(columns=columns), verbose=False) for n in "abc")
    assert all(torch.equal(first.train.x, other.train.x) and first.columns == other.columns for other in others)


def test_a_bar_within_cells_parts_none(tmp_path):
    (tmp_path / "a.csv").write_text("a|b,c\n" + "".join(f"{i % 3}|x,{i}.5\n" for i in range(20)))
    assert [c.name for c in load(tmp_path / "a.csv", table=AUTO, verbose=False).columns] == ["a|b", "c"]


def test_booleans_of_pandas_are_spelled_as_it_spells_them(tmp_path):
    """A .parquet holds no spelling; what wrote it has one."""
    frame = pd.DataFrame({"a": [0.5, 1.5, None] * 10, "b": [True, False, None] * 10}).astype({"b": "boolean"})
    frame.to_parquet(tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", table=AUTO, missing=True, verbose=False).columns[1].text(1.0) == "True"
    table = parquet.read_table(tmp_path / "x.parquet").replace_schema_metadata(None)
    parquet.write_table(table, tmp_path / "y.parquet")
    assert load(tmp_path / "y.parquet", table=AUTO, missing=True, verbose=False).columns[1].text(1.0) == "true"


def test_rows_of_which_nothing_is_there_are_told(tmp_path):
    """A spreadsheet's last line of commas: its log p is 0, and lifts the mean of negative ones."""
    rows = [f"{i}.25,{'x' if i % 2 else 'y'}" for i in range(20)]
    (tmp_path / "x.csv").write_text("\n".join(["a,b", *rows, ",", ","]))
    notes = load(tmp_path / "x.csv", table=AUTO, missing=True, verbose=False).notes
    assert [n for n in notes if n.startswith("2 of 22 rows have no value at all (first row 20, counted from 0)")]
    (tmp_path / "x.csv").write_text("\n".join(["a,b", *rows, "7,", ",x"]))
    assert not [n for n in load(tmp_path / "x.csv", table=AUTO, missing=True, verbose=False).notes if "no value" in n]


@pytest.mark.parametrize("number", ["1e39", "-4e38"])
def test_numbers_beyond_single_precision_are_named(tmp_path, number):
    (tmp_path / "x.csv").write_text("a,b\n" + "".join(f"{i}.5,{number if i == 7 else i}\n" for i in range(20)))
    with pytest.raises(DataError, match=r"column 'b', row 7 \(counted from 0\): .* more than single precision holds"):
        load(tmp_path / "x.csv", table=AUTO, verbose=False)
