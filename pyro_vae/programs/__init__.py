"""Questions to any Pyro pair (model, guide): plates, sites, log weights, support, parameters."""
