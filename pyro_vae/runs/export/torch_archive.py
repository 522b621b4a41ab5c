"""A run as torch's own graphs: encode, decode and score as .pt2 archives, none of which holds a pickle."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import torch

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.runs.custom_components import NOTHING, Components

from .graphs import graph_of
from .tensor_programs import NoFormError, TensorProgram
from .written_graphs import write_graphs

PICKLES = (b"\x80", b"PK\x03\x04")  # how a pickle, and the archive that torch.save makes of one, begin


@suggest_keywords
def export_torch(path: Path | str, to: Path | str, *, components: Components = NOTHING) -> Path:
    """Write encode.pt2, decode.pt2, score.pt2, and what they take and give, into a new folder; return where it is.

    ``torch.export.load(file).module()`` is the function; it needs torch, and neither Pyro nor pyro_vae. Each gave the numbers
    of the run's own programs, to 1e-5, before it was written, on what interface.json lists. An archive holds a graph as JSON
    and tensors as bytes; one in which torch would put a pickle is refused.

    Args:
        path: the run.
        to: folder to make.
        components: parts of one's own, as :func:`~pyro_vae.load_run` takes them.

    Raises:
        UsageError: a model of another kind than the VAE, or none of the three can be written.
        RunFolderError: no run, or a damaged one; `to` holds something.
        StorageError: it cannot be written.
    """
    return write_graphs(Path(path), Path(to), components, archive_bytes, "pt2")


def archive_bytes(program: TensorProgram) -> bytes:
    """Write a graph as an archive, and refuse one with a pickle in it."""
    written = io.BytesIO()
    torch.export.save(graph_of(program), written)
    content = written.getvalue()
    if held := pickles_in(content):
        raise NoFormError(f"torch {torch.__version__} would write {held[0]} as a pickle, which nothing saved here is")
    return content


def pickles_in(archive: bytes) -> list[str]:
    """Name the members of an archive of torch.export that are pickles, or that its own lists say are.

    Example:
        >>> written = io.BytesIO()
        >>> with zipfile.ZipFile(written, "w") as made:
        ...     made.writestr("a/data.json", "{}")
        ...     made.writestr("a/data.pt", b"\\x80\\x02.")
        >>> pickles_in(written.getvalue())
        ['a/data.pt']
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        contents = {name: members.read(name) for name in members.namelist()}
    found, raw = [], set()
    for name, content in contents.items():
        if name.endswith("_config.json"):
            for tensor in json.loads(content)["config"].values():
                member = f"{name.rpartition('/')[0]}/{tensor['path_name']}"
                found += [member] if tensor.get("use_pickle", True) else []
                raw |= set() if tensor.get("use_pickle", True) else {member}  # bytes of a tensor may begin in any way
    return found + [n for n, content in contents.items() if n not in raw and content.startswith(PICKLES)]
