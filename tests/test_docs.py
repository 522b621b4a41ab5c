"""Every example and chapter runs in its short form, and every block of README and docs runs."""

import ast
import json
import math
import re
import runpy
import sys
import warnings

import pytest
from matplotlib import pyplot as plt

import pyro_vae
from pyro_vae.programs.check_probes import KINDS
from tests.helpers.environment import ROOT
from tests.helpers.pictures import without_rendering
from tests.helpers.pilots import short_pilots

DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHAPTERS = sorted((DOCS / "gallery").glob("*.py"))
MADE = ("_build", "chapters")  # by the build of the site
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if p.relative_to(DOCS).parts[0] not in MADE]
WORK = r"\b(epochs|steps|draws|num_draws|num_temperatures|POINTS)=(\d+)"


def name_of(path):
    return path.relative_to(DOCS).with_suffix("").as_posix()


DRAWN = {"bayesian", "elbo", "objectives", "sequence", "swap_parts", "tabular"}  # examples with a figure of their own


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Pilots of annealing are short, and pictures of the package's plots are not rendered: their own tests render them."""
    short_pilots(monkeypatch)
    if getattr(getattr(request.node, "callspec", None), "id", "") not in DRAWN:
        without_rendering(monkeypatch)


def shortened(script):
    """A chapter, or the blocks of a page, with less work: no more than two epochs, eight draws, four steps …"""
    most = {"epochs": 2, "num_draws": 8, "draws": 8}
    script = re.sub(WORK, lambda m: f"{m[1]}={min(int(m[2]), most.get(m[1], 4))}", script)
    script = re.sub(r"(num_temperatures=\d+)(?![^()]*step_size)", r"\1, step_size=0.1", script)  # so no pilot
    return script.replace("POINTS = 7.0, 241", "POINTS = 7.0, 121").replace(
        "samples=(1, 10, 100, 1000)", "samples=(1, 30)"
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name, "--quick"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_runs_in_a_short_form(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened(path.read_text()), path.name, "exec"), {"__name__": "chapter"})
    plt.close("all")
    assert capsys.readouterr().out.strip()


def test_the_examples_are_those_their_page_lists():
    listed = set(re.findall(r"\(\.\./examples/(\w+)\.py\)", (DOCS / "examples.md").read_text()))
    assert {p.stem for p in EXAMPLES} == listed


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_in_order(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace, page = {}, "".join(re.findall(r"```python\n.*?```", path.read_text(), re.S))
    page = page if "assert " in page else shortened(page)  # what is asserted is of what the page trains
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, path.name, "exec"), namespace)


@pytest.mark.parametrize("package", ["mlflow", "wandb", "trackio", "optuna"])
def test_a_recipe_runs_where_its_package_is_installed(package, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads as it is imported
    pytest.importorskip(package, reason=f"a recipe with {package}, which no extra brings: pip install {package}")
    page, namespace = (DOCS / "how_to" / "tracking.md").read_text(), {}
    (recipe,) = re.findall(rf"```py\n(import {package}\n.*?)```", page, re.S)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        for block in [*re.findall(r"```python\n(.*?)```", page, re.S), recipe]:
            exec(compile(block, package, "exec"), namespace)
    if package == "mlflow":
        assert namespace["logged"]["status"][0] == "FINISHED"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_pages_links_and_pictures_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for name in re.findall(r"\]\(([\w/.]+)", text):
        source = re.sub(r"chapters/(\w+)\.rst", r"gallery/\1.py", name)  # the build makes the page of the script
        assert (path.parent / source).exists(), name


def test_every_page_is_in_a_table_of_contents():
    """As Sphinx would say; a chapter's page is made of its script."""
    listed = {"index"}
    for path in PAGES:
        for toc in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(), re.S):
            names = [line for line in toc.splitlines() if line and not line.startswith(":")]
            listed |= {(path.parent.relative_to(DOCS) / name).as_posix() for name in names}
    assert listed == {name_of(p) for p in PAGES} | {f"chapters/{p.stem}" for p in CHAPTERS}


def test_the_api_pages_list_what_is_public():
    text = "".join(path.read_text() for path in sorted((DOCS / "api").glob("*.md")))
    for module in (pyro_vae, pyro_vae.priors, pyro_vae.likelihoods, pyro_vae.posteriors):
        listed = " ".join(re.findall(rf"```\{{public\}} {re.escape(module.__name__)}\n(.*?)```", text, re.S)).split()
        elsewhere = {"priors", "likelihoods", "posteriors", "errors", "PRIORS", "FAMILIES", "POSTERIORS"}
        elsewhere |= set() if module is pyro_vae else set(pyro_vae.__all__)
        assert sorted(listed) == sorted(set(module.__all__) - elsewhere), module.__name__


