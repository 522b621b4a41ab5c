"""log p(x) and what can be said of it."""
