"""Docstrings are plain text to people; this makes reStructuredText of them, for Sphinx."""

import re

LONE_STARS = re.compile(r"(?<![\w*\\`])(\*{1,2})(?=[A-Za-z_]+\b[^*]*$)")  # of *context, and not of *emphasis*
LAST_UNDERSCORE = re.compile(r"(?<=\w)_(?!\w)")
ONLY_NAMES = re.compile(r"\s+[\w, *\\]+,")
TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")


def to_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite a docstring's lines in place: formulas and tables as such, and nothing in prose taken for markup."""
    made: list[str] = []
    table: list[list[str]] = []
    literal = False  # within an example or a formula
    for line in [*lines, ""]:
        if literal and line and not line.startswith(" ") and ">>>" not in line:
            literal = False
        if TABLE_ROW.match(line) and not literal:
            table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if table:
            made += list_table([row for row in table if set("".join(row)) - set("-: ")])
            table = []
        if not literal and starts_formula(line, made):
            made += ["::", ""]
            literal = True
        if ">>>" in line:
            literal = True
        if literal:
            made.append(line)
            continue
        if made and ONLY_NAMES.fullmatch(made[-1]):  # of arguments, which go on in this line
            line = f"{made.pop()} {line.strip()}"
        made.append(escaped(line))
    lines[:] = made[:-1]


def starts_formula(line: str, before: list[str]) -> bool:
    """Whether a line is indented after a paragraph and a blank one: a formula, or a list of them."""
    if not line.startswith("    ") or len(before) < 2 or before[-1]:
        return False
    above = next((text for text in reversed(before) if text), "")
    return not above.startswith(" ") and not above.endswith("::")


def escaped(line: str) -> str:
    """A line with what lies outside of double backquotes escaped."""
    return "``".join(part if i % 2 else escape_text(part) for i, part in enumerate(line.split("``")))


def escape_text(text: str) -> str:
    text = LONE_STARS.sub(lambda found: found[1].replace("*", r"\*"), re.sub(r"(?<!\\)\|", r"\|", text))
    text = re.sub(r"(: [A-Z])\.$", r"\1\\.", text)  # "num_particles: K." is no list
    return LAST_UNDERSCORE.sub(r"\\_", text)


def list_table(rows: list[list[str]]) -> list[str]:
    """A table of Markdown as one of reStructuredText."""
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'  ' if i else '* '}- {escaped(cell)}" for i, cell in enumerate(row)]
    return [*lines, ""]
