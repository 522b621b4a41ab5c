"""The documentation site: `make -C docs`, without a network once the extra `docs` is installed."""

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import pyro_vae  # noqa: E402, F401 (found here, and not elsewhere)

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

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["chapters"],
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
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

MATHJAX = "tex-svg.js"  # MathJax 3, whole: fonts are in it, so that nothing is asked of a network
mathjax_path = MATHJAX
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}


def copy_mathjax(app: Sphinx) -> None:
    """Copy MathJax beside the pages' other static files."""
    if app.builder.format != "html":
        return
    package = distribution("sphinx-mathjax-offline")
    [source] = [f for f in package.files or [] if f.name == MATHJAX]
    target = Path(app.outdir) / "_static"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package.locate_file(source), target / MATHJAX)


# --- links that leave this folder: to the pages made of those files, or to the files themselves, as downloads ---

ELSEWHERE = {
    "results/README.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
}


def relink(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead a page's links to files that are pages here to those pages."""
    if not docname.startswith("models/"):
        return
    for path, page in ELSEWHERE.items():
        source[0] = source[0].replace(f"](../../{path}", f"](../{page}")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", copy_mathjax)
    app.connect("source-read", relink)
