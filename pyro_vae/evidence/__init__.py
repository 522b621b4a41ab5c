"""log p(x) one can trust: by particles, exactly, or between two ends."""
