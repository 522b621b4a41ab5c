"""What commands print for other programs, and with --quiet: errors alone."""

import json
import shutil

import pytest

from pyro_vae.cli.commands import app
from pyro_vae.cli.main import main


def test_an_evaluation_is_printed_as_it_is_written(run, capsys):
    assert main(["evaluate", str(run), "--rows", "10", "--num-samples", "30", "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = [json.loads(path.read_text()) for path in run.glob("evidence*.json")]
    (ten,) = (evidence for evidence in written if evidence["rows"] == 10)
    assert printed["log_px"] == ten["log_px"] and printed["rows"] == 10


def test_a_comparison_is_printed_and_its_files_are_written(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    files = ["--csv", str(tmp_path / "c.csv")]
    assert main(["compare", str(run), str(other), *files, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in printed["models"]] == ["run", "other"] and printed["models"][1]["difference"] == 0
    assert printed["rows"] == 180 and (tmp_path / "c.csv").is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    script = app.generate_completion(shell=shell)
    assert all(word in script for word in ("evaluate", "report", "new", "latent-dim"))


def test_a_quiet_command_prints_errors_alone(run, capsys):
    assert main(["evaluate", str(run), "--rows", "5", "--num-samples", "10", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["--quiet", "sample", str(run / "nothing")]) == 4
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and len(said.err.splitlines()) == 1


def test_what_json_asks_for_is_printed(run, capsys):
    assert main(["evaluate", str(run), "--rows", "5", "--num-samples", "10", "--quiet", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == 5 and said.err == ""


def test_usage_errors_are_told(run, capsys):
    assert main(["evaluate", str(run), "--quiet", "--num-samplse", "5"]) == 2
    assert "--num-samples" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--quiet", "--num-samples", "many"]) == 2
    assert "--num-samples" in capsys.readouterr().err
    assert main(["new", "settings.json", "--quiet"]) == 2 and "no --quiet" in capsys.readouterr().err
