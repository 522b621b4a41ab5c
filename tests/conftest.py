"""What tests of several folders start from."""

import pytest

from tests.helpers.exact import LinearGaussian


@pytest.fixture
def lg(device):
    return LinearGaussian(device=device)
