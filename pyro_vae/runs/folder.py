"""A run folder: config.json, metrics.jsonl, model.safetensors, evidence.json and .csv, figures/.

After an evaluation that was interrupted, or is to be gone on with, also particles-SPLIT.safetensors.

Every file is written under another name and renamed when whole. Nothing in it is executed: names, numbers, tensors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from pyro_vae.errors import RunFolderError

SCHEMA = 1
OURS = ("config.json", "metrics.jsonl", "model.safetensors", "evidence.json", "evidence.csv")


def write_atomic(path: Path, content: bytes | str) -> None:
    """The file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def create(path: Path, overwrite: bool = False) -> Path:
    """An empty run folder.

    Raises:
        RunFolderError: the folder holds something already: a run (unless `overwrite`), or what is none of ours.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; a run needs a folder of its own")
    if path.is_dir() and any(path.iterdir()):
        if not (path / "config.json").is_file():
            raise RunFolderError(f"{path} is not empty and holds no run: choose another folder with --run")
        read_config(path)  # refuses a folder with somebody else's config.json
        if not overwrite:
            raise RunFolderError(f"{path} holds a run already: choose another folder with --run, or pass --overwrite")
        clear(path)
    try:
        (path / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot create {path}: {error.strerror or error}") from error
    return path


def clear(path: Path) -> None:
    """Deletes what a run wrote, and nothing else."""
    for file in [
        *(path / name for name in OURS),
        *path.glob("particles-*.safetensors"),
        *(path / "figures").glob("*.png"),
    ]:
        file.unlink(missing_ok=True)


def particles(path: Path, split: str) -> Path:
    """The file for particles of one split's rows, where an evaluation can be gone on with."""
    return path / f"particles-{split}.safetensors"


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; floats to the last bit, no NaN."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON of a run's file.

    Raises:
        RunFolderError: missing, unreadable or damaged.
    """
    if not path.parent.is_dir():
        raise RunFolderError(f"there is no run folder {path.parent}")
    if not path.is_file():
        raise RunFolderError(f"{path.parent} is no whole run: {path.name} is missing. Train it again.")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}). Train the run again, or restore the file.") from error


def read_config(path: Path) -> dict[str, Any]:
    """What config.json holds: schema, versions, config, and what is known of the data.

    Raises:
        RunFolderError: missing, damaged, of another program or a newer version.
    """
    record = read_json(path / "config.json")
    if not isinstance(record, dict) or not {"schema", "config", "data"} <= record.keys():
        raise RunFolderError(f"{path / 'config.json'} is not a run of pyro_vae: it lacks schema, config or data")
    if record["schema"] != SCHEMA:
        raise RunFolderError(f"{path} has schema {record['schema']!r}; this version of pyro_vae reads {SCHEMA}")
    return record


def append_line(path: Path, record: dict[str, Any]) -> None:
    """One record more in a .jsonl file."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; a torn last line, from a run that was killed, is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise RunFolderError(f"{path}, line {number} is damaged ({error})") from error
    return records


def save_model(path: Path, module: torch.nn.Module) -> None:
    """The module's parameters and buffers as model.safetensors."""
    state = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()
    }  # cloned, as the format refuses tensors that share memory (a VampPrior holds the posterior)
    write_atomic(path / "model.safetensors", dump_tensors(state))


def load_model(path: Path, module: torch.nn.Module) -> None:
    """Fills a module from model.safetensors, which must hold exactly its tensors.

    Raises:
        RunFolderError: the file is missing or damaged, or its tensors differ in name, shape or dtype from the module's, or
            are not finite.
    """
    file = path / "model.safetensors"
    if not file.is_file():
        raise RunFolderError(f"{path} is no whole run: model.safetensors is missing. Train it again.")
    try:
        state = load_tensors(file.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise RunFolderError(f"{file} is damaged ({error}). Train the run again, or restore the file.") from error
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in state.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise RunFolderError(
            f"{file} is not of the model in config.json: {odd[0]!r} is {found.get(odd[0], 'missing')} there and "
            f"{wanted.get(odd[0], 'absent')} in the model ({len(odd)} tensors differ)"
        )
    if bad := [name for name, t in state.items() if not t.isfinite().all()]:
        raise RunFolderError(f"{file} holds non-finite values in {bad[0]!r}")
    module.load_state_dict(state)
