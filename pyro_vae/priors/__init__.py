"""p(z): modules that return a distribution when called. They take a context and may leave it unused."""

from .flow import FlowPrior
from .mixture import Mixture
from .registry import PRIORS
from .simple import DiagonalNormal, Dirichlet, Laplace, OneHot, StandardNormal, StudentT, UniformSphere
from .vamp import VampPrior

__all__ = [
    "PRIORS",
    "DiagonalNormal",
    "Dirichlet",
    "FlowPrior",
    "Laplace",
    "Mixture",
    "OneHot",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "VampPrior",
]
