"""Priors, likelihood families, posteriors and networks: callables that return distributions, and what they are made of."""
