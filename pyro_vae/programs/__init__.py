"""What is asked of any Pyro (model, guide) pair: its sites, its plates, its densities."""
