"""Models as pairs of Pyro programs: a model and a guide."""
