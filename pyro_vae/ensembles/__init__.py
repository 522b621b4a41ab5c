"""Several models of one architecture, a seed each: trained as one graph, scored with the error over seeds."""
