"""Files of a run folder: config.json, metrics.jsonl, model.safetensors, evidence.json and .csv, figures/, checkpoints/,
report.html.

Evaluations of other rows, or by other methods, have files of their own (:mod:`pyro_vae.runs.evaluations`), and all have a
line in evaluations.jsonl. One that was interrupted, or is to be gone on with, leaves particles-NAME.safetensors.

Every file is written under another name, synced, and renamed when whole; JSON and tensors carry their SHA-256. Nothing in it
is executed: names, numbers, tensors.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import time
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import PART, append, delete, storage, sweep, write_atomic
from pyro_vae.common.digests import digest_of, sha256
from pyro_vae.common.held_folder import held, no_links_below
from pyro_vae.common.plain_text import plain
from pyro_vae.common.safe_read import JSON_BYTES, MIB, SEAL, check_seal, damaged, parse_json, read_bytes, seal
from pyro_vae.errors import RunFolderError

from .checkpoint import FOLDER as CHECKPOINTS
from .hub_cache import refuse_cached
from .lock import LOCK
from .summary_fields import OF_DATA, check_fields

SCHEMA = 1
HISTORY = "evaluations.jsonl"
ENSEMBLE = "ensemble.json"  # names the seeds of a folder that holds a run for each (:mod:`.train_ensemble`)
WEIGHTS = "model.safetensors"
INTERFACE = "interface.json"  # beside exported functions: what they take and give
OF_RUN = "run.json"  # in a folder of evaluations beside a run: which run that is
OURS = ("evidence.json", "evidence.csv", HISTORY, "metrics.jsonl", "bracket.json", "gaps.json", "report.html")
OF_EVALUATIONS = ("particles-*.safetensors", "evidence-*.json", "evidence-*.csv")
EVALUATION_LOCK = ".evaluation.lock"
DIVERGENCE = "divergence"
LINES = 200_000  # of a .jsonl file: epochs, evaluations
CSV = "csv_sha256"  # what evidence.json calls the SHA-256 of evidence.csv
BOARD = "tensorboard"  # what train --tracker tensorboard writes
FOLDERS = (CHECKPOINTS, DIVERGENCE, BOARD)  # generations of the state; a step that diverged; what TensorBoard shows
LOCKS = tuple(f"{name}{ending}" for name in (LOCK, EVALUATION_LOCK) for ending in ("", ".json"))


def check_free(path: Path, overwrite: bool = False) -> Path:
    """Return the path if a run may be made there.

    Raises:
        RunFolderError: the folder holds something already: a run (unless `overwrite`), or what is none of ours.
    """
    with storage(f"cannot create {path}"):
        exists, is_folder = path.exists(), path.is_dir()
    if exists and not is_folder:
        raise RunFolderError(f"{path} is a file; a run needs a folder of its own")
    if is_folder and any(not is_left_over(entry) for entry in path.iterdir()):
        if not (path / "config.json").is_file():
            raise RunFolderError(f"{path} is not empty and holds no run: choose another folder with --run")
        read_config(path)  # refuses a folder with somebody else's config.json
        if not overwrite:
            raise RunFolderError(
                f"{path} holds a run already: choose another folder with --run, or pass --overwrite. To go on with one that "
                f"was interrupted: pyro-vae train --resume {shlex.quote(str(path))}"
            )
    return path


def is_left_over(entry: Path) -> bool:
    """Return whether an entry is left over from a run that was killed before it had begun, or never got the lock."""
    return entry.name in LOCKS or entry.name.endswith(PART) or (entry.name == "figures" and not any(entry.iterdir()))


def check_own(path: Path) -> None:
    """Check that what is written into a run stays in it: no entry of the folder is a link, and folders of ours are folders.

    Each writer looks again at what it opens (:func:`~pyro_vae.common.atomic_write.folder_in`); this says so before anything
    is computed. The folder itself may be reached by a link of the user's.

    Raises:
        RunFolderError: one is.
    """
    refuse_cached(path)
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        if not path.is_dir():
            raise no_folder(path) from error
        raise RunFolderError(f"the run folder {path} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_symlink():
            raise RunFolderError(f"{entry} is a link, and links in a run are not followed: put what it leads to there")
        if entry.name in ("figures", *FOLDERS) and not entry.is_dir():
            raise RunFolderError(f"{entry} is no folder, as it is in a run: move it away")


def make(path: Path) -> None:
    """Make the folder itself, so that it can be locked."""
    with storage(f"cannot create {path}"):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "it is read-only")


def make_beside(path: Path) -> Path:
    """Make a folder for what is computed of a run that stays as it is; :func:`claim` says of which.

    Raises:
        RunFolderError: it holds a run itself, and would be taken for that one's.
        StorageError: it cannot be written to.
    """
    if any((path / name).exists() for name in ("config.json", ENSEMBLE)):
        raise RunFolderError(f"{path} holds a run: give --out a folder of its own")
    make(path)
    return path


def claim(path: Path, run: Path, record: dict[str, Any], weights: str) -> None:
    """Note in a folder beside a run of which run it holds evaluations. For the holder of its lock.

    Raises:
        RunFolderError: of another: of another folder or config, unless of the same weights.
    """
    mine = {"run": str(run.resolve()), "config": digest_of(record)}
    theirs = read_sealed(path / OF_RUN) if (path / OF_RUN).is_file() else None
    theirs = theirs if isinstance(theirs, dict) else {}
    if all(theirs.get(name) == value for name, value in mine.items()):
        return
    stems = [file for file in path.glob("evidence*.json") if not file.is_symlink()]
    if any(read_summary(file).get("weights") != weights for file in stems):
        whose = plain(f"of {str(theirs['run'])[:400]}") if "run" in theirs else "of other weights"
        raise RunFolderError(f"{path} holds evaluations {whose}, not of {run}: give --out a folder of its own")
    write_json(path / OF_RUN, {"schema": SCHEMA, **mine})


def clear(path: Path) -> None:
    """Delete what a run wrote but its config.json, what is told of its weights before these, and nothing else."""
    with storage(f"cannot clear {path}"), no_links_below(path), held(path) as run:
        evaluated = [name for name in run.names() if any(fnmatchcase(name, pattern) for pattern in OF_EVALUATIONS)]
        for name in (*OURS, *evaluated):
            run.unlink(name)
        sweep(path)
        if (path / "figures").is_dir() and not (path / "figures").is_symlink():
            with run.inner("figures") as figures:
                for name in figures.names():
                    if name.endswith(".png"):
                        figures.unlink(name)
        for name in FOLDERS:
            remove(path / name)
        run.unlink(WEIGHTS)


def remove(folder: Path) -> None:
    """Delete a folder of ours, if it is there; never what a link leads to."""
    if folder.is_dir() and not folder.is_symlink():
        delete(folder, quietly=False)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write indented JSON; floats to the last bit, no NaN; with the SHA-256 of all else in it."""
    write_atomic(path, json_bytes(seal(record), indent=2) + b"\n")


