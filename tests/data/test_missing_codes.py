"""-999 and its like: noticed, without false alarms, and taken for missing where that is said; numbers of very many digits."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pyro_vae.data import TableOptions, load
from pyro_vae.data.columns import RawColumn
from pyro_vae.data.missing_codes import without_code
from pyro_vae.errors import DataError, UsageError

DRAW = np.random.default_rng(0)
OTHER = DRAW.normal(size=30).round(3)
PLACES = [3, 7, 20]


def with_codes(values, code):
    values = np.array(values, dtype=object)
    values[PLACES] = code
    return values


CODED = {
    "real": with_codes(DRAW.normal(size=30).round(3), "-999"),
    "ages": with_codes(DRAW.integers(18, 80, 30), "999"),
    "positive": with_codes((DRAW.gamma(2, 100, 30) + 1).round(2), "-99.0"),
    "grades": with_codes(DRAW.integers(1, 4, 30), "-9999"),
}
PLAIN = {
    "temperature": with_codes(DRAW.normal(0, 60, 30).round(1), "-99"),  # among others that are below 0
    "years": with_codes(DRAW.integers(0, 900, 30), "999"),
    "once": [*DRAW.normal(size=29).round(3), -999],
    "ages of the old": with_codes(DRAW.integers(60, 98, 30), "99"),
    "counts": with_codes(DRAW.poisson(40, 30), "99"),
    "all the same": np.full(30, 99),
    "minus one": with_codes(DRAW.integers(0, 5, 30), "-1"),
}


def written(folder, values, name="a"):
    path = folder / "t.csv"
    pd.DataFrame({"other": OTHER, name: values}).to_csv(path, index=False)
    return path


def said(path, **options):
    columns = options.get("columns")
    data = load(path, table=TableOptions(**options), missing=columns is not None, verbose=False)
    return [note for note in data.notes if "looks like a code" in note]


@pytest.mark.parametrize("columns", [None, "auto"])
@pytest.mark.parametrize("case", CODED)
def test_a_code_for_missing_is_noticed_and_taken_for_one(case, columns, tmp_path):
    path = written(tmp_path, CODED[case])
    (note,) = said(path, columns=columns)
    code = float(CODED[case][PLACES[0]])
    assert f"column 'a': {code:g} stands in 3 rows" in note and f"--missing-value={code:g}" in note
    data = load(path, table=TableOptions(columns=columns, missing_value=f"{code:g}"), missing=True, verbose=False)
    split = data.train, data.validation, data.test
    gone = np.concatenate([part.numbers[part.x.isnan().any(1).numpy()] for part in split])
    assert sorted(gone) == PLACES and not any("looks like a code" in note for note in data.notes)
    if columns is None:
        with pytest.raises(DataError, match=r"lack values of 'a' \(3\)"):
            load(path, table=TableOptions(missing_value=f"{code:g}"), verbose=False)


@pytest.mark.parametrize("case", PLAIN)
def test_values_that_may_be_values_are_not_noticed(case, tmp_path):
    assert said(written(tmp_path, PLAIN[case])) == []


def test_a_parquet_and_a_word_for_missing(tmp_path):
    pd.DataFrame({"other": OTHER, "a": CODED["real"].astype(float)}).to_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", table=TableOptions(missing_value="-999"), missing=True, verbose=False)
    assert sum(int(s.x.isnan().sum()) for s in (data.train, data.validation, data.test)) == 3
    path = written(tmp_path, with_codes(OTHER, "unknown"))
    data = load(path, table=TableOptions(missing_value="unknown"), missing=True, verbose=False)
    assert sum(int(s.x.isnan().sum()) for s in (data.train, data.validation, data.test)) == 3
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    with pytest.raises(UsageError, match="--missing-value is of a table"):
        load(tmp_path / "x.npy", table=TableOptions(missing_value="-999"))


@pytest.mark.parametrize("columns", [None, "auto"])
@pytest.mark.parametrize("digits", [18, 400, 5000])
def test_whole_numbers_that_a_float_takes_for_one_are_refused(columns, digits, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i}.5,1{'0' * (digits - 3)}{i:02}\n" for i in range(30)))
    with pytest.raises(DataError, match=r"column 'b' holds whole numbers .* takes different ones for one") as refused:
        load(path, table=TableOptions(columns=columns), missing=True, verbose=False)
    assert len(str(refused.value)) < 500


def gone_in(path, columns, code):
    data = load(
        path, table=TableOptions(columns=columns, missing_value=code, index="none"), missing=True, verbose=False
    )
    gone = np.concatenate([s.x.isnan().numpy() for s in (data.train, data.validation, data.test)])
    return {c.name: int(n) for c, n in zip(data.columns, gone.sum(0), strict=True)}


@pytest.mark.parametrize("code", ["-999", "-999.0", "-999,0"])
def test_a_code_is_one_with_a_decimal_comma_too(code, tmp_path):
    lines = [f"{'-999,0' if i in PLACES else f'{i},5'};{i % 3},25" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["a;b", *lines]) + "\n")
    assert gone_in(tmp_path / "t.csv", None, code) == {"a": 3, "b": 0}


def test_a_code_is_found_in_single_precision_and_is_no_false_or_true(tmp_path):
    single = np.where(np.isin(np.arange(30), PLACES), -999.9, OTHER).astype(np.float32)
    pd.DataFrame({"a": single, "b": np.arange(30) % 2 == 0}).to_parquet(tmp_path / "t.parquet")
    assert gone_in(tmp_path / "t.parquet", "auto", "-999.9") == {"a": 3, "b": 0}
    assert gone_in(tmp_path / "t.parquet", "auto", "0") == {"a": int((single == 0).sum()), "b": 0}


@pytest.mark.parametrize("columns", [None, "auto"])
def test_a_code_is_of_x_and_not_of_labels_or_of_what_splits_rows(columns, tmp_path):
    pd.DataFrame({"a": with_codes(OTHER, "0"), "y": np.arange(30) % 2, "g": np.arange(30) % 5}).to_csv(
        tmp_path / "t.csv", index=False
    )
    for split_by in (None, "g"):
        options = TableOptions(columns=columns, missing_value="0", label="y", split_by=split_by)
        data = load(tmp_path / "t.csv", table=options, missing=True, verbose=False)
        split = data.train, data.validation, data.test
        assert sorted(np.concatenate([s.numbers[s.x[:, 0].isnan().numpy()] for s in split])) == PLACES
        assert all((s.y.numpy() == s.numbers % 2).all() for s in split)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_padded_label_is_no_code(ending, tmp_path):
    areas = np.array((["0999", "0123", "4567"] * 10), dtype=object)
    areas[PLACES] = "999"
    table = pd.DataFrame({"other": OTHER, "area": areas})
    path = tmp_path / f"t.{ending}"
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    options = TableOptions(columns="auto,area=categorical", missing_value="999")
    data = load(path, table=options, missing=True, verbose=False)
    assert data.columns[1].labels == ("0123", "0999", "4567")
    split = data.train, data.validation, data.test
    gone = np.concatenate([part.numbers[part.x.isnan().any(1).numpy()] for part in split])
    assert sorted(gone) == PLACES
    again = replace(options, known=data.columns)  # as new rows are read
    data = load(path, table=again, missing=True, verbose=False)
    assert sum(int(part.x.isnan().sum()) for part in (data.train, data.validation, data.test)) == 3


def test_a_number_of_a_column_of_numbers_is_the_code_however_it_is_written():
    numbers = RawColumn("a", ["0999", "1", "999.0", "2,5"], "cells")
    assert without_code(numbers, "999").values == [None, "1", None, "2,5"]
    texts = RawColumn("a", ["0999", "red", "999.0", "unknown"], "cells")
    assert without_code(texts, "999").values == ["0999", "red", None, "unknown"]
    assert without_code(texts, "unknown").values == ["0999", "red", "999.0", None]
