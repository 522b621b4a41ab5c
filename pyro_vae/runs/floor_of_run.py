"""The floor of a run's log p(x): a model that knows each element apart, on the same rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data
from pyro_vae.distributions.units import real_elements
from pyro_vae.models.standardize import log_scale

from .load import Run
from .marginal_baseline import floor, summarize_floor
from .registry import likelihood_of


def floor_of(run: Run, data: Data, x: Tensor, log_px: Tensor) -> dict[str, Any]:
    """Summarize the floor on the same rows, and by how much log p(x) clears it; it is exact, so it has no Monte Carlo error."""
    if not len(data.sample):
        return {"model": "unknown, as the training rows are not there", "log_px": None, "log_px_data_se": None}
    train_rows = (
        data.sample.x if data.transform is None else data.sample.x.double()
    )  # grey means are the Bernoulli's own
    kind, shape = run.kind, data.shape
    train_rows, x = kind.observed(train_rows, shape), kind.emissions(x, shape)
    own, features = likelihood_of(run.config, x.shape[1], run.components)
    jacobian: Any = 0.0
    if run.config.standardize:  # a fit by gradient starts at scale 1, as networks do
        units = kind.units(run.vae)
        real = real_elements(own(torch.zeros(features))).to(
            x.device
        )  # a fork's likelihood may be of fewer than its units
        loc, scale = torch.where(real, units.loc.to(x), 0.0), torch.where(real, units.scale.to(x), 1.0)
        jacobian, train_rows, x = log_scale(x, scale).double(), (train_rows - loc) / scale, (x - loc) / scale
    floor_px = floor(run.config.likelihood, own, features, train_rows, x) - jacobian
    floor_px = floor_px.reshape(len(log_px), -1).sum(1)
    family = run.config.likelihood
    of = "independent columns" if family == "columns" else f"independent {family} elements"
    return summarize_floor(f"{of}, fitted to the training rows", log_px, floor_px)
