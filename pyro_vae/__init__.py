"""Variational autoencoders as Pyro programs, with log-likelihoods one can trust."""

from . import errors
from .comparing import compare_runs
from .data import binarize
from .evaluate.compare import Comparison, compare
from .evaluate.evidence import Evidence
from .evaluate.importance import log_likelihood
from .evaluate.impute import impute, impute_mean
from .infer.analytic import analytic_kl
from .infer.bounds import ciwae, elbo, iwae, jackknife, miwae, piwae, renyi, tvo
from .infer.check import check
from .infer.estimators import dreg, gdreg, pathwise, rws, stl, vimco
from .infer.gradients import GradientReport, gradient_report
from .infer.handlers import Beta
from .infer.latents import Latents, latents
from .infer.objective import Bound
from .infer.terms import capacity, free_bits, mmd, total_correlation
from .infer.weights import log_weights
from .models.vae import VAE
from .parts import families, posteriors, priors
from .parts.conditional import Conditional
from .parts.families import bernoulli, binomial, normal
from .parts.missing import SkipMissing, WithMask
from .parts.networks import MLP, ConvDecoder, ConvEncoder
from .parts.priors import StandardNormal
from .train.fit import fit
from .train.lagging import Aggressive
from .train.schedules import constant, cosine, cyclical, warmup
from .train.step import adam
from .use import encode, interpolate, reconstruct, sample
from .workflows import load_run

__all__ = [  # noqa: RUF022 (grouped as in the README)
    # models and their parts
    "VAE", "Conditional", "MLP", "ConvEncoder", "ConvDecoder",
    "StandardNormal", "bernoulli", "binomial", "normal",
    "priors", "families", "posteriors",
    # missing data
    "SkipMissing", "WithMask", "impute", "impute_mean",
    # training
    "fit", "Aggressive", "adam", "constant", "cosine", "warmup", "binarize",
    # objectives: bounds of log weights, gradient estimators, handlers and added terms
    "log_weights", "Bound", "elbo", "iwae", "miwae", "piwae", "ciwae", "renyi", "tvo", "jackknife",
    "pathwise", "stl", "dreg", "gdreg", "vimco", "rws", "analytic_kl",
    "Beta", "cyclical", "free_bits", "capacity", "total_correlation", "mmd",
    "gradient_report", "GradientReport",
    # what is wrong, and how good it is
    "check", "latents", "Latents", "log_likelihood", "Evidence", "compare", "compare_runs", "Comparison",
    # using a model
    "encode", "reconstruct", "sample", "interpolate", "load_run",
    "errors",
]  # fmt: skip
