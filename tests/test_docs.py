"""Every example runs in its short form, and every README block runs."""

import json
import math
import re
import runpy
import sys

import pytest

from tests.helpers.environment import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name, "--quick"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_examples_are_those_the_readme_lists():
    listed = set(re.findall(r"\(examples/(\w+)\.py\)", (ROOT / "README.md").read_text()))
    assert {p.stem for p in EXAMPLES} == listed


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_the_blocks_of_a_page_run_in_order(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        exec(compile(block, path.name, "exec"), namespace)
    assert namespace or path.stem == "README"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_a_pages_links_lead_somewhere(path):
    for name in re.findall(r"\]\(([\w/.]+)", path.read_text()):
        assert (path.parent / name).exists(), name


def test_the_index_has_each_model_page():
    listed = set(re.findall(r"\((\w+)\.md\)", (ROOT / "docs" / "models" / "README.md").read_text()))
    assert {p.stem for p in (ROOT / "docs" / "models").glob("*.md")} - {"README"} == listed


def test_readme_blocks_run_in_order(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert "log p(x)" in capsys.readouterr().out
    assert namespace["path"].shape == (7, 1, 64)


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


def test_the_readmes_table_of_parts_is_that_of_the_registry():
    """As `pyro-vae parts --markdown` prints it."""
    from pyro_vae.cli.tables import markdown_table
    from pyro_vae.runs.registry import TABLES

    readme = (ROOT / "README.md").read_text()
    assert all(markdown_table(role).strip() in readme for role in TABLES)
