"""Command lines of small trainings."""

SMALL = {"--hidden": "8", "--latent-dim": "2", "--epochs": "2", "--batch-size": "256", "--num-samples": "20"}


def small(*more):
    """The options of a small run, with some changed or added."""
    kept = {k: v for k, v in SMALL.items() if k not in more}
    return [word for option in kept.items() for word in option] + list(more)
