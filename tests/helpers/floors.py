"""Floors that a test does not look at."""

from functools import partial

import pytest

from pyro_vae.runs import marginal_baseline

STEPS = 12  # of 300 and more, which are half of a training of two epochs


def short_floors(patch: pytest.MonkeyPatch) -> None:
    """Fit the marginals of families without a closed form by a few steps: a finite number, and any start, will do."""
    patch.setattr(marginal_baseline, "DOUBLINGS", -1)  # one ascent, whether or not it reaches the top
    patch.setattr(marginal_baseline, "fit_marginal", partial(marginal_baseline.fit_marginal, steps=STEPS))
