"""Variational autoencoders as Pyro programs, with log-likelihoods one can trust."""

from .infer.bounds import elbo, iwae
from .infer.weights import log_weights
from .models.vae import VAE
from .parts.conditional import Conditional
from .parts.families import bernoulli, binomial, normal
from .parts.networks import MLP, ConvDecoder, ConvEncoder
from .parts.priors import StandardNormal
