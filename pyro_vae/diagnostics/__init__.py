"""Diagnostics of a model and guide: latents, gaps, decompositions, calibration, predictive checks."""
