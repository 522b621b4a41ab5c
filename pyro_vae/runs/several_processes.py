"""A run that several processes train or score: they agree before they begin, and rank 0 alone writes into its folder."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pyro_vae.common.digests import sha256
from pyro_vae.common.environment import versions
from pyro_vae.common.exchange import agree, gather_text, share_text
from pyro_vae.common.spread import by_itself, sharing
from pyro_vae.data import Data
from pyro_vae.errors import ProcessesError, RunFolderError

from .config import Config
from .lock import LOCK, locked


def agree_on_run(config: Config, data: Data, path: Path) -> None:
    """Refuse processes that would train other runs: names the ranks, and what is not the same.

    Raises:
        UsageError: another config, folder, data or versions.
    """
    if sharing().world > 1:
        agree("the config", config.to_dict())
        agree("the run's folder", str(path))
        agree("the data", {"name": data.name, "SHA-256": data.digest})
        agree("the versions", versions())


def agree_on_scoring(weights: str, data: Data, options: Mapping[str, Any]) -> None:
    """Refuse processes that would score other weights or data, or otherwise: names the ranks, and what is not the same.

    Raises:
        UsageError: as it says.
    """
    if sharing().world > 1:
        agree("the weights (their digest)", weights)
        agree("the data", {"name": data.name, "SHA-256": data.digest})
        agree("the options", options)
        agree("the versions", versions())


@contextmanager
def led(path: Path, begin: Callable[[], Any], lock: str = LOCK, wait: bool = False) -> Iterator[Any]:
    """Lock a run's folder and `begin` there, on rank 0 alone; yield what that returns once all see the same folder.

    Raises:
        RunFolderError: a process does not see what rank 0 wrote.
    """
    here = sharing()
    with locked(path, lock, wait) if here.leads else nullcontext():
        begun = begin() if here.leads else None
        if here.world > 1:
            check_same_folder(path)
        yield begun


def done_by_rank_0(do: Callable[[], dict[str, Any]], what: str) -> dict[str, Any]:
    """Have rank 0 do something by itself, and return on each rank what came of it, which JSON can hold.

    Raises:
        ProcessesError: on the other ranks, where it failed.
    """
    here = sharing()
    if here.world == 1:
        return do()
    if not here.leads:
        told = json.loads(share_text(None, what))
        if "ended" in told:
            raise ProcessesError(f"rank {here.rank} stops at {what}: rank 0 ended with {told['ended']}")
        return dict(told["result"])
    try:
        with by_itself():
            result = do()
    except Exception as error:
        share_text(json.dumps({"ended": f"{type(error).__name__}: {error}"}), what)
        raise
    share_text(json.dumps({"result": result}), what)
    return result


def check_same_folder(path: Path) -> None:
    """Refuse a folder that is not on a file system that all processes share."""
    wanted = share_text(config_seen(path) if sharing().leads else None, f"the beginning of {path}")
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
