"""Callables that return distributions, and what they are made of."""