def json_bytes(record: dict[str, Any], indent: int | None = None) -> bytes:
    """Format JSON as UTF-8; in ASCII, where it holds a file name that is none."""
    text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(record, indent=indent, allow_nan=False).encode()


def no_folder(path: Path) -> RunFolderError:
    """Say that there is no folder of this name, and which run was meant: the one that a file lies in, or one spelled alike."""
    if path.is_file():
        run = f": name its folder, {path.parent}" if (path.parent / "config.json").is_file() else ""
        return RunFolderError(f"{path} is a file, and a run is a folder{run}")
    runs = [run.name for run in path.parent.glob("*/") if (run / "config.json").is_file()]
    close = difflib.get_close_matches(path.name, runs, 1)
    return RunFolderError(
        f"there is no run folder {path}{f': did you mean {path.parent / close[0]}?' if close else ''}"
    )


def no_run(path: Path) -> RunFolderError:
    """Say that a folder lacks a file that each run has, and what it is where something else of ours wrote it."""
    place = path.parent
    made = (place / INTERFACE).is_file() and "functions of tensors, which export --torch or --onnx wrote"
    made = made or (any(place.glob("events.out.tfevents.*")) and "what TensorBoard shows of a run")
    made = made or ((place / OF_RUN).is_file() and "evaluations that evaluate --out put beside a run")
    if made:
        return RunFolderError(f"{place} holds {made}, and is no run itself: name the folder that train --run made")
    return RunFolderError(f"{place} is no whole run: {path.name} is missing. Train it again.")


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Read a run's JSON file.

    Raises:
        RunFolderError: missing, unreadable or damaged.
    """
    if not path.parent.is_dir():
        raise no_folder(path.parent)
    if not path.is_file() and (path.parent / ENSEMBLE).is_file():
        member = next(iter(sorted(path.parent.glob("seed*/"))), path.parent / "seed0")
        raise RunFolderError(
            f"{path.parent} is an ensemble of several seeds: each member is a run, such as {member}. All at once: pyro-vae "
            "evaluate and compare, and load_ensemble in Python"
        )
    if not path.is_file():
        beside = sorted(p.parent for p in path.parent.glob(f"[!.]*/{path.name}"))
        if beside:
            raise RunFolderError(
                f"{path.parent} is no run, but a folder of runs: name one of them, such as {beside[0]}. All of them: pyro-vae "
                f"runs {shlex.quote(str(path.parent))}"
            )
        raise no_run(path)
    return parse_json(read_bytes(path, limit), path)


def read_sealed(path: Path) -> Any:
    """Read a JSON file, and check that it is what was written."""
    value = read_json(path)
    if isinstance(value, dict):
        check_seal(value, path)
    return value


def read_summary(path: Path) -> dict[str, Any]:
    """Read what an evidence.json holds.

    Raises:
        RunFolderError: missing, damaged, no object, or a field of another kind than it is written as.
    """
    summary = read_sealed(path)
    if not isinstance(summary, dict):
        raise RunFolderError(f"{path} is no evidence")
    check_fields(summary, path)
    return summary


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json: schema, versions, config, and what is known of the data.

    Raises:
        RunFolderError: missing, damaged, of another program or a newer version.
    """
    refuse_cached(path)
    record = read_json(path / "config.json", MIB)
    if not isinstance(record, dict) or not {"schema", "config", "data"} <= record.keys():
        raise RunFolderError(f"{path / 'config.json'} is not a run of pyro_vae: it lacks schema, config or data")
    if record["schema"] != SCHEMA:
        raise RunFolderError(f"{path} has schema {record['schema']!r}; this version of pyro_vae reads {SCHEMA}")
    if not isinstance(record["data"], dict) or not isinstance(record["data"].get("digest"), str):
        raise RunFolderError(
            f"{path / 'config.json'} cannot be used: it does not say which data the run was trained on"
        )
    check_fields(record["data"], path / "config.json", OF_DATA)
    return record


