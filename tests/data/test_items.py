"""Data sets that are no arrays: read item by item, or refused with the way to an array."""

import pytest
import torch

from pyro_vae import fit
from pyro_vae.data import as_rows
from pyro_vae.errors import DataError
from tests.helpers.small import small_vae

pytestmark = pytest.mark.usefixtures("one_thread")


class Items:
    """A map-style data set, one of whose items may be a fault."""

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i == 17 and isinstance(self.fault, Exception):
            raise self.fault
        if i == 17 and self.fault is not None:
            return self.fault
        return torch.full((3,), float(i))


def test_a_data_set_of_items_is_read():
    assert as_rows(Items()).tolist() == [[float(i)] * 3 for i in range(20)]
    assert len(fit(small_vae(seed=0), torch.utils.data.Subset(Bits(), range(8)), epochs=1, verbose=False).history) == 1


class Bits(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.tensor([float(i >> bit & 1) for bit in range(6)])


@pytest.mark.parametrize("fault", [KeyError("k"), OSError("no such picture"), ValueError("bad"), IndexError("i")])
def test_an_item_that_cannot_be_read_is_named_with_its_error(fault):
    with pytest.raises(DataError, match=rf"x\[17\] cannot be read: {type(fault).__name__}") as caught:
        as_rows(Items(fault))
    assert caught.value.__cause__ is fault


def test_items_of_other_shapes_and_of_several_parts_are_named():
    with pytest.raises(DataError, match=r"x\[17\] has shape \(4,\), and x\[0\] has \(3,\)"):
        as_rows(Items(torch.zeros(4)))
    with pytest.raises(DataError, match=r"x\[0\] is a tuple.*torch\.stack"):
        as_rows(torch.utils.data.TensorDataset(torch.zeros(4, 3), torch.zeros(4)))


@pytest.mark.parametrize(
    "stream", [(row for row in torch.zeros(3, 2)), iter([[1.0]]), torch.utils.data.DataLoader(Bits(), 4)]
)
def test_streams_and_loaders_are_refused_with_the_way_to_an_array(stream):
    with pytest.raises(DataError, match=r"is a stream.*torch\.stack.*torch\.cat.*write_shards"):
        as_rows(stream)
