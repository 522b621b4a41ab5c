"""Check a built site: every link among its own pages leads to a page and an anchor, and nothing is asked of a network.

`python docs/links.py docs/_build/html`
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag


class Page(HTMLParser):
    """A page's anchors, its links, and what a browser loads to show it."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag in ("a", "area") and given.get("href"):
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe", "source", "video") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def problems(site: Path) -> list[str]:
    """What is wrong with a site's links, a line each."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        for link in page.loaded:
            if link.startswith(("http:", "https:", "//")):
                found.append(f"{here}: loads {link} from a network")
        for link in (*page.links, *page.loaded):
            if ":" in link.partition("/")[0] or link.startswith("//"):
                continue  # another site, or data:
            target, anchor = urldefrag(link)
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            if not file.exists():
                found.append(f"{here}: {link}: no such file")
            elif file in pages and unquote(anchor) not in pages[file].anchors:
                found.append(f"{here}: {link}: no such anchor")
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(bool(wrong))
