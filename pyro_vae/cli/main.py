"""The command line, `pyro-vae`: a config file under the flags, and the exit codes of errors, signals and a closed output."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from pyro_vae.common.atomic_write import storage
from pyro_vae.common.memory import fitting
from pyro_vae.common.plain_text import plain
from pyro_vae.common.processes import NEEDED, asked_of
from pyro_vae.common.safe_read import parse_json, read_bytes
from pyro_vae.errors import Interrupted, PyroVAEError, RunFolderError, UsageError
from pyro_vae.runs import folder
from pyro_vae.runs.checkpointer import terminable
from pyro_vae.runs.config import BEFORE, Config

from . import array_commands, data_commands, export_command, gap_commands, look_commands, new_command, run_commands  # noqa: F401 (they add their commands to the app)
from .commands import app
from .words import check_words, explain

TOGETHER = ("train", "evaluate", "bracket", "gaps")  # commands whose work the processes of torchrun share

SPELLED = "pyro_vae.spelled"  # how an encoding's gaps are filled
SIGNS = {
    "≥": ">=",
    "≤": "<=",
    "±": "+/-",
    "−": "-",
    "–": "-",
    "×": "x",
    "…": "...",
    "→": "->",
    "∞": "inf",
    "\u0302": "-hat",
}


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        Path | None, Parameter(help="JSON of config keys (a run's config.json will do); flags override it.")
    ] = None,
    quiet: Annotated[bool, Parameter(negative=(), help="Print nothing but errors, and what --json asks for.")] = False,
) -> None:
    """Runs a command, with defaults from a config file if one is named."""
    resumed = resumed_run(tokens) if tokens[:1] == ("train",) and config is None else None
    if resumed:
        config = Path(resumed) / "config.json"
        folder.read_config(Path(resumed))
    words = [
        re.sub(r"^--(model|prior|likelihood|posterior|objective|kl)\.", r"--\1-options.", token) for token in tokens
    ]
    check_words(app, words)
    keys = read_keys(config) if config else {}
    keys = BEFORE | keys if resumed and config else keys
    if keys.get("columns") and (not resumed or "--columns" in {word.split("=")[0] for word in words}):
        keys["likelihood_options"] = without_blocks(keys.get("likelihood_options", {}))
    for role in [key for key in keys if key.endswith("_options")]:
        flag = f"--{role.replace('_', '-')}"
        given = {word.split("=")[0] for word in words}
        options = {f"{flag}.{k.replace('_', '-')}": v for k, v in keys.pop(role).items()}
        listed = {f: v if isinstance(v, list) else [v] for f, v in options.items() if f not in given}
        words += [f"{f}={','.join(map(str, v))}" for f, v in listed.items()]
    if quiet and words[:1] == ["new"]:
        raise UsageError("new asks questions and says what it has read: it has no --quiet")
    with silent(results="--json" in words) if quiet else nullcontext(), defaults(keys if config else None):
        app(words, exit_on_error=False, print_error=False, result_action="return_value")


def without_blocks(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the blocks of columns out, which were found in a table: of another one, or by other words, they are found anew."""
    return {name: value for name, value in options.items() if name != "blocks"}


@contextmanager
def defaults(keys: Mapping[str, Any] | None) -> Iterator[None]:
    """Take values of options that are not given from these keys, for one command."""
    app.config = () if keys is None else (cyclopts.config.Dict(dict(keys), use_commands_as_keys=False),)
    try:
        yield
    finally:
        app.config = ()


