"""Where an export goes: a folder that is not there yet, or is empty."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.common.atomic_write import storage
from pyro_vae.errors import RunFolderError
from pyro_vae.runs import folder


def check_new(path: Path) -> Path:
    """Return the path if an export may be made there; the folder that it is to stand in is made.

    Raises:
        RunFolderError: something is there already, a link, too.
        StorageError: the folder above it cannot be made.
    """
    with storage(f"cannot create {path}"):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise RunFolderError(f"{path} is {'a link' if path.is_symlink() else 'a file'}: name a new folder")
        if path.is_dir() and any(path.iterdir()):
            raise RunFolderError(f"{path} is not empty: name a new folder, or empty it first")
    folder.make(path.absolute().parent)
    return path.absolute()
