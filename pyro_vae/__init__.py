"""Variational autoencoders as Pyro programs, with log-likelihoods one can trust."""

from typing import TYPE_CHECKING, Any

from pyro_vae import errors, likelihoods, posteriors, priors
from pyro_vae.common.spec import Spec
from pyro_vae.data import Data, binarize
from pyro_vae.data.sequences import pad_sequences
from pyro_vae.diagnostics.classification import Classification, classification
from pyro_vae.diagnostics.data_set_calibration import data_set_calibration
from pyro_vae.diagnostics.elbo_decomposition import ElboDecomposition, decompose
from pyro_vae.diagnostics.gradient_noise import GradientReport, gradient_report
from pyro_vae.diagnostics.inference_gaps import Gaps, gaps
from pyro_vae.diagnostics.latent_usage import Latents, latents
from pyro_vae.diagnostics.overfitting import Overfitting, overfitting
from pyro_vae.diagnostics.predictive_checks import PredictiveCheck, posterior_predictive_check, prior_predictive_check
from pyro_vae.diagnostics.sbc import Calibration, simulation_based_calibration
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.ensembles.ensemble import Ensemble
from pyro_vae.ensembles.fit_ensemble import fit_ensemble
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import Bracket, bdmc, bracket
from pyro_vae.evidence.annealing.result import Annealed
from pyro_vae.evidence.class_posterior import ClassPosterior, class_posterior
from pyro_vae.evidence.compare import compare
from pyro_vae.evidence.comparison import Comparison
from pyro_vae.evidence.conditional import ConditionalEvidence, conditional_log_likelihood
from pyro_vae.evidence.datatree import to_datatree
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.evidence.importance.convergence import convergence
from pyro_vae.evidence.importance.pareto import pareto_khat
from pyro_vae.evidence.importance.proposals import defensive, widened
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.importance.storage import load_evidence, save_evidence
from pyro_vae.evidence.imputation import impute, impute_mean
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.evidence.posterior_draws import PosteriorDraws, posterior_draws
from pyro_vae.evidence.predictive import PredictiveDensity, predictive_density
from pyro_vae.evidence.sequential.forecast import Forecast, forecast
from pyro_vae.evidence.sequential.particle_filter import Filtered, particle_filter
from pyro_vae.evidence.sequential.per_step import per_step
from pyro_vae.evidence.sequential.smoothing import Smoothed, smooth
from pyro_vae.likelihoods.continuous import normal
from pyro_vae.likelihoods.discrete import bernoulli, binomial
from pyro_vae.models.bayesian import Bayesian, BayesianVAE, GlobalGuide
from pyro_vae.models.classes import Classes
from pyro_vae.models.experts import MixtureOfExperts, MixtureOfProducts, ProductOfExperts
from pyro_vae.models.hierarchical import BottomUp, HierarchicalVAE, SkipUp, TopDown
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.models.mixture import GMVAE
from pyro_vae.models.multimodal import MultimodalVAE, every_subset
from pyro_vae.models.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.models.recurrent import BackwardGRU
from pyro_vae.models.semi_supervised import SemiSupervised
from pyro_vae.models.sequence import StateSpaceModel
from pyro_vae.models.usage import encode, interpolate, reconstruct, sample
from pyro_vae.models.vae import VAE
from pyro_vae.objectives.analytic_kl import analytic_kl
from pyro_vae.objectives.beta import Beta
from pyro_vae.objectives.bound_objective import Bound
from pyro_vae.objectives.bounds import ciwae, elbo, iwae, miwae, piwae, renyi, tvo
from pyro_vae.objectives.count_once import CountOnce
from pyro_vae.objectives.gradient_estimators import dreg, gdreg, pathwise, rws, stl, vimco
from pyro_vae.objectives.jackknife import jackknife
from pyro_vae.objectives.kl_terms import capacity, free_bits, mmd, total_correlation
from pyro_vae.objectives.supervised import supervised
from pyro_vae.priors.simple import StandardNormal
from pyro_vae.programs.check import check
from pyro_vae.programs.data_set import WholeDataSet
from pyro_vae.programs.findings import CheckReport
from pyro_vae.programs.log_weights import log_weights
from pyro_vae.programs.simulate import Simulated, simulate
from pyro_vae.programs.summed_out import sum_out
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.runs.compare_runs import compare_runs
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_ensemble import load_ensemble
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.load import load_run
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from pyro_vae.training.aggressive_inference import Aggressive
from pyro_vae.training.fit import fit
from pyro_vae.training.optimizers import adam
from pyro_vae.training.schedules import constant, cosine, cyclical, warmup
from pyro_vae.training.tensorboard_tracker import TensorBoardTracker
from pyro_vae.training.time_budget import StopTraining, TimeBudget
from pyro_vae.training.tracker import Tracker
from pyro_vae.training.training_state import FitResult

