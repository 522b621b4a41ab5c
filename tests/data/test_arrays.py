"""Arrays, tensors and lists as rows: converted with a warning, or refused by row."""

import numpy as np
import pytest
import torch

from pyro_vae.data import as_rows, same_rows
from pyro_vae.errors import DataConversionWarning, DataError, ShapeError


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int64, np.uint8, np.uint16, np.bool_, np.longdouble, ">f8"]
)
def test_other_dtypes_are_copied_with_a_warning(dtype):
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    before = array.copy()
    with pytest.warns(
        DataConversionWarning, match=r"^x: converted from numpy \w+ to torch.float32 \(a copy; your array"
    ):
        rows = as_rows(array)
    rows += 7
    assert rows.dtype == torch.float32
    assert array.dtype == before.dtype and (array == before).all()


def test_float32_passes_silently_in_any_layout():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    fixed = array.copy()
    fixed.flags.writeable = False
    for x in (array, array[:, ::2], array[::-1], array.T, np.asfortranarray(array), fixed, array.astype(">f4")):
        assert torch.equal(as_rows(x), torch.tensor(x.tolist()))


def test_read_only_arrays_are_not_aliased():
    array = np.zeros((3, 2), np.float32)
    array.flags.writeable = False
    as_rows(array).add_(1)
    assert (array == 0).all()


def test_tensors_keep_a_floating_dtype_and_lose_their_graph():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = torch.ones(3, 2, dtype=dtype, requires_grad=True)
        assert as_rows(x).dtype == dtype and not as_rows(x).requires_grad and x.requires_grad
    with pytest.warns(DataConversionWarning, match=r"from torch.int64 to torch.float32 \(a copy; your tensor"):
        assert as_rows(torch.ones(3, 2, dtype=torch.int64)).dtype == torch.float32
    with pytest.warns(DataConversionWarning, match="y: converted from torch.float64 to torch.float32"):
        as_rows(torch.ones(3, 2, dtype=torch.float64), name="y", dtype=torch.float32)


def test_a_dtype_asked_for_and_there_is_silent():
    assert as_rows(np.ones((2, 2)), dtype=torch.float64).dtype == torch.float64
    assert as_rows(np.ones(2, np.int64), dtype=torch.int64).dtype == torch.int64
    assert as_rows(np.ones((2, 2), bool), dtype=torch.bool).dtype == torch.bool
    assert as_rows(torch.ones(2, 2), device="cpu").device.type == "cpu"


def test_the_default_dtype_is_followed():
    torch.set_default_dtype(torch.float64)
    try:
        assert as_rows(np.ones((2, 2))).dtype == torch.float64
        assert as_rows(np.ones((2, 2), np.float32)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_lists_and_frames():
    assert as_rows([[1, 2], [3, 4]]).dtype == torch.float32
    assert as_rows(([True, False],), dtype=torch.float64).dtype == torch.float64

    class Frame:
        def to_numpy(self):
            return np.eye(2, dtype=np.float32)

    assert torch.equal(as_rows(Frame()), torch.eye(2))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.array([["a", "b"]]), DataError, r"x \(a ndarray\) has dtype <U1, wanted real numbers"),
        (np.array([[1, None]]), DataError, "dtype object"),
        (np.ones((2, 2), complex), DataError, "dtype complex128"),
        (torch.ones(2, 2, dtype=torch.complex64), DataError, "torch.complex64"),
        (torch.eye(2).to_sparse(), DataError, "to_dense"),
        (np.array(["2020-01-01"], "M8[D]"), DataError, "datetime64"),
        (
            np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [0, 1]]),
            DataError,
            "masked entries in 1 of 2 rows: 1 ",
        ),
        (None, DataError, "NoneType"),
        ("rows.npy", DataError, "a str"),
        ([[1, 2], [3]], DataError, "cannot be read as one array"),
        (3.0, ShapeError, "single number"),
        (torch.tensor(3.0), ShapeError, "single number"),
        (np.ones((0, 64), np.float32), DataError, r"x is empty: shape \(0, 64\).* no rows"),
        (torch.ones(5, 0), DataError, r"x is empty: shape \(5, 0\).* no columns"),
        ([], DataError, r"x is empty: shape \(0,\)"),
    ],
)
def test_what_is_no_data_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        as_rows(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_non_finite_rows_are_named(bad, kind):
    x = [[0.0, 0.0, 0.0] for _ in range(20)]
    for row in range(4, 18, 2):
        x[row][2] = bad
    with pytest.raises(DataError, match=r"in 7 of 20 rows: 4, 6, 8, 10, 12, \.\.\. .*row 4 first in column 2\)\. Drop"):
        as_rows(kind(x))
    with pytest.raises(DataError):
        as_rows(kind(x), dtype=torch.int64)


def test_what_a_conversion_would_make_infinite_is_named():
    with pytest.raises(DataError, match=r"once converted from torch.float64 to torch.float32 in 1 of 2 rows: 1 "):
        as_rows(np.array([[1.0], [1e300]]))


def test_same_rows():
    same_rows(torch.ones(5, 2), torch.ones(5), torch.ones(5, 3))
    with pytest.raises(ShapeError, match=r"x has 5 rows, context 1 has 4 \(shape \(4, 2\)\)"):
        same_rows(torch.ones(5, 2), torch.ones(5), torch.ones(4, 2))
    with pytest.raises(ShapeError, match="context 0 has none"):
        same_rows(torch.ones(5, 2), torch.tensor(1.0))
