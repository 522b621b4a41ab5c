"""Text that a terminal shows and does not obey: names of files, columns and hosts may hold any sign."""

from __future__ import annotations

import re

# C0 but ends of lines and tabs, DEL, C1; line and paragraph separators; what turns the direction of all that follows
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
HALVES = re.compile(
    "[\ud800-\udc7f\udd00-\udfff]"
)  # of a pair; those between are bytes of file names that are no UTF-8


def is_plain(text: str) -> bool:
    """Return whether a text holds no control sign (an escape, an override of direction) and no half of a surrogate pair."""
    return (text.isascii() and text.isprintable()) or not (CONTROLS.search(text) or HALVES.search(text))


def plain(text: object) -> str:
    r"""Write what is printed or noted with its controls as escapes, ``\x1b``; other text is left as it is.

    Example:
        >>> plain("a\x1b[31mb é")
        'a\\x1b[31mb é'
    """
    return HALVES.sub("?", CONTROLS.sub(lambda sign: sign[0].encode("unicode_escape").decode(), str(text)))


def is_utf8(name: str) -> bool:
    """Return whether a file name is UTF-8: Python writes bytes that are none as surrogates.

    Example:
        >>> is_utf8("zürich"), is_utf8("\\udcff")
        (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
