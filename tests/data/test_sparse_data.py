"""Files of sparse matrices: split as others are, training rows kept sparse; names by name; damaged files refused."""

from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_vae.data import Column, TableOptions, load, user_files
from pyro_vae.data.sparse import SparseRows
from pyro_vae.data.sparse_data import read_rows, with_columns
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.runs import new_rows
from pyro_vae.runs.config import Config

DENSE = np.random.default_rng(0).poisson(0.5, (50, 6)).astype(np.float32)
CSR = sp.csr_matrix(DENSE)
GENES, CELLS = [f"g{i}" for i in range(6)], [f"c{i}" for i in range(50)]
TYPES = ["b", "a"] * 25


def written(folder, matrix=CSR):
    data = anndata.AnnData(matrix, obs=pd.DataFrame({"type": TYPES}, index=CELLS), var=pd.DataFrame(index=GENES))
    data.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def test_rows_are_split_and_named_and_training_rows_stay_sparse(tmp_path):
    sp.save_npz(tmp_path / "cells.npz", CSR)
    plain = load(tmp_path / "cells.npz", verbose=False)
    named = load(written(tmp_path), table=TableOptions(label="type"), verbose=False)
    for data in (plain, named):
        assert isinstance(data.train.x, SparseRows) and data.kind == "counts" and data.shape == (6,)
        assert [len(s) for s in (data.train, data.validation, data.test, data.sample)] == [40, 5, 5, 5]
        for split in (data.train, data.validation, data.test, data.sample):
            assert (split.x[:].numpy() == DENSE[split.numbers]).all()
        together = np.concatenate([s.numbers for s in (data.train, data.validation, data.test)])
        assert sorted(together) == list(range(50))
    assert plain.digest == named.digest and [c.name for c in named.columns] == GENES
    for split in (named.train, named.test):
        assert split.ids.index == tuple(CELLS[n] for n in split.numbers)
        assert split.ids.label == tuple(TYPES[n] for n in split.numbers)


def test_kinds_go_by_what_is_stored(tmp_path):
    for values, kind in (
        (DENSE > 0, "binary"),
        (DENSE - 1, ""),
        (DENSE + 0.5 * (DENSE == 2), ""),
        (DENSE * 1000, "counts"),
    ):
        sp.save_npz(tmp_path / "x.npz", sp.csr_matrix(values.astype(np.float32)))
        assert load(tmp_path / "x.npz", verbose=False).kind == kind


def test_a_dense_x_of_an_h5ad_is_read_alike(tmp_path):
    sparse = load(written(tmp_path), verbose=False)
    dense = load(written(tmp_path, DENSE), verbose=False)
    assert torch.equal(sparse.train.x[:], dense.train.x[:])


def test_columns_of_new_rows_go_by_name(tmp_path):
    rows, *_ = read_rows(written(tmp_path))
    turned = with_columns(rows, GENES[::-1], tmp_path)
    assert (turned[:].numpy() == DENSE[:, ::-1]).all() and turned.column_names == tuple(GENES[::-1])
    with pytest.raises(DataError, match=r"no column 'g9', which the run was trained on: 1 of 2 are not there"):
        with_columns(rows, ["g1", "g9"], tmp_path)


def test_new_rows_of_a_run_are_found_by_the_names_of_their_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(new_rows, "training_rows", lambda run, data_dir: None)
    known = tuple(map(Column, GENES[4:0:-1]))
    about = {"kind": SimpleNamespace(ragged=False), "shape": (4,), "record": {"data": {"digest": ""}}}
    run = SimpleNamespace(config=Config().resolved(), columns=known, **about)
    data = new_rows.open_rows(run, written(tmp_path))
    assert (data.test.x.numpy() == DENSE[:, 4:0:-1]).all() and data.test.ids.index == tuple(CELLS)
    sp.save_npz(tmp_path / "x.npz", CSR)
    with pytest.raises(ShapeError, match=r"rows of shape \(6,\), and the run was trained on rows of shape \(4,\)"):
        new_rows.open_rows(run, tmp_path / "x.npz")
    run.config = replace(run.config, missing_value="1.0")
    with pytest.raises(DataError, match=r"holds 1\.0, which stands for a missing value in this run"):
        new_rows.open_rows(run, written(tmp_path))
    run.columns = (Column("g0", "category", ("a", "b")), *known[1:])
    with pytest.raises(UsageError, match="the run reads its rows otherwise"):
        new_rows.open_rows(run, tmp_path / "x.npz")


def test_what_cannot_be_read_or_is_no_option_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    whole = {"format": np.array(b"csr"), "shape": np.array([5, 5]), "data": np.ones(2, np.float32)}
    whole |= {"indices": np.array([0, 10**8], np.int32), "indptr": np.array([0, 1, 2, 2, 2, 2], np.int32)}
    np.savez(path, **whole)
    with pytest.raises(DataError, match=r"x\.npz is damaged"):
        load(path)
    np.savez(path, **whole | {"data": np.array([object(), 1])})
    with pytest.raises(DataError, match="damaged, or no sparse matrix"):
        load(path)
    monkeypatch.setattr(user_files, "UNPACKED", 10**4)
    np.savez_compressed(path, **whole | {"data": np.zeros(2**20, np.float32)})
    with pytest.raises(DataError, match=r"x\.npz has .* bytes and unpacks to"):
        load(path)
    sp.save_npz(path, CSR)
    for options in (
        {"memory": "1 GB"},
        {"binarization": "static"},
        {"table": TableOptions(label="y")},
        {"sequences": True},
    ):
        with pytest.raises(UsageError, match="is no option"):
            load(path, **options)
    with pytest.raises(UsageError, match="splits by file are of dense rows"):
        load(path, test=path)
    (tmp_path / "x.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"x\.h5ad: damaged, or no \.h5ad"):
        load(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"obs has no column 'kind', .*; it has type"):
        load(written(tmp_path), table=TableOptions(label="kind"))


def test_labels_are_read_as_those_of_tables(tmp_path):
    obs = {"cluster": [i % 12 for i in range(50)], "type": [None if i % 2 else "b" for i in range(50)]}
    data = anndata.AnnData(CSR, obs=pd.DataFrame(obs, index=CELLS))
    data.write_h5ad(tmp_path / "c.h5ad")
    clusters, types = (load(tmp_path / "c.h5ad", table=TableOptions(label=k), verbose=False).train for k in obs)
    assert clusters.y.tolist() == [n % 12 for n in clusters.numbers] and clusters.classes == ()
    assert types.y.tolist() == [-(n % 2) for n in types.numbers] and types.classes == ("b",)


def test_new_rows_with_two_columns_of_one_name_are_refused(tmp_path):
    rows, *_ = read_rows(written(tmp_path))
    twice = SparseRows(rows.matrix, "x", (), ("g0", "g1", "g1", "g3", "g4", "g5"))
    with pytest.raises(DataError, match="several columns called 'g1'"):
        with_columns(twice, ["g3", "g1"], tmp_path)
    assert (with_columns(twice, ["g3", "g0"], tmp_path)[:].numpy() == DENSE[:, [3, 0]]).all()


@pytest.mark.filterwarnings("ignore:.*is copied, compressed by rows")
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
def test_files_of_any_format_are_read_as_the_matrix(form, tmp_path):
    for matrix in (CSR.asformat(form), sp.csr_array(CSR).asformat(form)):
        sp.save_npz(tmp_path / "x.npz", matrix)
        data = load(tmp_path / "x.npz", verbose=False)
        assert (data.train.x[:].numpy() == DENSE[data.train.numbers]).all()
