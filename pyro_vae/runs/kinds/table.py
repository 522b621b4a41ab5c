"""The closed table that `--model` names a kind from: a file of this folder each."""

from __future__ import annotations

from collections.abc import Mapping

from . import hierarchical, mixture, multimodal, semi_supervised, sequence, vae
from .kind import ModelKind

MODELS: Mapping[str, ModelKind] = {
    "vae": vae.KIND,
    "hierarchical": hierarchical.KIND,
    "sequence": sequence.KIND,
    "gmvae": mixture.KIND,
    "semi_supervised": semi_supervised.KIND,
    "multimodal": multimodal.KIND,
}
ELSEWHERE = {  # models that no config names, and how they are had
    "bayesian": "its parameters belong to the whole data set, so that its rows have no log p(x) of their own to evaluate and "
    "compare; in Python: Bayesian or BayesianVAE, fit, predictive_density (examples/bayesian.py)",
}
