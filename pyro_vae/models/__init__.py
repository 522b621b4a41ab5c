"""Pyro programs: a model and a guide."""
