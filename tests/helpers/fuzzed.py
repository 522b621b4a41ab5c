"""Files of a run with one field of each changed to what nobody would write, sealed as their writer seals them."""

import json

from pyro_vae.common.safe_read import SEAL, seal

DEEP = json.loads("[" * 60 + "]" * 60)
VALUES = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "10^400": 10**400,
    "fraction": 1.5,
    "huge fraction": 1e308,
    "empty": "",
    "long": "x" * 2**17,
    "surrogate": "\ud800",
    "escape": "\x1b]0;owned\x07\x1b[31m",
    "markup": "[bold]x[/nothing]",
    "list": [],
    "shape": [2, 3],
    "list of texts": ["a", None],
    "object": {},
    "object of objects": {"a": {"b": [1]}},
    "deep": DEEP,
}


def fields(record, prefix=(), depth=3):
    """The ways to every field of a JSON object, down to some levels."""
    items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for name, value in items:
        if name != SEAL:
            yield (*prefix, name)
            if depth > 1:
                yield from fields(value, (*prefix, name), depth - 1)


def changed(record, way, value):
    """A copy with one field changed; without it, where the value is `...`."""
    record = json.loads(json.dumps(record))
    inner = record
    for name in way[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return record


def sealed(record):
    """As bytes; with a seal of its own, whatever it holds."""
    if not isinstance(record, dict):
        return json.dumps(record).encode()
    plain = {name: value for name, value in record.items() if name != SEAL}
    try:
        return json.dumps(seal(plain)).encode()
    except (ValueError, RecursionError):  # what no writer of ours can seal
        return json.dumps(plain).encode()
