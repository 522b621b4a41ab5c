"""Densities without networks, and `Conditional`, which makes one of a network and a family."""
