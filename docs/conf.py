"""The documentation site: `make -C docs`, without a network once the extra `docs` is installed."""

import hashlib
import importlib
import inspect
import os
import re
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from docstrings import to_rst  # noqa: E402

project = "pyro_vae"
author = copyright = "The pyro_vae developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "**/sg_execution_times.rst", "sg_execution_times.rst"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "code"
suppress_warnings = ["ref.python"]  # names of attributes that several classes have

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autosummary_generate = False  # the entries stand below their table, a page a group
autodoc_typehints = "none"  # shapes and units are in words
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
ROUTED = (
    "fit",
    "transform",
    "inverse_transform",
    "score",
    "score_samples",
    "sample",
)  # methods that scikit-learn gives a
autodoc_default_options = {  # set_…_request each, of its own documentation's words
    "members": True,
    "show-inheritance": False,
    "exclude-members": ", ".join(f"set_{name}_request" for name in ROUTED),
}
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["chapters"],
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ["pictures.scrape"],
    "capture_repr": (),
    "write_computation_times": False,
    "show_memory": False,
    "download_all_examples": False,
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "min_reported_time": 10_000,
}

html_theme = "furo"
html_title = "pyro_vae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
templates_path = []

# --- mathematics: one file of MathJax, from an installed package, at build time ---

MATHJAX = "tex-svg.js"  # of MathJax 3.2.2, whole: fonts are in it, so that nothing is asked of a network
DIGEST = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"  # of the file in npm's mathjax@3.2.2, too
mathjax_path = MATHJAX
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}


def copy_mathjax(app: Sphinx) -> None:
    """Copy MathJax beside the pages' other static files, if it is the file that its makers published."""
    if app.builder.format != "html":
        return
    package = distribution("sphinx-mathjax-offline")
    [source] = [f for f in package.files or [] if f.name == MATHJAX]
    found = Path(str(package.locate_file(source)))
    if hashlib.sha256(found.read_bytes()).hexdigest() != DIGEST:
        raise ExtensionError(f"{found} is not MathJax 3.2.2 as published: pip install sphinx-mathjax-offline==0.0.2")
    target = Path(app.outdir) / "_static"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found, target / MATHJAX)


# --- pages that are files elsewhere, and links that leave this folder ---

PAGES = {
    "results/index": "results/README.md",
    "results/published": "results/published.md",
    "results/coverage": "results/coverage.md",
    "results/multimodal": "results/multimodal/README.md",
    "results/semi_supervised": "results/semi_supervised/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "architecture": "ARCHITECTURE.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the text of a file elsewhere in the place of a page's, and lead links to where the site has what they name."""
    folder = HERE / Path(docname).parent
    text, toc = source[0], ""
    if docname in PAGES:
        file = ROOT / PAGES[docname]
        folder, text = file.parent, file.read_text(encoding="utf-8")
        toc = "\n".join(re.findall(r"```\{toctree\}.*?```", source[0], re.S))
    text = LINK.sub(lambda found: lead(found, folder, HERE / Path(docname).parent), text)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", NAMES.sub(document, text), flags=re.S)
    parts[::2] = [ADDRESS.sub(r"<\1>", part) for part in parts[::2]]
    source[0] = f"{''.join(parts)}\n{toc}"


ADDRESS = re.compile(r"(?<![(<\"'])(https?://[^\s|;,<>)]+)")
NAMES = re.compile(r"```\{public\} (\S+)\n(.*?)```", re.S)


def document(found: re.Match[str]) -> str:
    """Write the table and the entries of some public names of a module."""
    module, names = importlib.import_module(found[1]), found[2].split()
    lines = [
        f".. currentmodule:: {found[1]}",
        "",
        ".. autosummary::",
        "   :nosignatures:",
        "",
        *(f"   {n}" for n in names),
        "",
    ]
    for name in names:
        thing = getattr(module, name)
        kind = "class" if isinstance(thing, type) else "function" if inspect.isroutine(thing) else "data"
        lines += [f".. auto{kind}:: {name}", ""]
    return "```{eval-rst}\n" + "\n".join(lines) + "```"


def lead(found: re.Match[str], folder: Path, here: Path) -> str:
    """Write a link of a file in `folder` as one of a page in `here`: to a page, or to a file that is downloaded."""
    picture, label, path, anchor = found.groups(default="")
    target = Path(os.path.normpath(folder / path))
    page = next((HERE / f"{name}.md" for name, file in PAGES.items() if ROOT / file == target), target)
    way = os.path.relpath(page, here)
    if picture or page.is_relative_to(HERE):
        return f"{picture}[{label}]({way}{anchor})"
    return f"{{download}}`{label} <{way}>`"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", copy_mathjax)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
