"""Every load tells on standard error what was read as what: rows × columns, header, labels; and is quiet where asked to be."""

import numpy as np
import pytest

from pyro_vae.data import load
from pyro_vae.data.table_layout import TableOptions

X = np.arange(20, dtype=np.float64).reshape(10, 2) / 7


def csv(path, header, columns=X):
    path.write_text(
        "\n".join([*([header] if header else []), *(",".join(map(repr, map(float, r))) for r in columns), ""])
    )


def npz(path, **arrays):
    np.savez(path, **arrays)


FILES = {
    "x.csv": (lambda p: csv(p, "a,b"), {}, "10 rows × 2 columns; header: a, b; labels: none"),
    "bare.csv": (lambda p: csv(p, ""), {}, "10 rows × 2 columns; no header: the first line is a row; labels: none"),
    "y.csv": (
        lambda p: csv(p, "a,y"), {"table": TableOptions(label="y")},
        "10 rows × 1 column; header: a; labels: column 1 ('y')",
    ),
    "x.npy": (lambda p: np.save(p, X), {}, "x: 10 rows × 2 columns of float64; labels: none"),
    "x.npz": (lambda p: npz(p, x=X, y=np.arange(10)), {}, "x: 10 rows × 2 columns of float64; labels: y, int64"),
    "split.npz": (
        lambda p: npz(p, x_train=X, x_validation=X[:3], x_test=X[:4]), {},
        "x_test: 4 rows × 2 columns of float64; labels: none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path, capsys):
    write, options, told = FILES[name]
    write(tmp_path / name)
    data = load(tmp_path / name, **options)
    out, err = capsys.readouterr()
    assert out == "" and f"note: {name}: {told}\n" in err
    assert err == "".join(f"note: {name}: {note}\n" for note in data.notes)
    load(tmp_path / name, verbose=False, **options)
    assert capsys.readouterr() == ("", "")


def test_data_sets_by_name(capsys):
    load("digits")
    said = capsys.readouterr().err
    assert "note: digits: x: 1797 rows × 8 × 8 columns of float32; labels: y, int64\n" in said
    assert load("digits", verbose=False).notes[0] in said and capsys.readouterr().err == ""


def test_a_conversion_is_told_too(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X.astype(np.float64))
    load(tmp_path / "x.npy")
    assert "note: x.npy: x: converted from numpy float64 to torch.float32\n" in capsys.readouterr().err
