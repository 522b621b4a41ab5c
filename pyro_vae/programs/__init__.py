"""What is asked of any Pyro (model, guide): plates, sites, log weights, support, parameters."""
