"""Labels that are probably something else: told, or refused, by column."""

from dataclasses import replace

import pytest

from pyro_vae.data import Column, TableOptions, load, table
from pyro_vae.errors import DataError

AUTO = TableOptions(columns="auto")


def loaded(tmp_path, cells, name="k"):
    path = tmp_path / "a.csv"
    path.write_text(f"mass,{name}\n" + "".join(f'{i + 0.25 * (i % 7)},"{cell}"\n' for i, cell in enumerate(cells)))
    return load(path, table=AUTO, verbose=False)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["Yes", "yes", "No"], "'Yes' and 'yes'"),
        (["caf\u00e9", "cafe\u0301", "tea"], r"'cafe\u0301' and 'caf\xe9'"),
        (["a b", "a\u00a0b", "c"], r"'a b' and 'a\xa0b'"),
        (["ﬁn", "fin", "c"], r"'fin' and '\ufb01n'"),
    ],
    ids=["case", "normal form", "space", "ligature"],
)
def test_labels_that_look_alike_are_told(tmp_path, labels, told):
    data = loaded(tmp_path, 20 * labels)
    (note,) = [note for note in data.notes if "differ in case" in note]
    assert note.startswith("column 'k'") and told in note
    assert data.columns[1].labels == tuple(sorted(labels))  # and stay as they are written
    assert not [note for note in loaded(tmp_path, 20 * ["yes", "no", "maybe"]).notes if "differ in case" in note]


@pytest.mark.parametrize("form", ["{} kg", "{}%", "${}", "€ {}", "{}.5 °C"])
def test_numbers_with_a_unit_are_no_labels(tmp_path, form):
    few = loaded(tmp_path, 20 * [form.format(i) for i in (5, 10, 20)])
    assert any("beside them, which are labels here" in note for note in few.notes)
    with pytest.raises(DataError, match=r"column 'k' has 12 labels that are numbers with .*auto,k=ignore"):
        loaded(tmp_path, 10 * [form.format(i) for i in range(12)])


@pytest.mark.parametrize("labels", [["1a", "2b", "3c"], ["q1", "q2"], ["0-9", "10-19"], ["5 kg", "3 lb"]])
def test_labels_with_digits_are_labels(tmp_path, labels):
    assert not [note for note in loaded(tmp_path, 20 * labels).notes if "beside them" in note]


@pytest.mark.parametrize("form", ["Mar {}, 2024", "{:02}-Mar-2024", "{} September", "March {}th, 2024"])
def test_dates_with_the_names_of_months_are_dates(tmp_path, form):
    with pytest.raises(DataError, match="column 'k' holds dates or times"):
        loaded(tmp_path, 10 * [form.format(i) for i in range(1, 13)])


def test_a_marker_is_no_march(tmp_path):
    assert len(loaded(tmp_path, 20 * ["Marker 1", "Marker 2", "Decoy 3"]).columns[1].labels) == 3


def test_a_sign_for_missing_is_offered_as_one(tmp_path):
    with pytest.raises(DataError, match=r"mixes .* texts: '\?' .*--missing-value='\?'; "):
        loaded(tmp_path, 20 * ["1.5", "2.5", "?"])
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, 20 * ["1.5", "2.5", "3.5", "?", "-"])
    assert "--missing-value" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "codes"),
    [
        (["True", "False", ""], ("False", "True")),
        (["TRUE", "FALSE"], ("FALSE", "TRUE")),
        (["true", "false"], ("false", "true")),
        (["True", "False", "true", "False"], ("False", "True")),
    ],
    ids=["title", "capitals", "small", "both"],
)
def test_false_and_true_keep_their_spelling(tmp_path, cells, codes):
    path = tmp_path / "a.csv"
    path.write_text("mass,b\n" + "".join(f"{i + 0.25 * (i % 7)},{cell}\n" for i, cell in enumerate(20 * cells)))
    data = load(path, table=AUTO, verbose=False, missing=True)
    assert (data.columns[1].kind, data.columns[1].codes) == ("boolean", codes)
    assert Column.from_dict(data.columns[1].to_dict()) == replace(data.columns[1], why="")
    known = load(path, table=TableOptions(columns="auto", known=data.columns), verbose=False, missing=True)
    assert known.digest == data.digest  # found again, whatever the spelling


def test_a_boolean_of_three_labels_is_no_column():
    with pytest.raises(ValueError, match="boolean with 3 labels"):
        Column.from_dict({"name": "b", "kind": "boolean", "labels": ["a", "b", "c"]})


@pytest.mark.parametrize(
    "form", ["{}/7", "0x{:X}", "7{}_000", "7{} 000", "7{}\u00a0500", "7{}'000", "({})", "\u2212{}"], ids=ascii
)
def test_numbers_in_the_writing_of_others_are_no_labels(tmp_path, form):
    few = loaded(tmp_path, 20 * [form.format(i) for i in (5, 1, 2)])
    (note,) = [note for note in few.notes if "which are labels here" in note]
    assert note.startswith("column 'k' holds numbers written as ") and "auto,k=categorical" in note
    with pytest.raises(DataError, match=r"column 'k' has 12 labels that are numbers written as .*auto,k=categorical"):
        loaded(tmp_path, 10 * [form.format(i) for i in range(12)])


MEASURES = ["${:.2f}", "{:.1f}%", "{:.2f} kg", '"{:,.2f}"', "\u2212{:.2f}", "{:.2f}D+00", "({:.1f})", "<{:.1f}"]


