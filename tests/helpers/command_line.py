"""Command lines of small trainings, and commands in a child."""

from types import SimpleNamespace

from pyro_vae.cli.main import main
from tests.helpers.pictures import without_rendering

SMALL = {"--hidden": "8", "--latent-dim": "2", "--epochs": "2", "--batch-size": "256", "--num-samples": "20"}


def small(*more):
    """The options of a small run, with some changed or added."""
    kept = {k: v for k, v in SMALL.items() if k not in more}
    return [word for option in kept.items() for word in option] + list(more)


def quiet_command(*words):
    """Run in a child: a command, without its pictures; return its exit code."""
    without_rendering(SimpleNamespace(setattr=setattr))
    return main([*words])
