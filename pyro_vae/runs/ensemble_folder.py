"""The folder of a run of several seeds: which seeds it lists, the folders of its members, their locks, what is ours in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import PART, storage
from pyro_vae.common.digests import digest_of
from pyro_vae.common.environment import versions
from pyro_vae.ensembles.ensemble import Ensemble
from pyro_vae.errors import RunFolderError, StorageError

from . import folder
from .lock import locked
from .weights import current_weights

LIST = folder.ENSEMBLE
SCHEMA = 1
MOST = 10_000  # seeds, each of which is looked for


def is_ensemble(path: Path | str) -> bool:
    """Return whether a folder holds a run of several seeds."""
    return (Path(path) / LIST).is_file()


def name_of(seed: int) -> str:
    """Name the folder of a member."""
    return f"seed{seed}"


def counted(path: Path) -> list[int]:
    """List the seeds whose members count: those that did not diverge."""
    listed = read_list(path)
    if not (seeds := [seed for seed in listed["seeds"] if str(seed) not in listed["diverged"]]):
        raise RunFolderError(f"{path}: every member diverged, so there is nothing to score. Look at {path / LIST}")
    return seeds


def digest_of_members(weights: Mapping[int, str | None]) -> str:
    """Return the digest of the weights of all members that count, by seed."""
    return digest_of({str(seed): digest for seed, digest in sorted(weights.items())})


def read_summary(path: Path) -> dict[str, Any]:
    """Read what seeds.json says of all members on the test rows; {} where it is of weights that one has no longer.

    Raises:
        RunFolderError: it is damaged.
    """
    file, listed = path / "seeds.json", read_list(path)
    if not file.is_file():
        return {}
    summary = folder.read_summary(file)
    seeds = [seed for seed in listed["seeds"] if str(seed) not in listed["diverged"]]
    now = digest_of_members({seed: current_weights(path / name_of(seed)) for seed in seeds})
    return summary if summary.get("weights", now) == now else {}


def write_list(path: Path, seeds: Sequence[int], made_by: str, diverged: dict[int, str]) -> None:
    """Write ensemble.json."""
    record: dict[str, Any] = {"schema": SCHEMA, "made_by": made_by, "versions": versions(), "seeds": list(seeds)}
    folder.write_json(path / LIST, record | {"diverged": {str(seed): why for seed, why in diverged.items()}})


def note_diverged(path: Path, error: BaseException) -> None:
    """List who diverged before an error ended the training, or all would be scored as members that were trained."""
    ensemble = getattr(error, "result", None)
    if not isinstance(ensemble, Ensemble) or not ensemble.diverged:
        return
    listed = read_list(path)
    try:
        write_list(path, listed["seeds"], listed.get("made_by", "train"), ensemble.diverged)
    except StorageError as failure:
        error.add_note(f"which members diverged could not be saved: {failure}")


def read_list(path: Path) -> dict[str, Any]:
    """Read ensemble.json.

    Raises:
        RunFolderError: missing, damaged, or of a newer version.
    """
    record = folder.read_sealed(path / LIST)
    seeds = record.get("seeds") if isinstance(record, dict) else None
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise RunFolderError(f"{path / LIST} lists no seeds: it is no ensemble of pyro_vae")
    if len(seeds) > MOST:
        raise RunFolderError(f"{path / LIST} lists {len(seeds):,} seeds, and at most {MOST:,} are read")
    if len(set(seeds)) < len(seeds):
        raise RunFolderError(f"{path / LIST} lists a seed twice, which would count as two members")
    if record.get("schema") != SCHEMA:
        schema = f"{record.get('schema')!r}"[:80]
        raise RunFolderError(f"{path / LIST} has schema {schema}; this version of pyro_vae reads {SCHEMA}")
    diverged = record.get("diverged")
    if not isinstance(diverged, dict) or not all(s in map(str, seeds) for s in diverged):
        raise RunFolderError(f"{path / LIST} does not say which of its seeds diverged")
    if not all(isinstance(why, str) for why in diverged.values()):
        raise RunFolderError(f"{path / LIST} does not say in words why seeds diverged")
    return dict(record)


def check_free(path: Path, overwrite: bool) -> None:
    """Return if an ensemble may be made in a folder.

    Raises:
        RunFolderError: it holds an ensemble already (unless `overwrite`), a run of one seed, or what is none of ours.
    """
    if is_ensemble(path):
        read_list(path)
        if not overwrite:
            raise RunFolderError(
                f"{path} holds an ensemble already: choose another folder with --run, or pass --overwrite"
            )
        return
    if (path / "config.json").is_file():
        raise RunFolderError(f"{path} holds a run of one seed: choose another folder with --run")
    folder.check_free(path)


def members_of(path: Path) -> list[Path]:
    """List the folders of the members that an ensemble has; none of what is none."""
    members = [path / name_of(seed) for seed in read_list(path)["seeds"]] if is_ensemble(path) else []
    return [member for member in members if member.is_dir() and not member.is_symlink()]


@contextmanager
def members_locked(path: Path) -> Iterator[None]:
    """Hold the locks of all members that a folder has, and its own for evaluations.

    Raises:
        BusyError: a member is being written to, or it or the whole is being scored.
    """
    with ExitStack() as stack:
        if is_ensemble(path):
            stack.enter_context(locked(path, folder.EVALUATION_LOCK))
        for member in members_of(path):
            stack.enter_context(locked(member))
            stack.enter_context(locked(member, folder.EVALUATION_LOCK))
        yield


def clear(path: Path) -> None:
    """Delete what an ensemble wrote but its list, which is replaced, and nothing else. For the holder of all its locks."""
    for member in members_of(path):
        folder.clear(member)
        (member / "config.json").unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files stay
            (member / "figures").rmdir()
    with storage(f"cannot clear {path}"):
        for file in [*path.glob("seeds*.json"), path / "report.html", *path.glob(f".*{PART}")]:
            file.unlink(missing_ok=True)
