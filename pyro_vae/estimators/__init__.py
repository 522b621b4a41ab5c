"""A VAE as scikit-learn has its estimators."""
