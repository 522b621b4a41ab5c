"""Words of a command line: what is refused before they are read (fractions, lists of files …), and errors in one line."""

from __future__ import annotations

import difflib
import re
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Union, get_args, get_origin

import cyclopts

from pyro_vae.common.csv_columns import is_number
from pyro_vae.errors import UsageError

MEANT = {  # what other tools call it
    "lr": "learning-rate", "rate": "learning-rate", "step-size": "learning-rate", "bs": "batch-size", "batch": "batch-size",
    "z-dim": "latent-dim", "zdim": "latent-dim", "latents": "latent-dim", "dim": "latent-dim", "layers": "hidden",
    "early-stopping": "patience", "estimator": "gradient", "loss": "objective", "bound": "objective", "dataset": "data",
    "samples": "num-samples", "particles": "num-samples", "output": "out", "gpu": "device", "cuda": "device",
}  # fmt: skip


OF_ALL = ("--quiet", "--config", "--help")  # options of every command
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
    check_dashes(words[1:], arguments)
    check_files(words[0], list(options(words[1:])))
    for option, values in options(words[1:]):
        if option not in arguments:
            meant = f"--{MEANT.get(option.lstrip('-').replace('_', '-'), '')}"
            if meant in arguments:
                raise UsageError(f"there is no option {option}: did you mean {meant}?")
        elif is_whole(hint := arguments[option].hint):
            check_whole(option, values if get_origin(hint) is tuple else values[:1])


def check_dashes(words: Sequence[str], arguments: Mapping[str, Any]) -> None:
    """Refuse a value that begins with a dash where it is read as an option: -x.csv; numbers below 0 are values."""
    for option, word in pairwise(words):
        takes_one = option in arguments and arguments[option].hint is not bool
        if takes_one and re.match(r"-[^-]", word) and word not in (*arguments, "-h") and not is_number(word):
            raise UsageError(
                f"{option} has no value, as {shlex.quote(word)} begins with a dash, as options do: write "
                f"{option}={shlex.quote(word)}, or {shlex.quote(f'./{word}')} of a file"
            )


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


def explain(app: Any, error: cyclopts.CycloptsError) -> str:
    """Say in one line what a command line lacks or has too much of, and how to go on.

    Example:
        >>> from pyro_vae.cli.main import app
        >>> try:
        ...     app(["evaluate"], exit_on_error=False, print_error=False)
        ... except cyclopts.CycloptsError as error:
        ...     print(explain(app, error))
        Command "evaluate" parameter RUN requires an argument. pyro-vae evaluate --help tells more
    """
    error.verbose = False  # True adds the Python function behind the command
    command = [word for word in (error.command_chain or ())[:1] if word in app]
    told = " ".join(str(error).split())
    text = f"{told}{'' if told.endswith(('.', '?')) else '.'} {' '.join(['pyro-vae', *command])} --help tells more"
    if isinstance(error, cyclopts.UnknownOptionError):
        option = (error.token.keyword or error.token.value or "").partition("=")[0]
        known = [name for a in (app[command[0]] if command else app).assemble_argument_collection() for name in a.names]
        text = f"there is no option {option}{nearest(option, [*known, *OF_ALL], command)}"
    elif isinstance(error, cyclopts.UnusedCliTokensError):
        rest = ", ".join(map(repr, (error.unused_tokens or [])[:5]))
        text = f"{rest}: nothing takes that; options have names, as in pyro-vae {' '.join(command)} --help"
    return text


def nearest(option: str, known: Sequence[str], command: Sequence[str]) -> str:
    """Name the option that was meant: one that begins with the word, or is spelled alike; else where all are listed.

    Example:
        >>> nearest("--num", ["--out", "--num-samples"], ["sample"])
        ': did you mean --num-samples?'
        >>> nearest("--frobnicate", ["--out"], ["sample"])
        '; pyro-vae sample --help lists them'
    """
    close = [name for name in known if name.startswith(option)] or difflib.get_close_matches(option, known, 1)
    if close:
        return f": did you mean {close[0]}?"
    return f"; {' '.join(['pyro-vae', *command])} --help lists them"
