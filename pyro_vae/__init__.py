"""Variational autoencoders as Pyro programs, with log-likelihoods one can trust."""

from . import errors
from .data import binarize
from .evaluate.evidence import Evidence
from .evaluate.importance import log_likelihood
from .evaluate.impute import impute, impute_mean
from .infer.bounds import elbo, iwae
from .infer.check import check
from .infer.weights import log_weights
from .models.vae import VAE
from .parts import families, posteriors, priors
from .parts.conditional import Conditional
from .parts.families import bernoulli, binomial, normal
from .parts.missing import SkipMissing, WithMask
from .parts.networks import MLP, ConvDecoder, ConvEncoder
from .parts.priors import StandardNormal
from .train.fit import fit
from .train.schedules import constant, cosine, warmup
from .train.step import adam
from .use import encode, interpolate, reconstruct, sample

__all__ = [  # noqa: RUF022 (grouped as in the README)
    # models and their parts
    "VAE", "Conditional", "MLP", "ConvEncoder", "ConvDecoder",
    "StandardNormal", "bernoulli", "binomial", "normal",
    "priors", "families", "posteriors",
    # missing data
    "SkipMissing", "WithMask", "impute", "impute_mean",
    # training
    "fit", "adam", "constant", "cosine", "warmup", "binarize",
    # log weights, bounds, evidence
    "check", "log_weights", "elbo", "iwae", "log_likelihood", "Evidence",
    # using a model
    "encode", "reconstruct", "sample", "interpolate",
    "errors",
]  # fmt: skip
