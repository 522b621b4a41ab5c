"""Likelihood families: functions from features (what a network put out) to a distribution over elements."""

from .continuous import (
    SharedNormal,
    beta,
    continuous_bernoulli,
    gamma,
    laplace,
    log_normal,
    normal,
    normal_fixed,
    student_t,
)
from .discrete import (
    bernoulli,
    binomial,
    categorical,
    discretized_logistic,
    discretized_logistic_mixture,
    multinomial,
    negative_binomial,
    poisson,
    zero_inflated_negative_binomial,
    zero_inflated_poisson,
)
from .ordinal import CumulativeLogit
from .registry import FAMILIES, columns, fitting

__all__ = [
    "FAMILIES",
    "CumulativeLogit",
    "SharedNormal",
    "bernoulli",
    "beta",
    "binomial",
    "categorical",
    "columns",
    "continuous_bernoulli",
    "discretized_logistic",
    "discretized_logistic_mixture",
    "fitting",
    "gamma",
    "laplace",
    "log_normal",
    "multinomial",
    "negative_binomial",
    "normal",
    "normal_fixed",
    "poisson",
    "student_t",
    "zero_inflated_negative_binomial",
    "zero_inflated_poisson",
]
