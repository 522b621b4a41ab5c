"""What a process has imported that has only imported the package: asked in a child (children.py), where no test has run.

Imports nothing itself: a child comes here to find what it is to run.
"""

import sys
import warnings


def scikit_learn_comes_with_the_estimator():
    import pyro_vae

    assert "sklearn" not in sys.modules
    assert pyro_vae.VAEEstimator
    assert "sklearn" in sys.modules


def pictures_leave_pyplot_alone():
    import numpy

    from pyro_vae.plots import latents

    assert "matplotlib.figure" not in sys.modules
    latents.latent_map(numpy.eye(2), None)
    assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules


def zuko_comes_with_the_first_flow():
    import pyro
    import torch

    import pyro_vae.posteriors
    import pyro_vae.priors

    warnings.simplefilter("error")
    assert "zuko" not in sys.modules
    before, base = pyro.settings.get(), torch.distributions.Distribution
    assert base._validate_args is True
    pyro_vae.priors.FlowPrior(2)
    assert "zuko" in sys.modules
    assert base._validate_args is True and pyro.settings.get() == before
    try:
        torch.distributions.Normal(0.0, -1.0)
    except ValueError:
        return
    raise AssertionError("torch no longer validates")
