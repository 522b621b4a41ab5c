"""Results in a notebook, a data frame and LaTeX: the same numbers, and names that are shown and not obeyed."""

import dataclasses
import math
import sys

import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, Evidence, Exact, StandardNormal, bernoulli, compare, normal
from pyro_vae.common.result_table import ResultTable, html_table, latex_table
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import UsageError
from pyro_vae.training.training_state import FitResult

NASTY = "<b onclick=x>[red]\x1b[31m\u202e&_"


def evidence(log_px, khat=0.1):
    rows = torch.tensor(log_px, dtype=torch.float64)
    one = torch.ones_like(rows)
    ids = RowIds(source=torch.arange(len(rows)), index=tuple(NASTY + str(i) for i in range(len(rows))))
    return Evidence(
        rows, 0.1 * one, 99 * one, rows - 1, 0.2 * one, num_samples=1000, seed=0, khat=khat * one, max_share=0.01 * one,
        jackknife=rows, samples=1000 * one, row_ids=ids,
    )  # fmt: skip


def fitted():
    line = {"train_elbo": -2.0, "kl_per_unit": [0.1], "evidence": {"log_px": -1.0}, "active_units": None}
    return FitResult([{"epoch": n, "elbo": -3.0 + n, **line} for n in (1, 2)], 2, "all epochs", warnings=[NASTY])


RESULTS = {
    "evidence": lambda: evidence([-1.5, -2.5]),
    "an oracle's": lambda: Exact.without_error(torch.tensor([-1.5, -2.5]).double(), "by hand", "counts", ""),
    "comparison": lambda: compare({NASTY: evidence([-1.5, -2.5]), "b": evidence([-2.0, -2.5])}),
    "training": fitted,
}
EVERY = pytest.mark.parametrize("name", RESULTS)


@EVERY
def test_every_form_is_of_the_same_columns(name):
    result = RESULTS[name]()
    columns = result.columns()
    lengths = {len(column) for column in columns.values()}
    assert isinstance(result, ResultTable) and lengths == {2}
    head, *lines = result.headline()
    assert lines and all(len(line) == len(head) and all(isinstance(cell, str) for cell in line) for line in lines)
    latex, page = result.to_latex(), result._repr_html_()
    assert latex.count(r"\\") >= len(lines) + 1 and "\x1b" not in latex + page and "\u202e" not in latex + page
    assert "<b" not in page and page.count("<tr>") == len(lines) + 1


@EVERY
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_has_every_column_to_the_last_bit(name, library):
    pytest.importorskip(library)
    result = RESULTS[name]()
    frame = getattr(result, f"to_{library}")()
    for column, values in result.columns().items():
        for a, b in zip(list(frame[column]), list(values), strict=True):
            a, b = (v.item() if hasattr(v, "item") else v for v in (a, b))
            unknown = (None, "") if isinstance(a, str) else (None,)
            assert a == b or (b in unknown and (a is None or math.isnan(a))) or (a != a and b != b), column


def test_without_the_library_it_says_what_to_install(monkeypatch):
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=f"pip install {name}"):
            getattr(evidence([-1.0]), f"to_{name}")()


def test_a_loose_number_is_a_bound_without_an_error_in_every_form():
    loose, trusted = evidence([-1.5, -2.5], khat=2.0), evidence([-1.5, -2.5])
    assert "±" not in loose._repr_html_() and "≥ -2.00" in loose._repr_html_() and r"$\geq$ $-$2.00" in loose.to_latex()
    assert "-2.000 ± 0.071" in trusted._repr_html_() and "± data" in trusted._repr_html_()
    assert loose.columns()["flagged"] == [True, True] and trusted.columns()["flagged"] == [False, False]


def test_each_row_is_named_in_the_frame_of_evidence():
    columns = evidence([-1.5, -2.5]).columns()
    assert columns["source_row"] == ["0", "1"] and columns["index"][1] == NASTY + "1" and "khat" in columns


def test_a_model_says_its_densities_and_counts_each_parameter_once():
    shared = torch.nn.Linear(3, 4)
    vae = VAE(
        StandardNormal(2),
        Conditional(MLP(2, 3, hidden=(5,)), bernoulli),
        lambda x: normal(shared(x)),  # a function over a network, which counts
    )
    page = vae._repr_html_()
    assert "bernoulli" in page and "2 → 5 → 3" in page and "a function" in page and "p(x | z)" in page
    total = sum(p.numel() for p in vae.parameters())
    assert f"<th>all</th><td></td><td></td><td>{total:,}</td>" in page and total == 2 * 5 + 5 + 5 * 3 + 3 + 3 * 4 + 4
    assert "<td>16</td>" in page


def test_parameters_that_two_densities_share_are_in_the_sum_once():
    net = MLP(2, 4, hidden=(3,))
    vae = VAE(StandardNormal(2), Conditional(net, normal), Conditional(net, normal))
    own = sum(p.numel() for p in net.parameters())
    assert vae._repr_html_().count(f"<td>{own}</td>") == 3  # each of two, and all


@EVERY
def test_what_has_a_picture_plots_it(name):
    result = RESULTS[name]()
    if not hasattr(result, "plot"):
        assert name == "an oracle's"
        return
    assert result.plot().axes
    if name == "evidence":
        with pytest.raises(UsageError, match="no k̂"):
            dataclasses.replace(result, khat=None).plot()


def test_signs_of_tex_and_html_are_escaped():
    assert r"\textless{}b\textgreater{} \& \_ \$" in latex_table([["<b> & _ $"], ["x"]])
    assert "&lt;i&gt;&amp;" in html_table([["<i>&"], ["x"]], "t") and "&lt;t&gt;" in html_table([[""]], "<t>")
