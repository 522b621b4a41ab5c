"""A run exported for the Hugging Face hub: its card is YAML and plain text, and the folder is a run that loads."""

import re
import shutil

import pytest
import torch

from pyro_vae import load_run
from pyro_vae.cli.main import main
from pyro_vae.runs import folder
from pyro_vae.runs.export.card import markdown
from pyro_vae.runs.export.card import yaml as as_yaml
from tests.helpers.run_folders import train_small

FILES = ["README.md", "config.json", "evidence.json", "model.safetensors"]
HOSTILE = '"]\n---\n- x: !!python/object <script>alert(1)</script> [a](javascript:b) `c` | d &é\u2028\ufffe 😀'


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return train_small(tmp_path_factory.mktemp("small"), "run", num_samples=5)


@pytest.fixture
def run(small, tmp_path):
    return shutil.copytree(small, tmp_path / "run")


def change(file, **fields):
    record = folder.read_json(file)
    for name, value in fields.items():
        inner, _, key = name.rpartition("__")
        (record[inner] if inner else record)[key] = value
    folder.write_json(file, record)


def exported(run):
    to = run.parent / "hub"
    assert main(["export", str(run), str(to), "--hub"]) == 0
    return to


def card(to):
    """Front matter and text of a card."""
    yaml = pytest.importorskip("yaml", reason="no YAML reader here")
    _, front, text = (to / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_folder_is_a_run_of_the_same_weights_without_places_of_this_machine(run):
    to = exported(run)
    assert sorted(p.name for p in to.iterdir()) == FILES
    (to / ".cache").mkdir()  # as a download leaves it
    (to / ".gitattributes").write_text("*.safetensors filter=lfs")
    there, here = load_run(to), load_run(run)
    for name, tensor in here.vae.state_dict().items():
        assert torch.equal(tensor, there.vae.state_dict()[name])
    assert there.evidence["log_px"] == here.evidence["log_px"] and there.config.data == "x.npy"
    assert not any(str(run.parent).encode() in (to / name).read_bytes() for name in FILES)
    assert not any(str(here.config.data).encode() in (to / name).read_bytes() for name in FILES)
    assert main(["show", str(to)]) == 0 and main(["sample", str(to), "--out", str(run.parent / "s.npy")]) == 0


@pytest.mark.parametrize("flagged", [0, 1, 4], ids=["none", "some", "loose"])
def test_a_card_has_both_errors_or_a_bare_bound(run, flagged):
    rows = folder.read_json(run / "evidence.json")["rows"]
    change(run / "evidence.json", rows=12, rows_flagged=flagged, log_px=-8.5, log_px_mc_se=1e-7, log_px_data_se=0.25)
    front, text = card(exported(run))
    (result,) = front["model-index"][0]["results"]
    metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
    both = {"log_px": -8.5, "log_px_mc_se": 1e-7, "log_px_data_se": 0.25}
    assert rows and metrics == (both if flagged < 2 else {"log_px_bound": -8.5}) | {"rows_flagged": flagged, "rows": 12}
    name = result["metrics"][0]["name"]
    assert f"{flagged} of 12 rows flagged" in name and ("±" in name) == (flagged < 2)
    assert ("data" in text and "loose number" in text) == (flagged == 4)
    assert ("± data" in text) == (flagged < 2)


def test_a_run_without_evidence_has_a_card_that_says_so(run):
    for file in run.glob("evidence*"):
        file.unlink()
    to = exported(run)
    front, text = card(to)
    assert "model-index" not in front and "never scored" in text and not (to / "evidence.json").exists()


def test_hostile_names_are_text(run):
    name = HOSTILE.replace("\n", " ").replace("\u2028", " ")  # config.json holds no controls
    change(run / "config.json", data__name=name)
    front, text = card(exported(run))
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(name.split())
    assert "<script>" not in text and "](java" not in text
    assert re.search(r"&lt;script&gt;.*\\\[a\\\]\\\(javascript\\:b", text)


def test_texts_are_written_for_yaml_and_markdown():
    yaml = pytest.importorskip("yaml", reason="no YAML reader here")
    for text in (HOSTILE, "", "yes", "1e3", "\x1b[31m", "\ud800", "- a", "#"):
        assert isinstance(yaml.safe_load(f"a: {as_yaml(text)}")["a"], str)
        assert "\n" not in markdown(text) and "\x1b" not in markdown(text)
    assert markdown("see https://a.b or www.a.b, 1.5: $x$") == r"see https\://a\.b or www\.a\.b, 1.5: \$x\$"
    for number in (1e-7, 1e20, 3, -0.5, 1.5e-9):
        assert yaml.safe_load(str(as_yaml(number))) == number


def test_a_snapshot_in_the_hubs_cache_is_told_how_to_be_fetched(run, capsys):
    to = exported(run)
    snapshot = run.parent / "models--me--my-vae" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in to.iterdir():
        (snapshot / file.name).symlink_to(file)
    (run.parent / "named").symlink_to(snapshot)
    for place in (snapshot, run.parent / "named"):
        for command in (["show", str(place)], ["sample", str(place)], ["report", str(place)]):
            assert main(command) == 4
            assert "hf download me/my-vae --revision abc --local-dir FOLDER" in capsys.readouterr().err
    (run / "config.json").rename(run / "c")
    (run / "config.json").symlink_to(run / "c")
    assert main(["show", str(run)]) == 4 and "hf download" not in capsys.readouterr().err


def test_an_export_has_one_form_and_takes_the_place_of_nothing(run, capsys):
    assert main(["export", str(run), str(run.parent / "new"), "--hub", "--tensorboard"]) == 2
    assert main(["export", str(run), str(run), "--hub"]) == 4
    assert main(["export", str(run.parent / "nothing"), str(run.parent / "new"), "--hub"]) == 4
    assert not (run.parent / "new").exists()
