"""Small runs on disk, for tests of what is read from them, or damaged in them."""

import numpy as np
import pytest

from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.train_run import train_run


def train_small(here, *names, num_samples=5):
    """Train runs of two epochs on 50 rows of normals, without pictures; return the folder of the first."""
    np.save(here / "x.npy", np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    config = Config(data=str(here / "x.npy"), hidden=(4,), latent_dim=2, epochs=2, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "draw_figures", lambda *_: None)
        patch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
        for name in names:
            train_run(config, here / name, num_samples=num_samples, device="cpu")
    return here / names[0]
