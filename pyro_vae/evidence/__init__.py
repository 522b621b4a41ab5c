"""log p(x) of each row, by sampling, annealing or exactly."""
