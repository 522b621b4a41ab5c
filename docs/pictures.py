"""Pictures of the chapters: figures that pyplot knows, and those that `pyro_vae.plots` returns, which it does not."""

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper


def scrape(block: tuple[Any, ...], block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save what a cell has drawn: pyplot's figures, and a Figure of its own that it calls `picture`."""
    made = matplotlib_scraper(block, block_vars, gallery_conf)
    picture = block_vars["example_globals"].pop("picture", None)
    if not isinstance(picture, Figure):
        return made
    path = next(block_vars["image_path_iterator"])
    picture.savefig(path, dpi=110)
    return made + figure_rst([path], gallery_conf["src_dir"], "Figure")
