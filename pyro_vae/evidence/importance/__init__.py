"""log p(x) by importance sampling."""
