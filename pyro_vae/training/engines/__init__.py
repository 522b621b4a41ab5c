"""How a training step is computed: eager, traced, compiled, CUDA graph."""
