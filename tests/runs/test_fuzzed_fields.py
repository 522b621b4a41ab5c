"""Every field of every file of a run, changed to what nobody would write, and sealed: refused by name, or used."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from pyro_vae.cli import array_commands
from pyro_vae.cli.main import main
from pyro_vae.common.digests import digest_of, sha256
from pyro_vae.common.safe_read import dump, parse, seal
from pyro_vae.errors import DataError, DivergedError, PyroVAEError, RunFolderError
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.plots import figures
from pyro_vae.runs import ensemble_folder, folder
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import resume_run as resume_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_ensemble import load_ensemble
from tests.helpers import fuzzed
from tests.helpers.environment import HEAVY
from tests.helpers.run_folders import train_small

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKPOINT = "checkpoints/000002"
READERS = {  # file to the commands that read it; of each so many cases, where not all are run
    "config.json": (
        ("compare", 8),
        ("sample", 8),
        ("evaluate", 2),
        ("resume", 4),
        ("show", 12),
        ("report", 4),
        ("hub", 6),
    ),
    "evidence.json": (("compare", 16), ("evaluate", 2), ("resume", 8), ("show", 24), ("report", 8), ("hub", 8)),
    "metrics.jsonl": (("compare", 6), ("show", 12), ("report", 4), ("board", 8)),
    "evaluations.jsonl": (("compare", 6),),
    f"{CHECKPOINT}/manifest.json": (("half", 8), ("resume", 4)),
    f"{CHECKPOINT}/state.json": (("resume", 5),),
}
COMMANDS = {
    "compare": lambda run: ["compare", str(run), str(run.parent / "other")],
    "show": lambda run: ["show", str(run)],
    "report": lambda run: ["report", str(run)],
    "hub": lambda run: ["export", str(run), f"{run / 'hub'}", "--hub"],
    "board": lambda run: ["export", str(run), f"{run / 'board'}", "--tensorboard"],
    "sample": lambda run: ["sample", str(run), "--num-samples", "2"],
    "half": lambda run: ["sample", str(run), "--num-samples", "2"],  # of a run without model.safetensors
    "evaluate": lambda run: ["evaluate", str(run), "--num-samples", "5", "--rows", "2", "--device", "cpu"],
    "resume": lambda run: ["train", "--resume", str(run), "--device", "cpu", "--num-samples", "5"],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two runs."""
    return train_small(tmp_path_factory.mktemp("good"), "good", "other").parent


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for module in (train_module, resume_module):
        monkeypatch.setattr(module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    monkeypatch.setattr(array_commands, "draw_all", lambda *_: [])
    monkeypatch.setattr(figures, "png", lambda drawn: b"a picture")


def spoil(run, file, way, value):
    """Change one field of a file, and seal it, with its manifest if it is of a checkpoint."""
    text = (run / file).read_bytes().split(b"\n")[0] if file.endswith("l") else (run / file).read_bytes()
    record = fuzzed.changed(json.loads(text), way, value)
    if not file.startswith("checkpoints"):
        (run / file).write_bytes(fuzzed.sealed(record) + b"\n")
        return
    shutil.rmtree(run / "checkpoints" / "000001")
    content = json.dumps(record).encode() if file.endswith("state.json") else fuzzed.sealed(record)
    (run / file).write_bytes(content)
    if file.endswith("state.json"):
        manifest = json.loads((run / CHECKPOINT / "manifest.json").read_bytes())
        manifest["files"]["state.json"] = {"sha256": sha256(content), "bytes": len(content)}
        manifest.pop("finished")
        (run / CHECKPOINT / "manifest.json").write_bytes(fuzzed.sealed(manifest))


@pytest.mark.parametrize("file", READERS)
def test_a_field_of_another_kind_is_refused_or_used_by_every_command_that_reads_it(file, here, tmp_path, capsys):
    text = (here / "good" / file).read_bytes()
    record = json.loads(text.split(b"\n")[0]) if file.endswith("l") else json.loads(text)
    cases = [(way, value) for way in fuzzed.fields(record) for value in (*fuzzed.VALUES.values(), ...)]
    draw = random.Random(0)
    for command, count in READERS[file]:
        for way, value in cases if HEAVY else draw.sample(cases, count):
            run = tmp_path / "run"
            shutil.copytree(here / "good", run)
            shutil.copytree(here / "other", tmp_path / "other", dirs_exist_ok=True)
            if command == "half":
                (run / "model.safetensors").unlink()
            spoil(run, file, way, value)
            code = main(COMMANDS[command](run))  # anything but an error of ours is a failure here
            said = capsys.readouterr()
            assert code in (0, 2, 3, 4, 5, 6, 7) and "\x1b" not in said.out + said.err, (command, way, code)
            shutil.rmtree(run)


@pytest.fixture(scope="module")
def ensembles(here, tmp_path_factory):
    """Two ensembles of the two runs."""
    both = tmp_path_factory.mktemp("ensembles")
    for name in ("a", "b"):
        for seed, member in enumerate(("good", "other")):
            shutil.copytree(here / member, both / name / f"seed{seed}")
        ensemble_folder.write_list(both / name, [0, 1], "train", {})
    return both


@pytest.mark.parametrize("command", ["compare", "evaluate", "load", "overwrite"])
def test_a_field_of_an_ensembles_list_is_refused_or_used_by_every_command(command, ensembles, here, tmp_path, capsys):
    a, b = (tmp_path / name for name in "ab")
    run = {
        "compare": lambda: main(["compare", str(a), str(b)]),
        "evaluate": lambda: main(["evaluate", str(a), "--num-samples", "5", "--rows", "2", "--device", "cpu"]),
        "load": lambda: load_ensemble(a) and 0,
        "overwrite": lambda: main(["train", "--run", str(a), "--data", "/nowhere.npy", "--seeds", "2", "--overwrite"]),
    }[command]
    shutil.copytree(ensembles, tmp_path, dirs_exist_ok=True)
    record = json.loads((a / "ensemble.json").read_bytes())
    odd = {"9" * 5000: "why"}, {"0": 3}, {"\u0663": "why"}, {"7": "why"}
    cases = [(way, value) for way in fuzzed.fields(record) for value in (*fuzzed.VALUES.values(), ...)]
    cases = cases if HEAVY else random.Random(1).sample(cases, 8 if command != "evaluate" else 3)
    for way, value in [*cases, *((("diverged",), value) for value in odd), (("seeds",), [0, 0])]:
        (a / "ensemble.json").write_bytes(fuzzed.sealed(fuzzed.changed(record, way, value)))
        try:
            code = run()
        except PyroVAEError as error:
            code = error.exit_code
        said = capsys.readouterr()
        assert code in (0, 2, 3, 4, 5) and "\x1b" not in said.out + said.err, (way, code)
        # as it was, or an ensemble still, of one member
        fewer = way[0] == "seeds" and fuzzed.changed(record, way, value).get("seeds") in ([0, 1], [0], [1])
        assert code or way[0] in ("made_by", "versions") or fewer or value in (1, True, {}), (way, value)


@pytest.fixture(scope="module")
def diverged(here):
    wild = Config(
        data=str(here / "x.npy"), hidden=(4,), latent_dim=2, epochs=9, batch_size=16, learning_rate=1e20, warmup=0.0,
        schedule="constant",
    )  # fmt: skip
    with pytest.raises(DivergedError):
        train_module.train_run(wild, here / "diverged", device="cpu")
    return here / "diverged"


def test_a_field_of_a_step_that_diverged_is_refused_or_used_by_replay(diverged, tmp_path, capsys):
    run = Path(shutil.copytree(diverged, tmp_path / "run"))
    head, tensors = run / "divergence" / "capsule.json", run / "divergence" / "capsule.safetensors"
    whole, record = tensors.read_bytes(), json.loads(head.read_bytes())
    assert main(["replay", str(run)]) == 0 and "reproduced" in capsys.readouterr().out
    cases = [(way, value) for way in fuzzed.fields(record, depth=1) for value in (*fuzzed.VALUES.values(), ...)]
    for way, value in cases if HEAVY else random.Random(2).sample(cases, 24):
        head.write_bytes(fuzzed.sealed(fuzzed.changed(record, way, value)))
        code = main(["replay", str(run)])
        said = capsys.readouterr()
        assert code in (0, 4) and "\x1b" not in said.out + said.err, (way, value)
    head.write_bytes(fuzzed.sealed(record))
    held = parse(whole, tensors)
    for name in list(held)[:: 1 if HEAVY else 3]:
        for other in (torch.zeros(0), torch.full((2, 3), torch.nan), torch.zeros(3, dtype=torch.int64), None):
            spoiled = {k: v for k, v in held.items() if k != name} | ({} if other is None else {name: other})
            tensors.write_bytes(dump(spoiled))
            assert main(["replay", str(run)]) in (0, 4), name
    capsys.readouterr()


FOUND = [  # by name, as each gave a traceback, or a wrong line
    ("evidence.json", ("measure",), True, "'measure' is 'True'; wanted a text or null"),
    ("evidence.json", ("rows_flagged",), [2, 3], "'rows_flagged' is"),
    ("evidence.json", ("target_se",), "", "'target_se' is"),
    ("evidence.json", ("training", "seconds"), "x" * 2**17, "'seconds' is"),
    ("evidence.json", ("training",), [], "'training' is"),
    ("evidence.json", ("rows",), 10**400, "401 digits is out of range"),
    ("evidence.json", ("machine",), "\ud800", "control characters"),
    (f"{CHECKPOINT}/state.json", ("about",), "x", "'about' does not say what it is of"),
    ("config.json", ("data", "digest"), ..., "does not say which data"),
    ("config.json", ("data", "digest"), 7, "does not say which data"),
    ("evidence.json", ("evaluation", "split"), 1, "'split' is"),
    ("config.json", ("data",), [1], "does not say which data"),
    ("config.json", ("config", "learning_rate"), 10**400, "401 digits is out of range"),
]


@pytest.mark.parametrize(
    ("file", "way", "value", "said"),
    FOUND,
    ids=[f"{file} {'.'.join(way)} {i}" for i, (file, way, *_) in enumerate(FOUND)],
)
def test_what_gave_a_traceback_is_refused_by_name(file, way, value, said, here, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(here / "good", run)
    spoil(run, file, way, value)
    assert main(COMMANDS["resume"](run)) == 4
    assert said in capsys.readouterr().err
    with pytest.raises(RunFolderError):
        folder.read_summary(run / file) if file == "evidence.json" else resume_module.resume_run(run, device="cpu")


def test_evidence_of_a_version_that_did_not_name_its_proposal_is_of_the_guide(here, tmp_path, capsys):
    run = Path(shutil.copytree(here / "good", tmp_path / "run"))
    spoil(run, "evidence.json", ("proposal",), ...)
    assert main(COMMANDS["resume"](run)) == 0 and "from the guide" in capsys.readouterr().out


def test_evidence_that_does_not_say_which_split_is_of_the_test_rows(here, tmp_path, capsys):
    run = Path(shutil.copytree(here / "good", tmp_path / "run"))
    spoil(run, "evidence.json", ("evaluation", "split"), None)
    assert main(COMMANDS["resume"](run)) == 0
    assert f"pyro-vae evaluate {run} --" in capsys.readouterr().out.replace("--rows 5 ", "")


def test_evidence_that_lacks_what_is_printed_of_it_is_refused_by_name(here, tmp_path, capsys):
    absent = [
        ("measure", ...),
        ("floor", ...),
        ("ess_min", ...),
        ("ess_min", None),
        ("ess_median", None),
        ("elements", None),
    ]
    for name, value in absent:
        run = tmp_path / f"{name} {value}"
        shutil.copytree(here / "good", run)
        spoil(run, "evidence.json", (name,), value)
        assert main(COMMANDS["resume"](run)) == 4
        assert f"it says nothing of '{name}'" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [[-4], [10**12], [2**40, 2**40], "os.system", None], ids=str)
def test_a_row_of_a_shape_that_is_none_is_refused_where_runs_are_compared(shape, here, tmp_path, capsys):
    for name in ("good", "other"):
        shutil.copytree(here / name, tmp_path / name)
    spoil(tmp_path / "good", "config.json", ("data", "shape"), shape)
    assert main(["compare", str(tmp_path / "good"), str(tmp_path / "other")]) in (3, 4)
    assert "Traceback" not in capsys.readouterr().err


def test_files_that_are_no_objects_are_refused(here, tmp_path, capsys):
    for file, commands in READERS.items():
        for content in (b"[]", b"null", b"[" * 70 + b"]" * 70):
            run = tmp_path / "run"
            shutil.copytree(here / "good", run)
            shutil.copytree(here / "other", tmp_path / "other", dirs_exist_ok=True)
            (run / file).write_bytes(content + b"\n")
            command = "compare" if "compare" in dict(commands) else "half"
            if command == "half":
                shutil.rmtree(run / "checkpoints" / "000001")
                (run / "model.safetensors").unlink()
            code = main(COMMANDS[command](run))
            assert code in (0, 4) and (code == 4 or file in ("evaluations.jsonl", f"{CHECKPOINT}/state.json")), (
                file,
                content,
            )
            shutil.rmtree(run)
    capsys.readouterr()


def test_a_record_with_thousands_of_digests_is_read_in_no_time(tmp_path):
    """Each was taken for a seal under a damaged name: a line of 6 MB held `compare` for a minute."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({str(i): digest_of(i) for i in range(20_000)}) + "\n")
    start = time.process_time()
    assert len(folder.read_lines(file)[0]) == 20_000
    assert time.process_time() - start < 2
    file.write_text(json.dumps({"rha256": "0" * 64, "wha256": "1" * 64}) + "\n")
    with pytest.raises(RunFolderError, match="SHA-256"):
        folder.read_lines(file)
    file.write_bytes(b"{}\n" * (folder.LINES + 1))
    with pytest.raises(RunFolderError, match="200,001 lines"):
        folder.read_lines(file)
    assert json.loads(json.dumps(seal({"a": 1})))["sha256"]


def test_a_cell_of_128_kib_is_a_data_error():
    head = "row,log_px,mc_se,ess,elbo,elbo_se,index\n"
    with pytest.raises(DataError, match="field larger than"):
        Evidence.from_csv(f"{head}0,0,0,0,0,0,{'x' * 2**18}\n", num_samples=5, seed=0)
    for text in (head, f"{head}0,1\n", f"{head}0,0,0,0,0,0,a,b,c\n", "\x00"):
        try:
            Evidence.from_csv(text, num_samples=5, seed=0)
        except DataError:
            continue
    assert Path(fuzzed.__file__).is_file()
