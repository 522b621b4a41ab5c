"""What is computed from a row's values is seen, by whichever way it goes; what takes its shape alone is not."""

import pytest
import torch

from pyro_vae.programs.row_reads import RowReads

X, Z, TABLE = torch.ones(1), torch.linspace(-1, 1, 5).unsqueeze(-1), torch.randn(4)
SCRIPT = torch.jit.CompilationUnit(
    "def shifted(x):\n    return x + 1\n"
)  # calls none of torch's functions, but its operators


def written():
    out = torch.zeros(3)
    seen = out.view(-1)
    out[0] = X[0]
    return seen


@pytest.mark.parametrize(
    "computed",
    [
        lambda: torch.where(Z > 3, X, Z),
        lambda: Z + X.item(),
        lambda: Z if X > 0 else -Z,
        lambda: TABLE[X.long()],
        lambda: torch.from_numpy(X.numpy()),
        lambda: next(iter(X)),
        lambda: Z.clone().add_(X),
        lambda: torch.add(Z, X, out=torch.zeros(5, 1)),
        lambda: torch.nn.GRU(1, 2)(X.view(1, 1, 1))[0],
        lambda: torch.broadcast_tensors(Z, X)[1],
        lambda: torch.full((2,), float(X)),
        written,
        lambda: SCRIPT.shifted(X),
        lambda: torch.vmap(lambda v: v * 2)(X),
        lambda: torch.func.grad(lambda v: (v**2).sum())(X),
    ],
    ids=[
        "where",
        "item",
        "branch",
        "index",
        "numpy",
        "iterated",
        "in_place",
        "out",
        "gru",
        "broadcast",
        "float",
        "written",
        "script",
        "vmap",
        "gradient",
    ],
)
def test_what_reads_the_row(computed):
    with RowReads([X]) as reads:
        out = computed()
    assert reads.derived([out])


@pytest.mark.parametrize(
    "computed",
    [
        lambda: Z + 1,
        lambda: Z + X.new_zeros(1),
        lambda: Z + torch.zeros_like(X),
        lambda: Z * X.shape[0] + len(X),
        lambda: Z.to(X).expand_as(X.expand(5, 1)),
        lambda: torch.broadcast_tensors(Z, X)[0],
        lambda: torch.relu(Z.clone()).add_(1),
    ],
    ids=["plain", "new", "like", "shape", "cast", "broadcast", "in_place"],
)
def test_what_takes_its_shape_alone(computed):
    with RowReads([X]) as reads:
        out = computed()
    assert not reads.derived({"a": [out]})
