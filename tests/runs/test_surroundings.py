"""A run's names, outputs, terminals, clocks, and a system that refuses."""

import errno
import io
import locale
import os
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pyro_vae.cli.main import main
from pyro_vae.errors import RunFolderError, StorageError
from pyro_vae.runs import train_run as train_run_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.load import load_run
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from tests.helpers.children import printed_by
from tests.helpers.environment import SOURCE
from tests.helpers.faults import in_child
from tests.helpers.namespaces import NETWORK, leave, skip_without

pytestmark = pytest.mark.usefixtures("one_thread")


# names, surroundings, outputs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    here = tmp_path_factory.mktemp("faults")
    np.save(here / "x.npy", np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    config = Config(data=str(here / "x.npy"), hidden=(4,), latent_dim=2, epochs=1, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run_module, "draw_figures", lambda *_: None)
        train_run(config, here / "run", num_samples=5, device="cpu")
    return here / "run"


@pytest.mark.parametrize(
    "name", ["with spaces", "two\nlines", "🐑 ü", "<script>alert(1)</script>", "-x", "CON", "[bold]"]
)
def test_any_name_that_the_system_takes_is_a_runs(run, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(train_run_module, "draw_figures", lambda *_: None)
    path = tmp_path / name
    path.mkdir(parents=True)
    config = Config(**(load_run(run).config.__dict__ | {"epochs": 1}))
    train_run(config, path, num_samples=3, device="cpu")
    assert main(["evaluate", str(path), "--num-samples", "3", "--device", "cpu"]) == 0
    assert name in capsys.readouterr().out and load_run(path).evidence["num_samples"] == 3


def test_a_name_that_is_too_long_is_a_storage_error(run, tmp_path):
    with pytest.raises(StorageError, match="cannot create"):
        train_run(load_run(run).config, tmp_path / ("x" * 300), device="cpu")


def test_a_link_in_a_run_is_not_written_through(run, tmp_path):
    """A stranger's folder cannot send what is written to elsewhere."""
    import shutil

    for name in ("figures", "checkpoints", "metrics.jsonl", ".lock"):
        copy = Path(shutil.copytree(run, tmp_path / f"copy of {name}"))
        victim = tmp_path / f"victim of {name}"
        entry = copy / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        victim.mkdir() if "." not in name else victim.write_text("mine")
        entry.symlink_to(victim)
        for work in (evaluate_run, resume_run):
            with pytest.raises(RunFolderError, match=f"{re.escape(name)} is a link"):
                work(copy, device="cpu", num_samples=3)
        assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "mine"


def told(arguments, output, encoding="utf-8"):
    """The command line in a child whose standard output is a file descriptor."""

    def work():
        os.dup2(output, 1)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), encoding=encoding)
        return main(arguments)

    return in_child(work)


def test_output_that_nobody_reads_ends_the_command_quietly():
    """`pyro-vae parts | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    assert told(["parts"], writer) == 0
    os.close(writer)


def test_output_that_is_closed_is_no_crash():
    def work():
        sys.stdout = sys.stderr = None  # what Python makes of `>&- 2>&-`
        code = main(["parts"])
        return code if sys.stdout is None else 9

    assert in_child(work) == 0


def test_a_terminal_that_knows_only_ascii_gets_signs_spelled(run, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        arguments = ["evaluate", str(run), "--num-samples", "3", "--device", "cpu"]
        assert told(arguments, out.fileno(), "ascii") == 0
    said = (tmp_path / "out").read_bytes()
    assert b"log p(x)" in said and (b" >= " in said or b" +/- " in said) and b" ? " not in said


@pytest.mark.parametrize("surroundings", [{"TERM": "dumb"}, {"TERM": ""}, {"COLUMNS": "1"}, {"NO_COLOR": "1"}])
def test_no_terminal_is_needed(surroundings, monkeypatch, capsys):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert main(["parts"]) == 0 and "standard_normal" in capsys.readouterr().out.replace("\n", "")


def test_a_decimal_comma_changes_no_number(run):
    """Numbers that are written and read are Python's, whatever the locale is."""
    wanted = (run / "evidence.csv").read_text()
    before = locale.setlocale(locale.LC_ALL)
    found = None
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "nl_NL.UTF-8"):
        with suppress(locale.Error):
            found = locale.setlocale(locale.LC_ALL, name)
            break
    if found is None:
        pytest.skip("no locale with a decimal comma is installed here")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        evaluate_run(run, num_samples=5, device="cpu")
        assert (run / "evidence.csv").read_text() == wanted
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_no_duration_is_taken_from_a_clock_that_may_jump():
    """Only monotonic clocks are asked; the wall clock says when, and nothing is computed from it."""
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"\btime\.time\(", text), file
        assert text.count("datetime.now(") == (file.name in ("lock.py", "evaluations.py", "page.py")), file


# numbers that are not to be believed


def test_an_unreliable_number_is_written_with_its_flag_and_exits_5_under_strict(run, capsys):
    """Five particles say nothing of their own tail: every row is flagged."""
    arguments = ["evaluate", str(run), "--num-samples", "5", "--seed", "3", "--device", "cpu"]
    assert main(arguments) == 0 and "flagged, not to be believed" in capsys.readouterr().out
    (run / "evidence.csv").unlink()
    assert main([*arguments, "--strict"]) == 5
    assert "rows" in capsys.readouterr().err and load_run(run).evidence["rows_flagged"] == 5
    assert (run / "evidence.csv").exists()


# the system refuses


def test_whatever_the_system_refuses_to_write_exits_6(run, monkeypatch, capsys):
    """A picture, say, for which no other file has a word."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "figures/samples.png")

    monkeypatch.setattr("pyro_vae.plots.figures.save", full)
    assert main(["sample", str(run)]) == 6
    said = capsys.readouterr().err
    assert "figures/samples.png" in said and "Free some space" in said


def evaluate_alone(run):
    """Run in a child."""
    leave(NETWORK)
    with pytest.raises(OSError, match="unreachable"):  # no network, indeed
        socket.create_connection(("127.0.0.1", 9), timeout=5)
    return main(["evaluate", run, "--num-samples", "3", "--device", "cpu"])


def test_without_a_network_everything_runs(run):
    """Opening and scoring a run in a network namespace of its own, which has none."""
    skip_without("-rn")
    printed_by(evaluate_alone, str(run))