if TYPE_CHECKING:
    from pyro_vae.estimators.vae_estimator import VAEEstimator

__all__ = [  # noqa: RUF022 (grouped as in the README)
    # models and their parts
    "VAE", "GMVAE", "SemiSupervised", "Classes", "Conditional", "MLP", "ConvEncoder", "ConvDecoder",
    "StandardNormal", "bernoulli", "binomial", "normal",
    "priors", "likelihoods", "posteriors",
    # global parameters: priors on what all rows share, log p(X) of the data set, new rows
    "Bayesian", "BayesianVAE", "GlobalGuide", "CountOnce", "WholeDataSet", "predictive_density", "PredictiveDensity",
    "data_set_calibration",
    # hierarchies: several levels of latents, and how a guide goes through them
    "HierarchicalVAE", "BottomUp", "TopDown", "SkipUp",
    # several modalities, any of them missing
    "MultimodalVAE", "ProductOfExperts", "MixtureOfExperts", "MixtureOfProducts", "every_subset",
    "conditional_log_likelihood", "ConditionalEvidence",
    # missing data
    "SkipMissing", "WithMask", "impute", "impute_mean",
    # sequences
    "StateSpaceModel", "BackwardGRU", "pad_sequences",
    "particle_filter", "Filtered", "smooth", "Smoothed", "forecast", "Forecast", "per_step",
    # training
    "fit", "FitResult", "Checkpointer", "Aggressive", "adam", "constant", "cosine", "warmup", "binarize", "TimeBudget",
    "StopTraining", "Tracker", "TensorBoardTracker",
    "fit_ensemble", "Ensemble",
    # objectives: bounds of log weights, gradient estimators, handlers and added terms
    "log_weights", "Bound", "elbo", "iwae", "miwae", "piwae", "ciwae", "renyi", "tvo", "jackknife",
    "pathwise", "stl", "dreg", "gdreg", "vimco", "rws", "analytic_kl",
    "Beta", "cyclical", "free_bits", "capacity", "total_correlation", "mmd", "supervised",
    "gradient_report", "GradientReport",
    # what is wrong
    "check", "CheckReport", "latents", "Latents",
    # how good it is: log p(x), by particles, exactly, or between two ends
    "log_likelihood", "Evidence", "defensive", "widened", "pareto_khat", "convergence", "save_evidence", "load_evidence",
    "linear_gaussian", "enumerate_latents", "quadrature", "Exact",
    "sum_out", "ais", "Annealed", "bracket", "bdmc", "Bracket", "simulate", "Simulated",
    # where the gap comes from, which model is better, whether to believe q(z | x) and p(x)
    "gaps", "Gaps", "overfitting", "Overfitting", "decompose", "ElboDecomposition",
    "compare", "Comparison",
    "class_posterior", "ClassPosterior", "classification", "Classification",
    "simulation_based_calibration", "Calibration",
    "posterior_predictive_check", "prior_predictive_check", "PredictiveCheck",
    # using a model
    "encode", "reconstruct", "sample", "interpolate",
    # in scikit-learn's pipelines and searches; in ArviZ
    "VAEEstimator", "posterior_draws", "PosteriorDraws", "to_datatree",
    # runs on disk
    "Config", "Data", "Spec", "train_run", "resume_run", "evaluate_run", "compare_runs", "load_run", "load_ensemble",
    "errors",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs scikit-learn when it is asked for, as few scripts do."""
    if name == "VAEEstimator":
        from pyro_vae.estimators.vae_estimator import VAEEstimator

        return VAEEstimator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
