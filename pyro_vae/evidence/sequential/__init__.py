"""Sequences step by step: particle filters, smoothing and forecasts of state-space models."""
