"""What tests of this folder start from."""

import pytest

from tests.helpers.objectives import DOUBLE
from tests.helpers.small import binary, small_vae


@pytest.fixture
def vae(device):
    return small_vae(device=device, seed=0).double()


@pytest.fixture
def x(device):
    return binary(7, device, DOUBLE, seed=1)
