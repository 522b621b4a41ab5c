"""log p(x) by annealed importance sampling, forward and in reverse."""
