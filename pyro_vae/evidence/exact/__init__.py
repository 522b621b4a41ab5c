"""log p(x) exactly: quadrature, enumeration, linear-Gaussian programs."""
