"""Products by oneDNN are the products they stand for; small, narrow, transposed and float64 ones stay as they are."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.common import matrix_products, torch_private
from pyro_vae.common.matrix_products import ATEN, LEAST, by_onednn, linear

needs_onednn = pytest.mark.skipif(torch_private.onednn_linear() is None, reason="torch has no oneDNN here")


@pytest.fixture(autouse=True)
def another_processor(monkeypatch):
    """A processor that is not Intel's, whatever these tests run on."""
    monkeypatch.setattr(matrix_products, "is_intel", lambda: False)


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def rewritten(function, *inputs):
    graph = make_fx(function)(*inputs)
    return graph, by_onednn(graph, inputs)


LARGE = {
    "weights as they lie": (normal(64, 512), normal(256, 512).T),
    "a gradient by the rows": (normal(64, 512), normal(512, 256)),
    "rows cut out of wider ones": (normal(64, 1024)[:, 512:], normal(256, 512).T),
    "every second column of the weights": (normal(64, 512), normal(512, 512)[:, ::2]),
    "one row": (normal(1, 4096), normal(1024, 4096).T),
}
LEFT = {
    "small": (normal(4, 512), normal(512, 256)),
    "narrow inside": (normal(8192, 64), normal(64, 256)),
    "narrow outside": (normal(8192, 256), normal(256, 64)),
    "a gradient of the weights": (normal(512, 256).T, normal(512, 256)),
    "float64": (normal(64, 512, dtype=torch.float64), normal(512, 256, dtype=torch.float64)),
}


@needs_onednn
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_a_large_product_is_onednns_and_the_same_number(name, bias):
    x, w = LARGE[name]
    inputs = (x, w, *([normal(w.shape[1])] if bias else []))
    graph, by = rewritten(lambda x, w, *b: torch.addmm(*b, x, w) if b else x @ w, *inputs)
    assert count(by, linear()) == 1 and count(by, ATEN.mm.default) + count(by, ATEN.addmm.default) == 0
    assert count(graph, linear()) == 0  # the graph that was given is left as it was
    exact = x.double() @ w.double() + (inputs[2].double() if bias else 0.0)
    torch.testing.assert_close(by(*inputs).double(), exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", LEFT)
def test_others_stay(name):
    x, w = LEFT[name]
    assert name == "small" or x.shape[0] * x.shape[1] * w.shape[1] >= LEAST
    graph, by = rewritten(torch.mm, x, w)
    assert count(by, ATEN.mm.default) == 1 and torch.equal(by(x, w), graph(x, w))


def test_scaled_additions_stay():
    x, w = LARGE["weights as they lie"]
    graph, by = rewritten(lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2.0), normal(256), x, w)
    assert count(by, ATEN.addmm.default) == 1 and torch.equal(by(normal(256), x, w), graph(normal(256), x, w))


def test_a_torch_without_onednn_keeps_its_own(monkeypatch):
    monkeypatch.setattr(matrix_products, "linear", lambda: None)
    graph, by = rewritten(torch.mm, *LARGE["weights as they lie"])
    assert by is graph


def test_an_intel_processor_keeps_its_own(monkeypatch):
    monkeypatch.setattr(matrix_products, "is_intel", lambda: True)
    graph, by = rewritten(torch.mm, *LARGE["weights as they lie"])
    assert by is graph


@pytest.mark.parametrize(
    "wrong", [None, lambda *a: a[0], lambda x: x], ids=["absent", "another number", "called otherwise"]
)
def test_an_operation_that_is_another_is_not_taken(monkeypatch, wrong):
    monkeypatch.setattr(torch_private, "find_onednn", lambda: wrong)
    assert torch_private.onednn_linear() is None


def count(graph, target):
    return len(graph.graph.find_nodes(op="call_function", target=target))
