"""What tests of this folder start from."""

import pytest

from tests.helpers.pilots import short_pilots


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Annealing has short pilots."""
    with pytest.MonkeyPatch.context() as patch:
        short_pilots(patch)
        yield