def read_evidence(path: Path, stem: str = "evidence") -> tuple[dict[str, Any], str]:
    """Read evidence.json and the text of evidence.csv (or others of that stem), of one and the same evaluation.

    Raises:
        RunFolderError: missing, damaged, or of different evaluations (one was killed between the two files, or is just
            writing them: they are looked at a second time).
    """
    for last in (False, True):
        table, summary = read_bytes(path / f"{stem}.csv"), read_summary(path / f"{stem}.json")
        if summary.get(CSV, sha256(table)) == sha256(table):
            return summary, table.decode(errors="replace")
        time.sleep(0 if last else 0.2)
    raise RunFolderError(
        f"{stem}.json and {stem}.csv of {path} are of different evaluations. Make it again: pyro-vae evaluate "
        f"{shlex.quote(str(path))}"
    )


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one record to a .jsonl file, with the SHA-256 of all else in it."""
    append(path, json.dumps(seal(record)) + "\n")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a .jsonl file of these records."""
    write_atomic(path, "".join(json.dumps(seal(record)) + "\n" for record in records))


def metrics_digest(path: Path) -> str:
    """Return the SHA-256 of a run's metrics.jsonl, which the evidence of its training carries."""
    return sha256(read_bytes(path / "metrics.jsonl"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the records of a .jsonl file; a torn last line, from a run that was killed, is left out.

    Raises:
        RunFolderError: any other line that is damaged.
    """
    *lines, last = read_bytes(path).split(b"\n") if path.is_file() else [b""]
    if len(lines) > LINES:
        raise damaged(path, f"{len(lines):,} lines, and at most {LINES:,} are read")
    records = [parse_line(line, Path(f"{path}, line {number}")) for number, line in enumerate(lines, 1)]
    with suppress(RunFolderError):  # what a kill left of a record, if not one that lacks only the end of its line
        records += [parse_line(last, path)] if last else []
    return records


def parse_line(line: bytes, where: Path) -> dict[str, Any]:
    """Read a record, if it is the one that was sealed."""
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise damaged(where, "no JSON object")
    check_seal(record, where)
    return {name: value for name, value in record.items() if name != SEAL}
