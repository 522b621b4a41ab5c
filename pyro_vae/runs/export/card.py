"""The card of a model on the hub: YAML that machines read, then Markdown; every text in it is data, and no markup."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jinja2

from pyro_vae.common.environment import versions
from pyro_vae.common.flagged import is_loose
from pyro_vae.common.plain_text import plain
from pyro_vae.runs.report import words
from pyro_vae.runs.report.facts import RunFacts
from pyro_vae.runs.report.verdict import judge
from pyro_vae.training.tensorboard_tracker import evidence_scalars, in_words

CARD = "README.md"
# what Markdown would read within a line: marks, HTML, tables, formulas, mentions, and addresses that it makes links of
MARKUP = re.compile(r"([\\`*_\[\]<>&|~$#@]|(?<=\])\(|\.(?=[^\W\d])|:(?=\S))")
MOST = 300  # signs of a text


class Written(str):
    """Text that is Markdown or YAML already."""


def card_of(facts: RunFacts, name: str) -> str:
    """Return README.md of a run, under a name of its own."""
    s = facts.summary
    return environment().get_template("card.md").render(
        name=name,
        data=str(facts.record["data"].get("name")),
        metrics=metrics_of(s) if s else [],
        split=str(facts.main.name) if facts.main is not None else "",
        verdict=judge(facts),
        sentences=words.three_sentences(facts),
        numbers=words.numbers(s) if s else [],
        asked=words.asked(facts),
        versions=versions(),
        loose=bool(s) and is_loose(s),
    )  # fmt: skip


def metrics_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List log p(x) as the hub's model index has metrics: with both errors, or a bound alone, and how many rows are flagged.

    Example:
        >>> about = {"log_px": -87.0, "log_px_mc_se": 0.01, "log_px_data_se": 0.75, "rows": 1000, "rows_flagged": 932}
        >>> [metric["type"] for metric in metrics_of(about)], metrics_of(about)[0]["name"]
        (['log_px_bound', 'rows_flagged', 'rows'], 'log p(x): ≥ -87.00 (93 % flagged) nats a row; 932 of 1000 rows flagged')
        >>> [metric["type"] for metric in metrics_of(about | {"rows_flagged": 3})]
        ['log_px', 'log_px_mc_se', 'log_px_data_se', 'rows_flagged', 'rows']
    """
    numbers = list(evidence_scalars(summary))
    if not all(math.isfinite(value) for _, value in numbers):
        return []
    listed: list[dict[str, Any]] = [{"type": name, "name": name, "value": value} for name, value in numbers]
    listed[0]["name"] = f"log p(x): {in_words(summary)}"
    return listed


def environment() -> jinja2.Environment:
    """Make the template's environment: every text is escaped for Markdown, unless a filter has written it."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_vae.runs.export", "templates"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: markdown(value) if isinstance(value, str) and not isinstance(value, Written) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"yaml": yaml}
    return made


def markdown(text: str) -> Written:
    r"""Write a text so that Markdown shows it as it is, in one line.

    Example:
        >>> markdown("a_b <script>"), markdown("ok\n---")
        ('a\\_b &lt;script&gt;', 'ok ---')
    """
    line = " ".join(plain(text).split())
    line = line if len(line) <= MOST else f"{line[:MOST]}…"
    escaped = MARKUP.sub(r"\\\1", line)
    for sign, entity in (("\\&", "&amp;"), ("\\<", "&lt;"), ("\\>", "&gt;")):  # for readers that know no such escapes
        escaped = escaped.replace(sign, entity)
    return Written(escaped)


def yaml(value: str | float) -> Written:
    r"""Write a text or a number as YAML, 1.1 and 1.2 alike.

    Example:
        >>> print(yaml('a: "b"\n- c'), yaml(1e-07), yaml(3), yaml("\u200b é"))
        "a: \"b\" - c" 1.0e-07 3 "\U0000200b é"
    """
    if not isinstance(value, str):
        number = repr(value)
        return Written(number.replace("e", ".0e") if "e" in number and "." not in number else number)
    quoted = json.dumps(" ".join(plain(value).split()), ensure_ascii=False)
    return Written("".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in quoted))
