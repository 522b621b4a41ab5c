"""How long a training step takes, here and elsewhere: ``python -m benchmarks`` (see :mod:`benchmarks.__main__`)."""
