"""What tests of this folder start from."""

import pytest

from tests.helpers.pilots import short_pilots


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Annealing has short pilots: that its numbers are right is what is asked of models here, not how its steps are tuned."""
    short_pilots(monkeypatch)
