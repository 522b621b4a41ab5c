"""Annealed importance sampling: densities along the path, transitions, schedules."""
