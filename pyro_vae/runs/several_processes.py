"""A run that several processes train: they agree before the first step, and rank 0 alone writes into its folder."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pyro_vae.common.digests import sha256
from pyro_vae.common.environment import versions
from pyro_vae.common.processes import agree, gather_text, processes, share_text
from pyro_vae.data import Data
from pyro_vae.errors import RunFolderError

from .config import Config
from .lock import locked


def agree_on_run(config: Config, data: Data, path: Path) -> None:
    """Refuse processes that would train other runs: names the ranks, and what is not the same.

    Raises:
        UsageError: another config, folder, data or versions.
    """
    agree("the config", config.to_dict())
    agree("the run's folder", str(path))
    agree("the data", {"name": data.name, "SHA-256": data.digest})
    agree("the versions", versions())


@contextmanager
def led(path: Path, begin: Callable[[], Any]) -> Iterator[Any]:
    """Lock a run's folder and `begin` there, on rank 0 alone; yield what that returns once all see the same folder.

    Raises:
        RunFolderError: a process does not see what rank 0 wrote.
    """
    with locked(path) if processes().leads else nullcontext():
        begun = begin() if processes().leads else None
        check_same_folder(path)
        yield begun


def check_same_folder(path: Path) -> None:
    """Refuse a folder that is not on a file system that all processes share."""
    wanted = share_text(config_seen(path) if processes().leads else None, f"the beginning of {path}")
    seen = config_seen(path)  # once rank 0 has written it
    hosts = gather_text("" if seen == wanted else socket.gethostname(), f"the look at {path}")
    if odd := [(rank, host) for rank, host in enumerate(hosts) if host]:
        rank, host = odd[0]
        raise RunFolderError(
            f"rank {rank}, on {host}, does not see {path / 'config.json'} as rank 0 wrote it: the folder of a run must be on a "
            "file system that all processes share"
        )


def config_seen(path: Path) -> str:
    """Return the SHA-256 of a run's config; "none" where there is no such file."""
    try:
        return sha256((path / "config.json").read_bytes())
    except OSError:
        return "none"
