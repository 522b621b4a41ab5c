"""Train by stochastic gradients: `fit`, its trainer, states, checks and engines."""
