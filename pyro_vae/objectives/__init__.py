"""Training objectives: bounds of log weights, gradient estimators, KL terms, handlers."""
