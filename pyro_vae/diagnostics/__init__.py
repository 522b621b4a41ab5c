"""What is wrong with a model or guide: latents, gaps, decompositions, calibration, predictive checks."""
