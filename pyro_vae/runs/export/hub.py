"""A run as a folder to upload to the Hugging Face hub: its card, weights, settings and evidence. Nothing is uploaded here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import publish
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.safe_read import dump, seal
from pyro_vae.errors import RunFolderError
from pyro_vae.runs import folder
from pyro_vae.runs.custom_components import NOTHING, Components
from pyro_vae.runs.load import load_run
from pyro_vae.runs.report.facts import read_facts
from pyro_vae.runs.report.page import usable

from .card import CARD, card_of
from .new_folder import check_new


@suggest_keywords
def export_hub(path: Path | str, to: Path | str, *, components: Components = NOTHING) -> Path:
    """Write README.md, model.safetensors, config.json and evidence.json into a new folder; return where it is.

    :func:`~pyro_vae.load_run` takes that folder, and what ``hf download --local-dir`` makes of it. Of a data file only the name
    is told, not where it was. The evidence is what the run's report is headed by; its rows, evidence.csv, stay at home.

    Raises:
        RunFolderError: no run, or a damaged one; its evidence is of other weights; `to` holds something.
        StorageError: it cannot be written.
    """
    path, to = Path(path), Path(to)
    run = load_run(path, components)
    with usable(path):
        facts = read_facts(path)
        state = run.vae.state_dict()
        if facts.record != run.record or facts.summary.get("weights", tensor_digest(state)) != tensor_digest(state):
            raise RunFolderError(f"{path} changed while it was read: export it once more")
        summary = {key: value for key, value in facts.summary.items() if key != folder.CSV}
        files = {
            CARD: card_of(facts, to.absolute().name).encode(errors="replace"),  # file names may be no UTF-8
            folder.WEIGHTS: dump(state),
            "config.json": sealed_json(without_places(facts.record)),
        }
    if summary:
        files["evidence.json"] = sealed_json(summary)
    publish(check_new(to), files)
    return to


def without_places(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json holds without the folders of this machine: a data file is its name alone."""
    config, data = dict(record["config"]), dict(record["data"])
    if isinstance(place := config.get("data"), str) and os.path.dirname(place):
        config["data"] = os.path.basename(place.rstrip("/\\")) or "data"
        told = data.get("notes")
        data["notes"] = [note.replace(place, config["data"]) for note in told] if isinstance(told, list) else []
        data["name"] = str(data.get("name")).replace(place, config["data"])
    data.pop("beside", None)
    rest = {key: value for key, value in record.items() if key != "forked_from"}
    return rest | {"config": config, "data": data}


def sealed_json(record: Mapping[str, Any]) -> bytes:
    """Format a record as the files of a run have it, with its SHA-256."""
    return folder.json_bytes(seal(record), indent=2) + b"\n"
