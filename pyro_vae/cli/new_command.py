"""The command `pyro-vae new`: a few questions, and a file of settings to train with."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.prompt import IntPrompt, Prompt

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.plain_text import plain
from pyro_vae.data import Data
from pyro_vae.data.datasets import NAMES
from pyro_vae.data.user_files import TABLES
from pyro_vae.errors import UsageError
from pyro_vae.runs.config import Config
from pyro_vae.runs.data_choices import choices_told, decided
from pyro_vae.runs.load import load_data
from pyro_vae.runs.registry import resolved

from .commands import DataDir, app

NUMBERS = "numbers"  # an answer: each column as it stands
DEFAULT = Config()


@app.command
def new(
    file: Annotated[Path, Parameter(help="JSON file to write.")],
    /,
    *,
    config: Config = DEFAULT,
    data_dir: DataDir = None,
) -> None:
    """Writes a file of settings to train with: asks four questions, those that no flag answers, where a person is there.

    The data is read on the way, and what it says of the likelihood is told; nothing is trained.
    """
    if file.exists():
        raise UsageError(f"{file} is there already: take another name, or delete it")
    config = asked(config) if sys.stdin is not None and sys.stdin.isatty() else config
    data = load_data(resolved(config), data_dir)
    for line in said_of(config, data):
        print(plain(line))
    kept = {key: value for key, value in config.to_dict().items() if value != DEFAULT.to_dict()[key]}
    write_atomic(file, json.dumps({"data": config.data} | kept, indent=1, ensure_ascii=False) + "\n")
    print(plain(f"settings:   {file} (what it does not name is as `pyro-vae train --help` has it)"))
    print(plain(f"next:       pyro-vae train --config {shlex.quote(str(file))} --run runs/{shlex.quote(file.stem)}"))


def asked(config: Config) -> Config:
    """Ask a person what the flags have left as it is by default."""
    console = Console(stderr=True)
    ask = answers(console)
    if config.data == DEFAULT.data:
        config = replace(config, data=ask(f"Data: {', '.join(NAMES)}, or a file or folder", config.data))
    if config.columns is None and config.likelihood == DEFAULT.likelihood:
        if config.data.lower().endswith(TABLES):
            how = ask(
                "Columns: auto takes texts and gaps, and finds a likelihood for each; numbers takes them so", "auto"
            )
            config = config if how == NUMBERS else replace(config, columns=how)
        else:
            config = replace(config, likelihood=ask("Likelihood, by name (auto: what the data says)", "auto"))
    if config.latent_dim == DEFAULT.latent_dim:
        z = IntPrompt.ask("Dimensions of z", default=config.latent_dim, console=console)
        config = replace(config, latent_dim=z)
    if config.epochs == DEFAULT.epochs:
        config = replace(config, epochs=IntPrompt.ask("Epochs", default=config.epochs, console=console))
    return config


def answers(console: Console) -> Callable[[str, str], str]:
    """Return what asks a question, with an answer to take by default."""

    def ask(question: str, default: str) -> str:
        return Prompt.ask(question, default=default, console=console).strip()

    return ask


def said_of(config: Config, data: Data) -> list[str]:
    """Tell what the data is, and what is decided by it."""
    rows = ", ".join(f"{len(getattr(data, name))} {name}" for name in ("train", "validation", "test"))
    told = [f"note: {note}" for note in (*data.notes, *choices_told(config, decided(config, data), data))]
    return [*told, f"data:       {data.name}: {rows} rows"]
