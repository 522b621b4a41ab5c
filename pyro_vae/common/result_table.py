"""Results as tables: a page of HTML in a notebook, a data frame, LaTeX; from one headline and one set of columns each."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_vae.errors import UsageError

from .plain_text import plain

LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"≥": r"$\geq$", "≈": r"$\approx$", "×": r"$\times$", "‖": r"$\|$"}
)


class ResultTable:
    """Base of results that are shown as a table: they say `headline` and `columns`, and the forms are made of these."""

    def headline(self) -> list[list[str]]:
        """Return what is shown at a glance, as text: a line of headings, then the others, as many cells each."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        """Return all of it: names to columns of one length, for a data frame."""
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` of all of it.

        Raises:
            UsageError: pandas is not installed.
        """
        return library("pandas").DataFrame(values(self.columns()))

    def to_polars(self) -> Any:
        """Return a ``polars.DataFrame`` of all of it.

        Raises:
            UsageError: polars is not installed.
        """
        return library("polars").DataFrame(values(self.columns()), strict=False)

    def to_latex(self) -> str:
        """Format the headline as a plain tabular, which needs no package."""
        return latex_table(self.headline())

    def _repr_html_(self) -> str:
        return html_table(self.headline(), type(self).__name__)


def library(name: str) -> Any:
    """Import an optional library.

    Raises:
        UsageError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"to_{name}() takes {name}, which is not installed: pip install {name}. Without it, columns() gives a dict"
        ) from error


def values(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns as arrays and lists, whatever tensors they were."""
    return {name: column.cpu().numpy() if hasattr(column, "cpu") else column for name, column in columns.items()}


def latex_table(cells: Sequence[Sequence[str]]) -> str:
    r"""Format lines of text as a plain tabular, the first cell of each to the left; signs of TeX are escaped.

    Example:
        >>> print(latex_table([["", "log p(x)"], ["a_1", "-1.5 ± 0.1"]]))
        \begin{tabular}{lr}
        \hline
         & log p(x) \\
        \hline
        a\_1 & $-$1.5 $\pm$ 0.1 \\
        \hline
        \end{tabular}
        <BLANKLINE>
    """
    head, *lines = ([plain(cell).translate(LATEX) for cell in line] for line in cells)
    body = [[name, *(cell.replace("−", "-").replace("-", "$-$") for cell in rest)] for name, *rest in lines]
    rows = [" & ".join(line) + r" \\" for line in (head, *body)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return "\n".join([begin, r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", r"\end{tabular}", ""])


def html_table(cells: Sequence[Sequence[str]], title: str) -> str:
    """Format lines of text as a table for a notebook, in its own colours; names are escaped, and their controls written out.

    Example:
        >>> print(html_table([["", "n"], ["<b>", "1"]], "Example"))
        <table><caption>Example</caption>
        <thead><tr><th></th><th>n</th></tr></thead>
        <tbody><tr><th>&lt;b&gt;</th><td>1</td></tr></tbody></table>
    """
    head, *lines = ([html.escape(plain(cell)) for cell in line] for line in cells)
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for name, *rest in lines)
    caption = html.escape(plain(title))
    return f"<table><caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>"
