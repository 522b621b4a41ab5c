"""What tests of several folders start from."""

import pytest

from tests.helpers.exact import LinearGaussian
from tests.helpers.missing import Gappy


@pytest.fixture
def lg(device):
    return LinearGaussian(device=device)


@pytest.fixture
def gappy(device):
    return Gappy(device)