@contextmanager
def silent(results: bool = False) -> Iterator[None]:
    """Send what is printed nowhere: notes and progress, and the results, unless they are wanted; errors are for the caller."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(redirect_stderr(nowhere))
        if not results:
            stack.enter_context(redirect_stdout(nowhere))
        yield


def resumed_run(tokens: Sequence[str]) -> str | None:
    """Return the folder in ``--resume FOLDER``, whose config the options go on top of."""
    joined = (word.partition("=")[2] for word in tokens if word.startswith("--resume="))
    return next((word for name, word in pairwise(tokens) if name == "--resume"), next(joined, None))


def read_keys(path: Path) -> dict[str, Any]:
    """Read the config keys of a JSON file, and check them."""
    try:
        content = read_bytes(path)
    except RunFolderError as error:
        raise UsageError(f"--config {path}: {error}") from error
    try:
        values = parse_json(content, path)
    except RunFolderError as error:
        why: object = error.__cause__ or error
        why = f"{why}: save it as UTF-8" if isinstance(why, UnicodeDecodeError) else why
        raise UsageError(
            f"--config {path} is no JSON of config keys, such as a run's config.json or what pyro-vae new writes ({why})"
        ) from error
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        values = values["config"]
    Config.from_dict(values)
    return {key: value for key, value in values.items() if value is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0, 1 errors without a code of their own (a package that is not installed), 2 usage, 3 data, 4 run folder, 5 diverged, or
    not to be believed (--strict), 6 storage, 7 device memory, 8 processes, 9 a device that failed, 75 busy, 129, 130 and 143
    interrupted.
    """
    with printable():
        try:
            rank, together = rank_of_torchrun(), shares(sys.argv[1:] if argv is None else argv)
            if rank and not together:
                return 0  # rank 0 does it
            with silent() if rank else nullcontext(), nullcontext() if together else without_torchrun():
                return run_command(argv)
        except PyroVAEError as error:
            with suppress(OSError):  # a terminal that hung up takes no message
                print("\n".join(map(plain, (f"error: {error}", *getattr(error, "__notes__", ())))), file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as signal:
            with suppress(OSError):
                print("interrupted", file=sys.stderr)
            return Interrupted.kind(signal).exit_code
        except (BrokenPipeError, SystemExit) as end:  # `| head` has read enough; of it rich makes a SystemExit
            if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
                raise
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def rank_of_torchrun() -> int:
    """Return this process's place among those of torchrun; 0 where there are none, or what they are is refused later."""
    with suppress(UsageError):
        return asked_of(os.environ).rank
    return 0


def shares(words: Sequence[str]) -> bool:
    """Return whether processes share the work of a command.

    Example:
        >>> shares(["--config", "a.json", "evaluate", "runs/a"]), shares(["show", "runs/evaluate"])
        (True, False)
    """
    return next((word for word in words if word in list(app)), None) in TOGETHER


@contextmanager
def without_torchrun() -> Iterator[None]:
    """Leave torchrun's variables out, for a command of one process and for what it starts, which would wait for the others."""
    kept = {name: os.environ.pop(name) for name in NEEDED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def run_command(argv: Sequence[str] | None) -> int:
    """Run the command; whatever the system refuses on the way is one of our errors."""
    try:
        with (
            warnings.catch_warnings(),
            terminable(),
            storage("cannot go on"),
            fitting("what was asked for", "Take fewer rows, smaller batches, or --device cpu."),
        ):
            warnings.showwarning = lambda message, *_, **__: print(f"note: {plain(message)}", file=sys.stderr)
            app.meta(argv, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        raise UsageError(explain(app, error)) from error
    return 0


def spelled(error: UnicodeError) -> tuple[str, int]:
    """Spell signs that an encoding lacks, where numbers mean something else without them; any other becomes a question mark.

    Example:
        >>> codecs.register_error(SPELLED, spelled)
        >>> "log p(x) ≥ −3.2 ± 0.1, naïve".encode("ascii", SPELLED)
        b'log p(x) >= -3.2 +/- 0.1, na?ve'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


@contextmanager
def printable() -> Iterator[None]:
    """Send output that is closed nowhere, and spell signs that it cannot show (an ASCII terminal, ≥ as >=): no crash."""
    codecs.register_error(SPELLED, spelled)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = (nowhere if stream is None else stream for stream in before)
        reconfigured = [(s, s.errors) for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
        for stream, _ in reconfigured:
            stream.reconfigure(errors=SPELLED)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream, errors in reconfigured:
                stream.reconfigure(errors=errors)


if __name__ == "__main__":
    sys.exit(main())
