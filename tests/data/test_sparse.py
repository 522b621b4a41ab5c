"""Sparse matrices, and an AnnData's X: the numbers of the dense matrix, without one; refused by row and column."""

import os
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, encode, fit, log_likelihood, normal
from pyro_vae.data import as_rows, batch_of
from pyro_vae.data.sparse import SparseRows
from pyro_vae.errors import DataConversionWarning, DataError, ShapeError, SupportError
from pyro_vae.likelihoods import negative_binomial, poisson
from pyro_vae.training.batch_source import TrainingData, choose_batch_source

DENSE = np.random.default_rng(0).poisson(0.4, (70, 12)).astype(np.float32)
CSR = sp.csr_matrix(DENSE)


def counts_vae(d=12, seed=0, hidden=(8,)):
    torch.manual_seed(seed)
    family = negative_binomial
    return VAE(StandardNormal(2), Conditional(MLP(2, 2 * d, hidden), family), Conditional(MLP(d, 4, hidden), normal))


KINDS = {
    "matrix": CSR,
    "array": sp.csr_array(DENSE),
    "whole numbers": sp.csr_array(DENSE.astype(np.int64)),
    "double": sp.csr_matrix(DENSE.astype(np.float64)),
    "anndata": anndata.AnnData(CSR),
    "anndata, dense": anndata.AnnData(DENSE),
}


def trained(x):
    vae = counts_vae()
    run = fit(vae, x, validation=x[:20], epochs=2, batch_size=32, engine="eager", verbose=False)
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in run.history]
    return history, vae


@pytest.fixture(scope="module")
def of_dense():
    return trained(torch.from_numpy(DENSE))


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_the_dense_matrix(kind, of_dense):
    assert trained(KINDS[kind])[0] == of_dense[0]


def test_scores_and_codes_are_those_of_the_dense_matrix(of_dense):
    _, vae = of_dense
    dense, sparse = (
        log_likelihood(vae.model, vae.guide, x, num_samples=20, verbose=False) for x in (torch.from_numpy(DENSE), CSR)
    )
    assert torch.equal(dense.log_px, sparse.log_px)
    assert dense.data_digest == sparse.data_digest, "they are the same rows"
    torch.testing.assert_close(encode(vae, CSR), encode(vae, torch.from_numpy(DENSE)))
    sites = encode((vae.model, vae.guide), sp.vstack([CSR] * 40, format="csr"))["z"]  # of more than one part
    torch.testing.assert_close(sites, encode(vae, torch.from_numpy(DENSE)).repeat(40, 1))


@pytest.mark.parametrize("form", ["csc", "coo", "lil", "dok"])
def test_other_formats_are_copied_with_a_word(form):
    with pytest.warns(DataConversionWarning, match=f"format {form} is copied, compressed by rows"):
        rows = SparseRows(CSR.asformat(form))
    assert (rows[:].numpy() == DENSE).all() and (rows[torch.tensor([5, 3])].numpy() == DENSE[[5, 3]]).all()


def test_the_callers_matrix_is_left_as_it_is_and_values_stored_twice_are_added():
    twice = sp.csr_matrix((np.ones(3, np.float32), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    assert SparseRows(twice)[:].tolist() == [[0, 2], [1, 0]] and twice.nnz == 3
    assert SparseRows(CSR).matrix is CSR, "no copy"


def test_names_of_rows_come_along():
    names = [f"cell{i}" for i in range(70)]
    x = anndata.AnnData(CSR, obs=pd.DataFrame(index=names))
    vae = counts_vae()
    found = log_likelihood(vae.model, vae.guide, x, num_samples=5, verbose=False)
    assert found.row_ids.index == tuple(names)


def stored(value, row=3, column=2):
    bad = DENSE.copy()
    bad[row, column] = value
    return sp.csr_matrix(bad)


BAD = {
    "nan": (stored(np.nan), DataError, r"x has NaN or infinite values in 1 of .* first in row 3, column 2 \(nan"),
    "infinite": (stored(np.inf), DataError, r"row 3, column 2 \(inf"),
    "too large": (stored(1.0).astype(np.float64) * 1e300, DataError, "beyond torch.float32.*Rescale"),
    "complex": (CSR.astype(np.complex64), DataError, "complex64, wanted real"),
    "empty": (sp.csr_matrix((0, 4)), DataError, "empty"),
    "a vector": (sp.coo_array(DENSE[0]), ShapeError, "rows and columns"),
    "negative": (stored(-2.0), SupportError, "row 3 holds -2 in column 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_likelihood_is_refused_by_row_and_column(case):
    x, error, message = BAD[case]
    vae = VAE(StandardNormal(1), Conditional(MLP(1, 12, ()), poisson), Conditional(MLP(12, 2, ()), normal))
    for run in (
        lambda: fit(vae, x, epochs=1, verbose=False),
        lambda: log_likelihood(vae.model, vae.guide, x, verbose=False),
    ):
        with pytest.raises(error, match=message):
            run()


def test_columns_are_named_and_wrong_indices_never_followed():
    x = anndata.AnnData(stored(np.nan), var=pd.DataFrame(index=[f"gene{i}" for i in range(12)]))
    with pytest.raises(DataError, match=r"x.X? ?.*row 3, column 2 \('gene2'\)"):
        fit(counts_vae(), x, epochs=1, verbose=False)
    wild = CSR.copy()
    wild.indices = wild.indices.copy()
    wild.indices[0] = 10**6
    with pytest.raises(DataError, match="x is damaged"):
        fit(counts_vae(), wild, epochs=1, verbose=False)


def test_what_wants_all_rows_dense_gets_them_if_they_fit_and_is_told_the_size_if_not():
    assert torch.equal(as_rows(CSR), torch.from_numpy(DENSE))
    huge = sp.csr_matrix((10**6, 10**4), dtype=np.float32)
    with pytest.raises(DataError, match=r"sparse matrix 1,000,000 × 10,000.*dense here.*40.0 GB.*x\[:1000\]"):
        as_rows(huge)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is asked of Linux")
def test_batches_and_scores_take_no_memory_of_a_dense_copy():
    """20,000 rows of 5,000, 1 % of them stored: 400 MB dense, of which a few steps' batches are read and given back."""

    def memory(what):
        return 1024 * int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    values = np.ones(1_000_000, np.float32)
    numbers = np.random.default_rng(0).integers(0, 5000, 1_000_000)
    rows = sp.csr_matrix((values, numbers, np.arange(0, 1_000_001, 50)), (20_000, 5000))
    net = torch.nn.Linear(5000, 2)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    (train,) = batch_of(rows, like=net.weight, on_disk=True)
    data = TrainingData(*choose_batch_source((train,), torch.device("cpu")), batch_size=500)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _, (x,) in data.one_pass(data.shuffle(0)):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    data.source.close()
    assert memory("VmHWM") - before < 200e6


def test_values_stored_twice_are_added_beyond_their_dtype():
    twice = sp.csr_matrix((np.array([100, 100, 200], np.uint8), [1, 1, 1], [0, 3, 3]), shape=(2, 3))
    assert SparseRows(twice)[:].tolist() == [[0.0, 400.0, 0.0], [0.0, 0.0, 0.0]]


def test_what_float32_cannot_hold_is_seen_beside_gaps():
    x = stored(np.nan).astype(np.float64)
    x[4, 5] = 1e300
    with pytest.raises(DataError, match=r"beyond torch.float32 in 1 of .* row 4, column 5"):
        SparseRows(x.tocsr()).converted(torch.float32, None, True, "x")
