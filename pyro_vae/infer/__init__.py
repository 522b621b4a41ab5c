"""Any (model, guide) pair to log weights, and bounds of them. Knows nothing of our models."""
