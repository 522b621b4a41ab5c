"""What is trained: bounds of log weights, gradient estimators, KL terms, handlers."""
