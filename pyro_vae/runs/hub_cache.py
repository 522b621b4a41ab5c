"""Snapshots in the cache of the Hugging Face hub: their files are links, and links in a run are not followed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from pyro_vae.errors import RunFolderError

PREFIX = "models--"  # of the folder of a repository; "/" in its name is "--" there


def refuse_cached(path: Path) -> None:
    """Refuse a run that is links into the hub's cache, with the command that makes files of them.

    Raises:
        RunFolderError: it is.
    """
    if not (path / "config.json").is_symlink():
        return
    for place in (Path(os.path.abspath(path)), path.resolve()):  # the folder itself may be reached by a link
        snapshots, repository = place.parent, place.parent.parent
        if snapshots.name == "snapshots" and repository.name.startswith(PREFIX):
            name = repository.name.removeprefix(PREFIX).replace("--", "/")
            raise RunFolderError(
                f"{path} is a snapshot in the cache of the Hugging Face hub: its files are links, and links in a run are not "
                f"followed. Fetch it as files, and open that folder: hf download {shlex.quote(name)} --revision "
                f"{shlex.quote(place.name)} --local-dir FOLDER"
            )
