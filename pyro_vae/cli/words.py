"""Words of a command line before it is read: fractions where whole numbers are asked for, other names, lists of files."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from pyro_vae.errors import UsageError

MEANT = {  # what other tools call it
    "lr": "learning-rate", "rate": "learning-rate", "step-size": "learning-rate", "bs": "batch-size", "batch": "batch-size",
    "z-dim": "latent-dim", "zdim": "latent-dim", "latents": "latent-dim", "dim": "latent-dim", "layers": "hidden",
    "early-stopping": "patience", "estimator": "gradient", "loss": "objective", "bound": "objective", "dataset": "data",
    "samples": "num-samples", "particles": "num-samples", "output": "out", "gpu": "device", "cuda": "device",
}  # fmt: skip


FILES = {
    "--data": "--data",
    "--train": "--data",
    "--validation": "--validation",
    "--test": "--test",
}  # of one file each


def check_words(app: Any, words: Sequence[str]) -> None:
    """Refuse a fraction for a whole number (cyclopts rounds it), an option by the name that other tools give it, and several
    files in the place of one.

    Raises:
        UsageError: with the option, and what to write.

    Example:
        >>> from pyro_vae.cli.main import app
        >>> check_words(app, ["train", "--lr", "0.01"])
        Traceback (most recent call last):
        pyro_vae.errors.UsageError: there is no option --lr: did you mean --learning-rate?
    """
    if not words or words[0] not in app:
        return
    arguments = {name: a for a in app[words[0]].assemble_argument_collection() for name in a.names}
    check_files(words[0], list(options(words[1:])))
    for option, values in options(words[1:]):
        if option not in arguments:
            meant = f"--{MEANT.get(option.lstrip('-').replace('_', '-'), '')}"
            if meant in arguments:
                raise UsageError(f"there is no option {option}: did you mean {meant}?")
        elif is_whole(hint := arguments[option].hint):
            check_whole(option, values if get_origin(hint) is tuple else values[:1])


def check_files(command: str, given: Sequence[tuple[str, list[str]]]) -> None:
    """Refuse several files of one split, which are read by no option."""
    files: dict[str, list[str]] = {}
    for option, values in given if command == "train" else ():
        if option in FILES:
            listed = files.setdefault(FILES[option], [])
            listed += values
            if len(listed) > 1:
                raise UsageError(
                    f"{option} takes one file, got {len(listed)}: {', '.join(listed[:5])}. Join them into one; or, of arrays "
                    "that are to stay on disk and be split together, put them into a folder, pyro-vae manifest FOLDER, and "
                    "--data FOLDER."
                )


def options(words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option and the words up to the next, which may belong to it."""
    given: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, joined, value = word.partition("=")
            given.append((name, [value] if joined else []))
        elif given:
            given[-1][1].append(word)
    yield from given


def is_whole(hint: Any) -> bool:
    """Return whether an option takes whole numbers: one, several, or one or none."""
    if get_origin(hint) in (tuple, list, Union, types.UnionType):
        return all(is_whole(part) for part in get_args(hint) if part not in (Ellipsis, type(None)))
    return hint is int


def check_whole(option: str, values: Iterable[str]) -> None:
    """Refuse a number with a fraction, 2.0 too, by name."""
    for part in ",".join(values).split(","):
        try:
            float(part)
        except ValueError:
            continue  # no number: cyclopts says so
        if not part.strip().lstrip("+-").replace("_", "").isdigit():
            raise UsageError(f"{option} takes a whole number, got {part}")
