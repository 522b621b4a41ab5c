"""What a process has imported that has only imported the package: asked in a child (children.py), where no test has run.

Imports nothing itself: a child comes here to find what it is to run.
"""

import sys


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
