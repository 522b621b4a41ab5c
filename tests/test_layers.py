"""The columns of the package stay apart: who imports whom, read off the import statements."""

import ast

import pytest

from tests.helpers.environment import SOURCE

GROUND = {"common", "digests", "errors", "seeding", "progress"}
ALLOWED = {
    "errors": set(),
    "common": {"digests", "errors"},
    "seeding": {"errors"},
    "progress": set(),
    "digests": set(),
    "parts": GROUND,
    "models": GROUND,
    "infer": GROUND,
    "data": GROUND,
    "report": GROUND,
    "programs": GROUND | {"infer"},
    "evaluate": GROUND | {"infer", "data", "programs", "evidence"},
    "evidence": GROUND | {"infer", "programs"},
    "objectives": GROUND | {"infer"},
    "train": GROUND | {"infer", "data", "objectives"},
    "runs": GROUND | {"parts", "models", "infer", "objectives"},
    "use": GROUND | {"infer", "data"},
    "listing": GROUND | {"runs", "evaluate"},
    "pictures": GROUND | {"report", "use", "data", "models", "train"},
    "opening": GROUND | {"data", "infer", "models", "runs"},
    "scoring": GROUND | {"data", "evaluate", "models", "opening", "particles", "pictures", "runs"},
    "comparing": GROUND | {"runs", "evaluate", "infer", "report", "data"},
    "keeping": GROUND | {"runs", "train"},
    "particles": GROUND | {"runs", "evaluate"},
    "workflows": None,  # everything
    "resuming": None,
    "replaying": None,
    "selftest": None,
    "commands": None,
    "cli": None,
    "__init__": None,
    "__main__": None,
}


def modules() -> dict[str, str]:
    """Dotted name to source of every module of the package."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = ("pyro_vae", *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


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
    """infer of pyro_vae.infer.weights.log_weights; __init__ of pyro_vae itself and of the names that it exports."""
    _, *rest = dotted.split(".")
    return rest[0] if rest and rest[0] in ALLOWED else "__init__"


def forbidden(sources: dict[str, str]) -> list[str]:
    """Imports that cross columns or climb, as "who -> whom"."""
    found = []
    for name, source in sorted(sources.items()):
        mine = column(name)
        allowed = ALLOWED[mine]
        crossing = {i for i in imports(name, source) if allowed is not None and column(i) not in allowed | {mine}}
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
        ("pyro_vae.parts.flows", "from pyro_vae.models.vae import VAE", "pyro_vae.models.vae.VAE"),
        ("pyro_vae.parts.flows", "from ..infer import weights", "pyro_vae.infer.weights"),
        ("pyro_vae.models.vae", "import pyro_vae.parts.priors", "pyro_vae.parts.priors"),
        ("pyro_vae.infer.bounds", "def f():\n    from pyro_vae.train.fit import fit", "pyro_vae.train.fit.fit"),
        ("pyro_vae.evaluate.x", "from pyro_vae.train import step", "pyro_vae.train.step"),
        ("pyro_vae.train.fit", "from pyro_vae import VAE", "pyro_vae.VAE"),
        ("pyro_vae.report.page", "from ..evaluate.evidence import Evidence", "pyro_vae.evaluate.evidence.Evidence"),
        ("pyro_vae.errors", "from .seeding import seeded", "pyro_vae.seeding.seeded"),
        ("pyro_vae.use", "import pyro_vae", "pyro_vae"),
        ("pyro_vae.data.__init__", "from ..cli import main", "pyro_vae.cli.main"),
    ],
)
def test_a_planted_import_is_found(name, source, whom):
    assert forbidden({name: source}) == [f"{name} -> {whom}"]


def test_what_is_allowed_passes():
    sources = {
        "pyro_vae.infer.weights": "import torch\nfrom pyro_vae.errors import ProgramError\nfrom .bounds import elbo",
        "pyro_vae.train.fit": "from pyro_vae.infer.weights import Program\nfrom pyro_vae.data.rows import as_rows",
        "pyro_vae.cli": "from .workflows import train\nfrom pyro_vae import fit",
    }
    assert forbidden(sources) == []


def test_a_planted_circle_is_found():
    sources = {
        "pyro_vae.infer.a": "from .b import x",
        "pyro_vae.infer.b": "from pyro_vae.infer import c",
        "pyro_vae.infer.c": "def later():\n    import pyro_vae.infer.a",
        "pyro_vae.infer.d": "from .a import y",
    }
    assert cycle(sources) == ["pyro_vae.infer.a", "pyro_vae.infer.b", "pyro_vae.infer.c", "pyro_vae.infer.a"]
    assert cycle({name: s for name, s in sources.items() if not name.endswith("c")}) == []
