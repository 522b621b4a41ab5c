"""Plots of training, evidence, latents and calibration, with matplotlib."""
