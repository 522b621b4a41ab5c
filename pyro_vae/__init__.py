"""Variational autoencoders as Pyro programs, with log-likelihoods one can trust."""

from . import errors
from .common.spec import Spec
from .comparing import compare_runs
from .data import Data, binarize
from .evaluate.annealed import Annealed
from .evaluate.annealing import ais
from .evaluate.bracket import Bracket, bdmc, bracket
from .evaluate.calibration import Calibration, simulation_based_calibration
from .evaluate.compare import Comparison, compare
from .evaluate.convergence import convergence
from .evaluate.decomposition import ElboDecomposition, decompose
from .evaluate.discrepancy import PredictiveCheck
from .evaluate.enumeration import enumerate_latents
from .evaluate.evidence import Evidence
from .evaluate.exact import Exact
from .evaluate.gaps import Gaps, gaps
from .evaluate.impute import impute, impute_mean
from .evaluate.likelihood import log_likelihood
from .evaluate.linear_gaussian import linear_gaussian
from .evaluate.oracles import quadrature
from .evaluate.overfitting import Overfitting, overfitting
from .evaluate.pareto import pareto_khat
from .evaluate.predictive import posterior_predictive_check, prior_predictive_check
from .evaluate.proposals import defensive, widened
from .evaluate.saving import load_evidence, save_evidence
from .evaluate.simulate import Simulated, simulate
from .infer.analytic import analytic_kl
from .infer.bounds import ciwae, elbo, iwae, jackknife, miwae, piwae, renyi, tvo
from .infer.check import check
from .infer.estimators import dreg, gdreg, pathwise, rws, stl, vimco
from .infer.findings import CheckReport
from .infer.gradients import GradientReport, gradient_report
from .infer.handlers import Beta
from .infer.latents import Latents, latents
from .infer.objective import Bound
from .infer.terms import capacity, free_bits, mmd, total_correlation
from .infer.weights import log_weights
from .models.vae import VAE
from .opening import load_run
from .parts import families, posteriors, priors
from .parts.conditional import Conditional
from .parts.families import bernoulli, binomial, normal
from .parts.missing import SkipMissing, WithMask
from .parts.networks import MLP, ConvDecoder, ConvEncoder
from .parts.priors import StandardNormal
from .resuming import resume_run
from .runs.config import Config
from .scoring import evaluate_run
from .train.fit import fit
from .train.lagging import Aggressive
from .train.schedules import constant, cosine, cyclical, warmup
from .train.step import adam
from .use import encode, interpolate, reconstruct, sample
from .workflows import train_run

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
    # what is wrong
    "check", "CheckReport", "latents", "Latents",
    # how good it is: log p(x), by particles, exactly, or between two ends
    "log_likelihood", "Evidence", "defensive", "widened", "pareto_khat", "convergence", "save_evidence", "load_evidence",
    "linear_gaussian", "enumerate_latents", "quadrature", "Exact",
    "ais", "Annealed", "bracket", "bdmc", "Bracket", "simulate", "Simulated",
    # where the gap comes from, which model is better, whether to believe q(z | x) and p(x)
    "gaps", "Gaps", "overfitting", "Overfitting", "decompose", "ElboDecomposition",
    "compare", "Comparison",
    "simulation_based_calibration", "Calibration",
    "posterior_predictive_check", "prior_predictive_check", "PredictiveCheck",
    # using a model
    "encode", "reconstruct", "sample", "interpolate",
    # runs on disk
    "Config", "Data", "Spec", "train_run", "resume_run", "evaluate_run", "compare_runs", "load_run",
    "errors",
]  # fmt: skip
