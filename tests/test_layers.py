"""No import of the package runs up or in a circle: who imports whom, read off the import statements."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pyro_vae"

GROUND = {"errors", "common"}
PARTS = {"distributions", "likelihoods", "priors", "posteriors"}
ALLOWED = {  # folder or top module -> those it may import from; its own folder is always allowed
    "errors": set(),
    "common": {"errors"},
    "data": GROUND,
    "distributions": GROUND,
    "likelihoods": GROUND | {"distributions"},
    "priors": GROUND | {"distributions"},
    "posteriors": GROUND | {"distributions", "likelihoods"},  # an elementwise family serves as q(z | x), too
    "programs": GROUND | {"data"},
    "models": GROUND | PARTS | {"data", "programs"},
    "objectives": GROUND | {"programs"},
    "evidence": GROUND | {"data", "programs", "plots"},  # results plot themselves
    "diagnostics": GROUND | {"data", "programs", "objectives", "evidence", "plots"},
    "training": GROUND | {"data", "programs", "objectives", "diagnostics", "plots"},  # a log line counts active units
    "ensembles": GROUND | {"data", "programs", "objectives", "evidence", "training"},
    "plots": GROUND,
    "estimators": GROUND | PARTS | {"data", "programs", "models", "evidence", "training"},
    "runs": None,  # everything below the command line
    "cli": None,
    "__init__": None,
    "__main__": None,
}
TOP = {"cli", "__init__", "__main__"}  # imported by nothing below them


def modules() -> dict[str, str]:
    """Dotted name to source of every module of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("pyro_vae", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


@cache  # the package is read once for both rules
def imports(name: str, source: str) -> set[str]:
    """Modules or names of ours that a module imports, dotted, wherever in the file the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {i for i in found if i == "pyro_vae" or i.startswith("pyro_vae.")}


def column(dotted: str) -> str:
    """programs of pyro_vae.programs.log_weights.log_weights; __init__ of pyro_vae itself and of the names that it exports."""
    _, *rest = dotted.split(".")
    return rest[0] if rest and rest[0] in ALLOWED else "__init__"


def forbidden(sources: dict[str, str]) -> list[str]:
    """Imports that cross columns or climb, as "who -> whom"."""
    found = []
    for name, source in sorted(sources.items()):
        mine = column(name)
        allowed = ALLOWED[mine]
        allowed = set(ALLOWED) - TOP if allowed is None else allowed
        crossing = {i for i in imports(name, source) if mine not in TOP and column(i) not in allowed | {mine}}
        found += [f"{name} -> {i}" for i in sorted(crossing)]
    return found


def cycle(sources: dict[str, str]) -> list[str]:
    """A circle of imports, or nothing. Importing a name from a package runs its __init__, so that counts, too."""

    def targets(name: str) -> set[str]:
        hit = set()
        for i in imports(name, sources[name]):
            for candidate in (i, f"{i}.__init__", i.rpartition(".")[0], f"{i.rpartition('.')[0]}.__init__"):
                if candidate in sources:
                    hit.add(candidate)
                    break
        return hit - {name}

    graph = {name: targets(name) for name in sources}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if circle := visit(target, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(graph) if (circle := visit(name, []))), [])


def test_every_module_has_its_column():
    names = {name.split(".")[1] for name in modules()}
    assert names <= set(ALLOWED), f"give {sorted(names - set(ALLOWED))} a place in ALLOWED"


def test_columns_stay_apart_and_nothing_imports_upwards():
    assert forbidden(modules()) == []


def test_no_import_runs_in_a_circle():
    assert cycle(modules()) == []


@pytest.mark.parametrize(
    ("name", "source", "whom"),
    [
        ("pyro_vae.priors.flow", "from pyro_vae.models.vae import VAE", "pyro_vae.models.vae.VAE"),
        ("pyro_vae.priors.flow", "from ..programs import sites", "pyro_vae.programs.sites"),
        ("pyro_vae.distributions.sphere", "import pyro_vae.priors.simple", "pyro_vae.priors.simple"),
        (
            "pyro_vae.objectives.bounds",
            "def f():\n    from pyro_vae.training.fit import fit",
            "pyro_vae.training.fit.fit",
        ),
        ("pyro_vae.programs.sites", "from pyro_vae.objectives import bounds", "pyro_vae.objectives.bounds"),
        ("pyro_vae.evidence.x", "from pyro_vae.training import step", "pyro_vae.training.step"),
        ("pyro_vae.evidence.x", "from pyro_vae.diagnostics import sbc", "pyro_vae.diagnostics.sbc"),
        ("pyro_vae.training.fit", "from pyro_vae import VAE", "pyro_vae.VAE"),
        ("pyro_vae.plots.page", "from ..evidence.compare import compare", "pyro_vae.evidence.compare.compare"),
        ("pyro_vae.errors", "from .common.random import seeded", "pyro_vae.common.random.seeded"),
        ("pyro_vae.models.usage", "import pyro_vae", "pyro_vae"),
        ("pyro_vae.runs.load", "from ..cli.tables import report", "pyro_vae.cli.tables.report"),
        ("pyro_vae.data.__init__", "from ..cli.main import main", "pyro_vae.cli.main.main"),
    ],
)
def test_a_planted_import_is_found(name, source, whom):
    assert forbidden({name: source}) == [f"{name} -> {whom}"]


def test_what_is_allowed_passes():
    sources = {
        "pyro_vae.programs.log_weights": "import torch\nfrom pyro_vae.errors import ProgramError\nfrom .plates import Plates",
        "pyro_vae.training.fit": "from pyro_vae.programs.sites import Program\nfrom pyro_vae.data.arrays import as_rows",
        "pyro_vae.cli.main": "from pyro_vae.runs.train_run import train_run\nfrom pyro_vae import fit",
    }
    assert forbidden(sources) == []


def test_a_planted_circle_is_found():
    sources = {
        "pyro_vae.programs.a": "from .b import x",
        "pyro_vae.programs.b": "from pyro_vae.programs import c",
        "pyro_vae.programs.c": "def later():\n    import pyro_vae.programs.a",
        "pyro_vae.programs.d": "from .a import y",
    }
    circle = ["pyro_vae.programs.a", "pyro_vae.programs.b", "pyro_vae.programs.c", "pyro_vae.programs.a"]
    assert cycle(sources) == circle
    assert cycle({name: s for name, s in sources.items() if not name.endswith("c")}) == []
