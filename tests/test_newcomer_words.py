"""A newcomer who types the field's word finds the file that answers: 24 words, by a search over file names.

Each word stands beside what is typed into a file finder, and the file that should come up. What is typed is the word itself, or
the next one that comes to mind: no path holds the letters of "NaN loss", "seeds" or "AIS temperatures", and their answers are
sought as divergence, random and annealing schedule. A search finds the paths that hold every part of what was typed; where no
path does, the files whose first line does (the module's docstring).
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_vae"

WORDS = {
    "likelihood family": ("likelihood", "likelihoods/registry.py"),
    "prior p(z)": ("prior", "priors/simple.py"),
    "posterior q(z | x)": ("posterior", "posteriors/families.py"),
    "missing data": ("missing", "models/missing.py"),
    "MNIST": ("mnist", "data/mnist.py"),
    "bound, IWAE": ("bound", "objectives/bounds.py"),
    "gradient estimator": ("gradient estimator", "objectives/gradient_estimators.py"),
    "β": ("beta", "objectives/beta.py"),
    "Adam": ("adam", "training/fused_adam.py"),
    "learning-rate schedule": ("schedule", "training/schedules.py"),
    "shuffling": ("shuffle", "training/shuffle.py"),
    "NaN loss": ("divergence", "training/divergence.py"),
    "early stopping": ("early stopping", "training/trainer.py"),
    "CUDA graph": ("cuda graph", "training/engines/cuda_graph.py"),
    "log-likelihood": ("log likelihood", "evidence/log_likelihood.py"),
    "importance weights": ("importance", "evidence/importance/estimator.py"),
    "Pareto k": ("pareto", "evidence/importance/pareto.py"),
    "AIS temperatures": ("annealing schedule", "evidence/annealing/schedule.py"),
    "quadrature": ("quadrature", "evidence/exact/quadrature.py"),
    "plots": ("plots", "plots/base.py"),
    "seeds": ("random", "common/random.py"),
    "config": ("config", "runs/config.py"),
    "checkpoint": ("checkpoint", "runs/checkpoint.py"),
    "command line": ("command", "cli/commands.py"),
}
PRIVATE = ("loop", "watch", "rescue", "keeping", "opening", "scoring", "replaying", "dials", "whole", "feed", "reading")
FEW = 12  # files that a newcomer looks at before giving up


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def by_name(typed: str) -> list[str]:
    """Files of the package whose path holds every part of what was typed."""
    paths = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return [path for path in paths if all(part in path.lower() for part in typed.lower().split())]


def by_first_line(typed: str) -> list[str]:
    """Files of the package whose first line holds every part of what was typed."""
    files = {path.relative_to(PACKAGE).as_posix(): first_line(path).lower() for path in PACKAGE.rglob("*.py")}
    return [path for path, line in files.items() if all(part in line for part in typed.lower().split())]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_finds_its_file(word):
    typed, answer = WORDS[word]
    assert (PACKAGE / answer).is_file(), f"{answer} answers {word!r}, and is not there"
    hits = by_name(typed) or by_first_line(typed)
    assert answer in hits, f"{typed!r} finds {hits}"
    assert len(hits) <= FEW, f"{typed!r} finds {len(hits)} files: {hits}"


def test_all_but_one_are_found_by_name():
    missed = [word for word, (typed, answer) in WORDS.items() if answer not in by_name(typed)]
    assert len(WORDS) == 24 and len(missed) <= 1, f"not found by name: {missed}"


@pytest.mark.parametrize("word", PRIVATE)
def test_no_file_has_a_private_name(word):
    assert not (stems := [path for path in by_name(word) if Path(path).stem == word]), stems


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_file_that_a_document_names_is_there(document):
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / document).read_text(encoding="utf-8")))
    assert named
    missing = [
        name for name in sorted(named) if not [*PACKAGE.rglob(name), *ROOT.glob(name), *ROOT.glob(f"tests/**/{name}")]
    ]
    assert missing == []
