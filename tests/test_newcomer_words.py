"""A newcomer who types the field's word finds the file that answers: 24 words, as they are, none translated.

The search is the simplest one: all words typed, in lower case, stand in a file's path and the first line of its docstring,
taken together as one text.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_vae"

ANSWERS = {
    "likelihood family": "likelihoods/registry.py",
    "MNIST": "data/mnist.py",
    "CUDA graph": "training/engines/cuda_graph.py",
    "β": "objectives/beta.py",
    "AIS temperatures": "evidence/annealing/schedule.py",
    "NaN loss": "training/divergence.py",
    "shuffling": "training/shuffle.py",
    "plots": "plots/figures.py",
    "Adam": "training/fused_adam.py",
    "prior": "priors/simple.py",
    "encoder": "models/networks.py",
    "missing data": "models/missing.py",
    "IWAE": "objectives/bounds.py",
    "gradient estimator": "objectives/gradient_estimators.py",
    "learning rate": "training/schedules.py",
    "training loop": "training/trainer.py",
    "early stopping": "training/trainer.py",
    "posterior collapse": "diagnostics/latent_usage.py",
    "importance sampling": "evidence/importance/estimator.py",
    "quadrature": "evidence/exact/quadrature.py",
    "seeds": "common/random.py",
    "config": "runs/config.py",
    "checkpoint": "runs/checkpoint.py",
    "command line": "cli/main.py",
}
PRIVATE = ("loop", "watch", "rescue", "keeping", "opening", "scoring", "replaying", "dials", "whole", "feed", "reading")
FEW = 12  # files that a newcomer looks at before giving up


def shown(path: Path) -> str:
    """A file as a search sees it: its path, and the first line of its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{path.relative_to(PACKAGE).as_posix()} {docstring.partition(chr(10))[0]}".lower()


SHOWN = {path.relative_to(PACKAGE).as_posix(): shown(path) for path in sorted(PACKAGE.rglob("*.py"))}


def search(typed: str) -> list[str]:
    """Files in which every word that was typed is shown."""
    return [path for path, text in SHOWN.items() if all(word in text for word in typed.lower().split())]


def test_newcomers_words_find_their_files():
    missing = [answer for answer in ANSWERS.values() if answer not in SHOWN]
    assert missing == []
    hits = {word: search(word) for word in ANSWERS}
    missed = {word: hits[word] for word, answer in ANSWERS.items() if answer not in hits[word] or len(hits[word]) > FEW}
    assert len(ANSWERS) == 24 and len(missed) <= 1, missed


def test_a_word_that_no_file_shows_finds_nothing():
    assert search("NaN shuffling") == [] and search("zzz") == []


@pytest.mark.parametrize("word", PRIVATE)
def test_no_file_has_a_private_name(word):
    assert [path for path in SHOWN if Path(path).stem == word] == []


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_path_that_a_document_names_is_there(document):
    text = (ROOT / document).read_text(encoding="utf-8").replace("`figures/`", "")  # of a run folder
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text)) | set(re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text))
    assert named
    roots = (PACKAGE, ROOT / "tests", ROOT)
    missing = [
        name for name in sorted(named) if not any([*PACKAGE.rglob(name)] or (root / name).exists() for root in roots)
    ]
    assert missing == []
