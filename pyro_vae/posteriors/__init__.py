"""q(z | x): families for a whole latent vector, and posteriors that are more than a network and a family."""

from .families import (
    full_normal,
    logistic_normal,
    low_rank_normal,
    mixture_normal,
    one_hot_categorical,
    one_hot_categorical_st,
    power_spherical,
)
from .flow import FlowPosterior
from .registry import POSTERIORS
from .semi_amortized import SemiAmortized

__all__ = [
    "POSTERIORS",
    "FlowPosterior",
    "SemiAmortized",
    "full_normal",
    "logistic_normal",
    "low_rank_normal",
    "mixture_normal",
    "one_hot_categorical",
    "one_hot_categorical_st",
    "power_spherical",
]
