"""What the fields of an evidence.json are: checked where it is read, so that whatever is printed or computed of them is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.errors import RunFolderError

NUMBER, COUNT, TEXT, TEXTS = "a number or null", "a whole number from 0", "a text or null", "a list of texts"
COUNTED = "a whole number from 0, or null"
EVALUATION = {**dict.fromkeys(("split", "method", "proposal"), TEXT), **dict.fromkeys(("rows", "num_samples"), COUNTED)}
FLOOR = {"log_px": NUMBER, "log_px_data_se": NUMBER, "model": TEXT}
CLEARED = dict.fromkeys(("cleared_by", "cleared_by_se"), NUMBER)  # which older versions did not write
UNFINISHED = dict.fromkeys(("epoch", "epochs", "step"), COUNT)
TRAINING = {
    **dict.fromkeys(("best_epoch", "epochs"), COUNT),
    **{"seconds": NUMBER, "stopped": TEXT, "metrics": TEXT, "engine": TEXTS, "unfinished": UNFINISHED},
}
NUMBERS = [
    "log_px",
    "log_px_mc_se",
    "log_px_data_se",
    "elbo",
    "elbo_mc_se",
    "gap",
    "gap_mc_se",
    "ess_median",
    "ess_min",
    "seconds",
]
NUMBERS += ["bits_per_dim", "elements", "bias", "jackknife", "khat_max", "khat_threshold", "max_share", "target_se"]
COUNTS = ["rows", "num_samples", "seed", "rows_of_low_ess", "rows_flagged", "rows_too_narrow", "rows_looked_at"]
COUNTS += ["num_chains", "num_temperatures", "chunk_size"]
LABELS = ["method", "measure", "proposal", "how", "split", "policy", "unit", "machine", "weights", "csv_sha256", "time"]
FIELDS: Mapping[str, Any] = {
    **{**dict.fromkeys(NUMBERS, NUMBER), **dict.fromkeys(COUNTS, COUNT), **dict.fromkeys(LABELS, TEXT)},
    **{"floor": FLOOR | CLEARED, "training": TRAINING, "evaluation": EVALUATION, "versions": {}},
}
OF_DATA = {"name": TEXT, "digest": TEXT, "policy": TEXT, "notes": TEXTS, "rows": dict.fromkeys(("train",), COUNT)}
NEEDED = ("split", "rows", "policy", "floor", "measure", "method", "bits_per_dim", "elements", "log_px", "log_px_mc_se")
BESIDE: dict[str, tuple[str, ...]] = {
    "ess_median": ("ess_min", "num_samples|num_chains"),
    "khat_threshold": ("target_se", "num_samples"),
    "elbo": ("gap", "elbo_mc_se"),
    "num_chains": ("num_temperatures",),
}


def check_fields(summary: Mapping[str, Any], path: Path, fields: Mapping[str, Any] = FIELDS) -> None:
    """Refuse a field of another kind than it is written as; fields that are not there, or not known, pass.

    Raises:
        RunFolderError: names the field, and what was wanted.
    """
    for name, kind in fields.items():
        if name not in summary or (isinstance(kind, Mapping) and summary[name] is None and name == "training"):
            continue
        value = summary[name]
        if not (isinstance(value, dict) if isinstance(kind, Mapping) else is_a(value, kind)):
            wanted = "an object" if isinstance(kind, Mapping) else kind
            raise RunFolderError(f"{path} cannot be used: its {name!r} is {str(value)[:40]!r}; wanted {wanted}")
        if isinstance(kind, Mapping):
            check_fields(value, path, kind)


def is_a(value: Any, kind: str) -> bool:
    """Return whether a JSON value is of a kind of the table."""
    if kind in (COUNT, COUNTED):
        return (value is None and kind == COUNTED) or (type(value) is int and value >= 0)
    if kind == NUMBER:
        return value is None or type(value) in (int, float)
    if kind == TEXTS:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    return value is None or isinstance(value, str)


def check_printable(summary: Mapping[str, Any], path: Path) -> None:
    """Refuse evidence that lacks what is printed of it, or is of no rows.

    Raises:
        RunFolderError: names what is missing.
    """
    needed = [*NEEDED, *(n for name, others in BESIDE.items() if name in summary for n in others)]
    missing = [name for name in needed if not any(one in summary for one in name.split("|"))]
    missing += [f"floor.{name}" for name in FLOOR if name not in summary.get("floor", FLOOR)]
    empty = [
        name
        for name in ("split", "measure", "method", "bits_per_dim", "elements", "log_px")
        if summary.get(name) is None
    ]
    empty += [name for name in ("ess_median", "ess_min") if name in summary and summary[name] is None]
    empty += ["log_px_mc_se"] if "how" in summary and summary.get("log_px_mc_se") is None else []
    empty += [] if summary.get("rows") else ["rows"]
    if missing or empty:
        raise RunFolderError(f"{path} cannot be used: it says nothing of {[*missing, *empty][0]!r}")
