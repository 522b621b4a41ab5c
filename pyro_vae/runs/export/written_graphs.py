"""A folder of a run's functions in one form, with what they take and give beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyro_vae.common.atomic_write import publish
from pyro_vae.runs.custom_components import Components
from pyro_vae.runs.load import load_run

from .graphs import forms_of
from .interface import described
from .new_folder import check_new
from .tensor_programs import TensorProgram


def write_graphs(
    path: Path, to: Path, components: Components, bytes_of: Callable[[TensorProgram], bytes], ending: str
) -> Path:
    """Write encode, decode and score of a run, each as the bytes that are made of it, into a new folder; return it."""
    run, target = load_run(path, components), check_new(to)
    made, missing = forms_of(run, lambda name, program: (program, bytes_of(program)))
    programs = {name: program for name, (program, _) in made.items()}
    files = {f"{name}.{ending}": content for name, (_, content) in made.items()}
    publish(target, files | described(run, programs, missing, ending))
    return to
