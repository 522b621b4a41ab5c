"""Data sets by name: digits, their split and digest; unknown names and options."""

import numpy as np
import pytest
import torch

from pyro_vae.data import load
from pyro_vae.errors import UsageError

# digits


def test_digits():
    data = load("digits")
    splits = (data.train, data.validation, data.test)
    assert [len(s) for s in splits] == [1437, 180, 180] and data.shape == (1, 8, 8)
    for s in splits:
        assert s.x.dtype == torch.float32 and s.x.shape == (len(s), 64)
        assert s.y.dtype == torch.int64 and s.y.min() == 0 and s.y.max() == 9
        assert s.x.min() == 0 and s.x.max() == 16 and torch.equal(s.x, s.x.round())
    assert (data.name, data.policy, data.transform) == ("digits", "counts 0..16", None)
    assert not any("converted" in note for note in data.notes)  # nothing that a newcomer would have to know


def test_the_digits_split_is_disjoint_complete_and_fixed():
    from sklearn.datasets import load_digits

    a, b = load("digits", seed=0), load("digits", seed=5)
    for s in ("train", "validation", "test"):
        assert torch.equal(getattr(a, s).x, getattr(b, s).x) and torch.equal(getattr(a, s).y, getattr(b, s).y)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    for s, rows in (("train", order[:1437]), ("validation", order[1437:1617]), ("test", order[1617:])):
        assert (getattr(a, s).x.numpy() == digits.data[rows]).all()
        assert (getattr(a, s).y.numpy() == digits.target[rows]).all()


def test_the_digest_is_of_the_data_not_of_what_was_made_of_it(tmp_path):
    digests = {load("digits", binarization=b, seed=s).digest for b in ("none", "static", "dynamic") for s in (0, 1)}
    assert len(digests) == 1 and len(digests.pop()) == 64
    x = np.ones((10, 4), np.float32)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x.reshape(10, 2, 2))
    np.save(tmp_path / "c.npy", 2 * x)
    assert len({load(tmp_path / f"{name}.npy").digest for name in "abc"}) == 3


def test_digits_static():
    data, again = load("digits", binarization="static"), load("digits", binarization="static")
    other = load("digits", binarization="static", seed=1)
    assert data.policy == "static binarization, once, seed 0" and data.transform is None
    for s in ("train", "validation", "test"):
        x = getattr(data, s).x
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(x, getattr(again, s).x) and not torch.equal(x, getattr(other, s).x)


def test_digits_dynamic():
    data, counts = load("digits", binarization="dynamic"), load("digits")
    assert torch.equal(data.train.x, counts.train.x / 16)
    for s in ("validation", "test"):
        assert set(getattr(data, s).x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(getattr(data, s).x, getattr(load("digits", binarization="static"), s).x)
    batch = data.transform(data.train.x[:5], torch.Generator().manual_seed(0))
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    assert data.policy.startswith("dynamic binarization: train redrawn each epoch") and data.policy.endswith("seed 0")


def test_held_out_draws_differ_between_splits():
    """One generator, not one seed for each split: the same uniforms would tie the draws of test and validation."""
    data, grey = load("digits", binarization="static"), load("digits")
    same = (grey.test.x > 0) & (grey.test.x < 16) & (grey.test.x == grey.validation.x)
    assert (data.test.x != data.validation.x)[same].any()


# names and options


@pytest.mark.parametrize(
    "name, close", [("digit", "digits"), ("MNIST", "mnist"), ("fashion-mnist", "fashion_mnist"), ("rows.pkl", "")]
)
def test_unknown_names(name, close):
    with pytest.raises(
        UsageError,
        match=f"no data set '{name}'.*{close}.*digits, mnist, fashion_mnist, kmnist, .*, celeba, or the path",
    ):
        load(name)


@pytest.mark.parametrize(
    ("name", "way"),
    [("a.csv.gz", "unpack it first"), ("a.xlsx", "as .csv"), ("a.TXT", "call it .csv"), ("a.feather", "one of those")],
)
def test_files_of_other_endings_say_how_to_go_on(name, way, tmp_path):
    (tmp_path / name).write_bytes(b"a,b")
    with pytest.raises(UsageError, match=rf"{name}: a file of data ends in \.npy, .*: .*{way}"):
        load(tmp_path / name)


def test_unusable_options():
    with pytest.raises(UsageError, match="none, static, dynamic"):
        load("digits", binarization="sometimes")
    with pytest.raises(UsageError, match="seed -1"):
        load("digits", seed=-1)
