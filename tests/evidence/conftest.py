"""What tests of this folder start from."""

import pytest

from pyro_vae.programs.vectorize_probe import ProbedOnce


@pytest.fixture(autouse=True)
def probed_once():
    """How a pair runs for particles is looked for once in a test: tests/programs look at the probes themselves."""
    with ProbedOnce():
        yield