@pytest.mark.parametrize("columns", [None, "auto"])
@pytest.mark.parametrize("form", MEASURES)
def test_a_first_column_of_numbers_in_another_writing_names_no_rows(tmp_path, form, columns):
    rows = [f"{form.format(1000.5 + 7 * i)},{i % 3},{i % 5}" for i in range(30)]
    (tmp_path / "x.csv").write_text("\n".join(["mass,b,c", *rows, ""]))
    with pytest.raises(DataError, match=r"column 'mass' holds numbers .* write numbers alone"):
        load(tmp_path / "x.csv", table=TableOptions(columns=columns))
    named = load(tmp_path / "x.csv", table=TableOptions(columns=columns, index="mass"))
    assert named.train.x.shape[1] == 2


@pytest.mark.parametrize("form", ["r{}", "{}B", "A-{}", "{} of 30", "#{}"])
def test_a_first_column_of_names_with_numbers_names_the_rows(tmp_path, form):
    (tmp_path / "x.csv").write_text(
        "\n".join(["of,b,c", *(f"{form.format(i)},{i % 3},{i % 5}" for i in range(30)), ""])
    )
    assert load(tmp_path / "x.csv").train.x.shape[1] == 2


@pytest.mark.parametrize(
    "labels", [["1/2", "half"], ["n/a/1", "2/b"], ["12_34", "56_78"], ["0xyz", "0x1g"], ["A(1)", "B(2)"]]
)
def test_codes_with_the_signs_of_numbers_are_labels(tmp_path, labels):
    assert not [note for note in loaded(tmp_path, 20 * labels).notes if "which are labels here" in note]


def test_labels_that_are_said_to_be_meant_are_not_doubted(tmp_path):
    (tmp_path / "a.csv").write_text("mass,k\n" + "".join(f"{i + 0.5},{i % 3}/4\n" for i in range(60)))
    meant = load(tmp_path / "a.csv", table=replace(AUTO, columns="auto,k=categorical"), verbose=False)
    assert meant.columns[1].labels == ("0/4", "1/4", "2/4") and not [n for n in meant.notes if "which are labels" in n]


def test_numbers_that_a_frame_holds_as_texts_are_told():
    import pyarrow as pa

    found = table(pa.table({"a": [0.5, 1.5, 2.5] * 10, "k": ["1", "2.5", "-3"] * 10}), "auto")
    assert [note for note in found.notes if note.startswith("column 'k' holds numbers as texts, which are labels here")]
    whole = table(pa.table({"a": [0.5, 1.5, 2.5] * 10, "k": [11, 12, 13] * 10}), "auto")  # grades, by their numbers
    assert whole.columns[1].labels == ("11", "12", "13") and not whole.notes


def test_numbers_between_thousands_and_a_point_are_no_names(tmp_path):
    for form in ("{:,.2f}", "1.{:03}.000,5"):
        with pytest.raises(DataError, match=r"column 'k' has 12 labels that are numbers written as"):
            loaded(tmp_path, 10 * [form.format(1000 + 7 * i if "," in form[:4] else i) for i in range(12)])


def test_zeros_before_digits_are_told(tmp_path):
    """Post codes are labels; as numbers 02222 and 2222 are one, which stood there without a word."""
    text = "mass,zip,n\n" + "".join(
        f"{i + 0.25 * (i % 7)},{('02222', '2222', '94105')[i % 3]},{i % 7}\n" for i in range(30)
    )
    (tmp_path / "a.csv").write_text(text)
    for options in (TableOptions(), AUTO):
        (note,) = [n for n in load(tmp_path / "a.csv", table=options, verbose=False).notes if "zeros before" in n]
        assert (
            note.startswith("column 'zip': digits with zeros before them ('02222')") and "auto,zip=categorical" in note
        )
    labels = load(tmp_path / "a.csv", table=TableOptions(columns="auto,zip=categorical"), verbose=False)
    assert labels.columns[1].labels == ("02222", "2222", "94105") and not any("zeros" in note for note in labels.notes)
    for columns in (None, "auto"):
        data = load(tmp_path / "a.csv", table=TableOptions(label="zip", columns=columns), verbose=False)
        (note,) = [n for n in data.notes if "zeros before" in n]
        assert note.startswith("labels of column 'zip'") and "02222 and 2222 are one class" in note
    (tmp_path / "a.csv").write_text("id,a\n" + "".join(f"{i:04},{i % 7}.{i % 3}\n" for i in range(30)))
    assert not any("zeros" in note for note in load(tmp_path / "a.csv", verbose=False).notes)  # of an index


def test_a_label_for_missing_is_told_and_taken_for_one(tmp_path):
    (note,) = [note for note in loaded(tmp_path, 20 * ["Private", "Gov", "?"]).notes if "missing value" in note]
    assert note.startswith("column 'k': the label '?', in 20 rows, may stand") and "--missing-value='?'" in note
    known = TableOptions(columns="auto", missing_value="?")
    assert load(tmp_path / "a.csv", table=known, missing=True, verbose=False).columns[1].labels == ("Gov", "Private")
    assert not [note for note in loaded(tmp_path, 20 * ["+", "-", "+-"]).notes if "missing value" in note]


def test_signs_that_no_shell_takes_are_not_offered(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n\0,3\n2,5\n")
    with pytest.raises(DataError, match="mixes 2 numbers and 1 text") as caught:
        load(tmp_path / "a.csv", table=AUTO)
    assert "--missing-value" not in str(caught.value) and "\0" not in str(caught.value)