def test_what_can_go_wrong_has_every_kind_of_finding():
    """Read off the calls of `Finding` and `finding_of` in the source."""
    kinds = set()
    for path in (ROOT / "pyro_vae" / "programs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "finding_of") and node.args:
                kinds |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    kinds |= {kind for _, kind in KINDS}
    assert len(kinds) > 20
    page = (DOCS / "what_can_go_wrong.md").read_text()
    assert [kind for kind in sorted(kinds) if not re.search(rf"^\| [^|]*`{kind}`", page, re.M)] == []


def test_a_built_sites_links_are_checked(tmp_path):
    problems = runpy.run_path(str(DOCS / "links.py"))["problems"]
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#there">b</a><a href="https://x.y">x</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#top">a</a></p>')
    assert problems(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<a href="a.html#gone">a</a><a href="c.html">c</a><script src="https://x.y/m.js"></script>'
    )
    assert [line.rpartition(": ")[2] for line in problems(tmp_path)] == [
        "no such anchor",
        "loads https://x.y/m.js from a network",
        "no such anchor",
        "no such file",
    ]


def test_docstrings_become_pages_without_markup_of_their_own():
    to_rst = runpy.run_path(str(DOCS / "docstrings.py"))["to_rst"]
    given = """log p(x | z) of *context, and *emphasis* stays.

    a formula | as it is

    | name | is |
    |---|---|
    | ``a|b`` | x |

Args:
    x, context, validation,
        seed: as they are."""
    lines = given.splitlines()
    to_rst(None, "function", "f", None, None, lines)
    made = "\n".join(lines)
    assert r"log p(x \| z) of *context, and *emphasis* stays." in made  # two stars more: its own markup
    assert "::\n\n    a formula | as it is" in made
    assert "    x, context, validation, seed: as they are." in made
    alone = ["of x and *context"]
    to_rst(None, "function", "f", None, None, alone)
    assert alone == [r"of x and \*context"]


def test_the_index_has_each_model_page():
    listed = set(re.findall(r"\((\w+)\.md\)", (ROOT / "docs" / "models" / "README.md").read_text()))
    assert {p.stem for p in (ROOT / "docs" / "models").glob("*.md")} - {"README"} == listed


def test_readme_blocks_run_in_order(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 3
    namespace = {}
    for block in blocks:
        exec(compile(shortened(block), "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "log p(x)" in printed and "✓ nothing found" in printed


def test_the_readme_is_two_screens_and_begins_with_its_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 115
    first, second = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert "pyro-vae demo" in first and "pytest" in second


def test_the_quickstart_is_the_readmes_script():
    def core(text):
        return re.sub(r"\s+|#.*", "", text[text.index("vae = VAE(") : text.index("binomial(16)")])

    script = (ROOT / "examples" / "quickstart.py").read_text()
    assert core(script) == core((ROOT / "README.md").read_text())


def test_readme_files_exist():
    for name in re.findall(r"\]\(([\w/.]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).exists(), name


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60


def test_the_results_table_is_that_of_the_runs():
    """No figure in results/README.md that the run's own evidence.json does not hold."""
    module = runpy.run_path(str(ROOT / "results" / "table.py"))
    assert module["table"]() in (ROOT / "results" / "README.md").read_text()


def test_the_readmes_first_number_is_the_demos_and_holds_by_two_methods():
    """Importance sampling and annealing of the same rows agree within their errors, and neither is loose."""
    from pyro_vae.cli.commands import DEMO
    from pyro_vae.common.flagged import is_loose

    folder, readme = ROOT / "results" / "demo", (ROOT / "README.md").read_text().replace("−", "-").replace("\n", " ")
    sampled, annealed = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("evidence", "evidence-test-annealing")
    )
    for found in (sampled, annealed):
        assert not is_loose(found) and f"{found['log_px']:.3f} ± {found['log_px_mc_se']:.3f}" in readme
    error = math.hypot(sampled["log_px_mc_se"], annealed["log_px_mc_se"])
    assert abs(sampled["log_px"] - annealed["log_px"]) <= 2 * error
    config = json.loads((folder / "config.json").read_text())["config"]
    default = DEMO.to_dict() | {"model": "vae"}  # of what had no name when it was made
    asked = {
        key: value
        for key, value in DEMO.to_dict().items()
        if value not in ("auto", None) and not key.endswith("_options")
    }
    assert {key: config.get(key, default[key]) for key in asked} == asked, (
        "made with another demo: pyro-vae demo --run results/demo --overwrite"
    )
    assert (folder / "figures" / "bracket.png").is_file()


def test_the_tables_of_parts_are_those_of_the_registry():
    """As `pyro-vae parts --markdown` prints it."""
    from pyro_vae.cli.tables import markdown_table
    from pyro_vae.runs.registry import TABLES

    page = (DOCS / "parts.md").read_text()
    assert all(markdown_table(role).strip() in page for role in TABLES)
