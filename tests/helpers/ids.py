"""Names of parametrised tests in stable words: processes that share a run must list the same tests."""

import ast
import linecache
from collections.abc import Iterable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

LONGEST = 60
PLAIN = (str, bytes, bool, int, float, complex, type(None))


def word(value: Any) -> str | None:
    """Say a parameter by its own text, without an address or anything else that differs in another process.

    None where pytest says it as well (numbers, strings).

    >>> word(dict(hidden=[4, 4], dtype=torch.float64)), word(lambda: max(0, 1)), word(ValueError("no"))
    ('hidden=4,4 dtype=float64', 'max(0, 1)', 'ValueError')
    """
    return None if isinstance(value, PLAIN) else " ".join(text(value).split())[:LONGEST]


def text(value: Any) -> str:
    if isinstance(value, PLAIN):
        return str(value)
    if isinstance(value, dict):
        return joined((f"{key}={text(item)}" for key, item in value.items()), " ")
    if isinstance(value, list | tuple):
        return joined(map(text, value), " " if any(isinstance(item, str) for item in value) else ",")
    if isinstance(value, set | frozenset):
        return joined(sorted(map(text, value)), ",")
    if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
        return body(value.__code__)
    if isinstance(value, BaseException) or hasattr(value, "__next__"):
        return type(value).__name__
    if isinstance(getattr(value, "__name__", None), str):
        return value.__name__
    if isinstance(getattr(value, "shape", None), tuple):
        return f"{type(value).__name__} {text(tuple(value.shape))}"
    said = repr(value).removeprefix("torch.")
    return type(value).__name__ if " at 0x" in said or "\n" in said else said


def joined(words: Iterable[str], between: str) -> str:
    return between.join(words) or "empty"


def body(code: CodeType) -> str:
    """Read the expression of a lambda in its file: the instructions know where in it they come from."""
    starts = {(line, column) for line, _, column, _ in code.co_positions()}
    return next((said for start, said in lambdas(code.co_filename) if start in starts), "lambda")


@cache
def lambdas(filename: str) -> list[tuple[tuple[int, int], str]]:
    """Where each lambda's expression starts in a file, and what it is."""
    source = "".join(linecache.getlines(filename))
    bodies = [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda)]
    return [((node.lineno, node.col_offset), ast.get_source_segment(source, node) or "lambda") for node in bodies]
