"""The report of a run: what it says of whom, that no request leaves it, and that no name in it is obeyed."""

import json
import runpy
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from pyro_vae.cli.main import main
from pyro_vae.common.safe_read import seal
from pyro_vae.errors import DataError, StorageError
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import folder, run_figures
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.list_runs import list_runs, summary_of
from pyro_vae.runs.report import page as page_module
from pyro_vae.runs.report import pictures as pictures_module
from pyro_vae.runs.report.columns import ColumnName, column_fits, column_names
from pyro_vae.runs.report.facts import read_facts
from pyro_vae.runs.report.page import write_comparison, write_report
from pyro_vae.runs.report.verdict import judge
from pyro_vae.runs.report.words import evaluation_command
from pyro_vae.runs.train_run import train_run
from tests.helpers.run_folders import train_small

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.rendered]
NASTY = '<img src=x onerror=alert(1)>[red]\x1b[31m\u202e"&'
FETCHES = {
    "src",
    "href",
    "srcset",
    "action",
    "data",
    "poster",
    "formaction",
    "background",
    "xlink:href",
    "cite",
    "ping",
}


class Page(HTMLParser):
    """What a page holds: its tags, whatever it could fetch, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text, self.meta = [], [], [], "", {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in FETCHES]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag == "meta" and "http-equiv" in dict(attrs):
            self.meta[dict(attrs)["http-equiv"]] = dict(attrs)["content"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two runs on a table, without pictures in figures/."""
    return train_small(tmp_path_factory.mktemp("report"), "a", "b", num_samples=1000).parent


@pytest.fixture(scope="module")
def whole(here, tmp_path_factory):
    """A run with its page, drawn of model and data, and no log-likelihood: nothing else in the folder has changed."""
    run = Path(shutil.copytree(here / "a", tmp_path_factory.mktemp("whole") / "run"))
    spoil(run / "evidence.json", rows_flagged=0)
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "samples.png").write_bytes(b"<svg onload=alert(1)>")  # pictures that are none are drawn anew
    (run / "figures" / "training.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 400_000)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate_module, train_module):
            patch.setattr(module, "log_likelihood", None)
        path = write_report(run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p != path} == before
    return path


@pytest.fixture
def run(here, tmp_path):
    return Path(shutil.copytree(here / "a", tmp_path / "run"))


@pytest.fixture
def no_model(monkeypatch):
    """Pages are made of the folder alone, and fast."""
    monkeypatch.setattr(page_module, "attempt", lambda make, what, trouble: None)


def spoil(path, **values):
    """Change fields of a sealed JSON file."""
    record = json.loads(path.read_bytes()) | values
    path.write_text(json.dumps(seal({k: v for k, v in record.items() if k != "sha256"})))


def test_a_page_fetches_nothing_runs_nothing_and_is_small(whole):
    text = whole.read_text()
    page = Page(text)
    assert whole.name == "report.html" and "x" * 50 not in text and len(text.encode()) < 1_000_000
    assert page.meta["Content-Security-Policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "svg", "a"} & set(page.tags)
    assert page.handlers == [] and len(page.addresses) >= 4
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "url(" not in text and "@import" not in text and "http" not in page.text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_a_page_says_what_came_of_it_with_the_numbers_of_the_folder(whole):
    run, text = whole.parent, Page(whole.read_text()).text
    s = folder.read_summary(run / "evidence.json")
    assert f"{s['log_px']:.3f}" in text and f"{s['floor']['log_px']:.3f}" in text
    assert "fitted from 40 of its rows" in text and "Which columns the model gets wrong" in text
    order = np.argsort(np.genfromtxt(run / "evidence.csv", delimiter=",", names=True)["log_px"])
    table = text[text.index("Rows that it finds least probable") :].split()
    assert str(order[0]) in table
    for command in ("pyro-vae train --config", "pyro-vae evaluate", f"pyro-vae report {run}"):
        assert command in text


VERDICTS = {
    "trusted": ({"rows_flagged": 0, "rows": 5}, "trusted", "sample"),
    "a tenth": ({"rows_flagged": 1, "rows": 10}, "trusted", "sample"),
    "more than a tenth": ({"rows_flagged": 2, "rows": 10}, "loose bound", "--method annealing"),
    "nine tenths": ({"rows_flagged": 9, "rows": 10}, "loose bound", "--method annealing"),
    "more than nine tenths": ({"rows_flagged": 10, "rows": 11}, "do not use", "--method annealing"),
    "few samples": ({"rows_flagged": 5, "rows": 5, "num_samples": 10}, "do not use", "--num-samples 5000"),
    "loose and below": ({"rows_flagged": 2, "rows": 5, "cleared": -3.0}, "loose bound", "--method annealing"),
    "below the floor": ({"rows_flagged": 0, "rows": 5, "cleared": -3.0}, "do not use", "train"),
    "below it beyond chance": ({"rows_flagged": 0, "rows": 5, "cleared": -0.201}, "do not use", "train"),
    "below it by chance": ({"rows_flagged": 0, "rows": 5, "cleared": -0.199}, "trusted", "train"),
    "above it by chance": ({"rows_flagged": 0, "rows": 5, "cleared": 0.199}, "trusted", "train"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_follows_the_folder(case, run, no_model):
    fields, word, command = VERDICTS[case]
    s = folder.read_summary(run / "evidence.json")
    cleared = fields.get("cleared", 2.0)
    fields = {k: v for k, v in fields.items() if k != "cleared"} | {"log_px": -8.5}
    spoil(run / "evidence.json", **fields, floor=s["floor"] | {"cleared_by": cleared, "cleared_by_se": 0.1})
    verdict = judge(read_facts(run))
    assert verdict.word == word and command in verdict.next and str(run) in verdict.next
    assert ("no better than its floor" in verdict.why) == (abs(cleared) < 0.2)
    about = summary_of(run)
    loose = fields["rows_flagged"] > fields["rows"] / 10
    assert (
        about["verdict"] == word and ("±" in about["log_px_text"]) != loose and ("≥" in about["log_px_text"]) == loose
    )


def test_a_loose_number_has_no_error_on_the_page(run, no_model):
    spoil(run / "evidence.json", rows_flagged=5, log_px_mc_se=0.123456, log_px_data_se=7.654321)
    text = Page(write_report(run).read_text()).text
    assert "≥" in text and "± Monte Carlo" not in text.split("What came of it")[0]
    assert "0.123" not in text and "7.65" not in text and "loose bound" in text


def test_evidence_of_other_weights_is_no_number_of_the_run(run, no_model, capsys):
    spoil(run / "evidence.json", weights="0" * 64)
    text = Page(write_report(run).read_text()).text
    s = folder.read_summary(run / "evidence.json")
    assert "of weights from before" in text and f"{s['log_px']:.3f}" not in text and "do not use" in text
    assert main(["show", str(run)]) == 0 and "not scored" in capsys.readouterr().out


def test_pictures_of_a_gap_that_other_weights_had_are_not_shown(run, no_model):
    """An interrupted run was looked into, and trained on: its numbers of then are left out, and so are its pictures."""
    (run / "figures").mkdir(exist_ok=True)
    for name in ("gaps", "bracket", "latent"):
        (run / "figures" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n of " + name.encode())
    folder.write_json(run / "gaps.json", {"rows": 3, "rows_flagged": 0, "weights": "0" * 64, "of_gap": {}})
    shown = pictures_module.pictures_of(read_facts(run), None, None)
    assert "latent" in shown and not {"gaps", "bracket"} & shown.keys()


def test_a_run_without_an_evaluation_says_so_and_how_to_make_one(run, no_model):
    for file in run.glob("evidence*"):
        file.unlink()
    text = Page(write_report(run).read_text()).text
    assert "was never scored" in text and f"pyro-vae evaluate {run}" in text and "Nobody has measured yet" in text


def test_a_run_that_diverged_and_one_that_was_cut_off_are_not_to_be_used(run, no_model):
    for file in run.glob("evidence*"):
        file.unlink()
    (run / "divergence").mkdir()
    diverged = judge(read_facts(run))
    assert diverged.word == "do not use" and diverged.next == f"pyro-vae replay {run}" and "diverged" in diverged.why
    (run / "divergence").rmdir()
    for manifest in run.glob("checkpoints/*/manifest.json"):
        spoil(manifest, finished=False, epoch=2)
    cut = judge(read_facts(run))
    assert cut.word == "do not use" and cut.next == f"pyro-vae train --resume {run}"


def test_names_are_shown_and_not_obeyed(tmp_path, monkeypatch, capsys):
    """A file whose name is HTML, markup, an escape and an override of direction; a label and a note likewise."""
    name = NASTY.replace("/", "").replace("\x1b[31m\u202e", "") + ".csv"  # a config with such signs is refused
    rows = np.random.default_rng(0).normal(size=(40, 3))
    lines = [f'{a},{b},{c},"{("=x" if i % 2 else "<script>")}"' for i, (a, b, c) in enumerate(rows)]
    (tmp_path / name).write_text("\n".join(['a,"<script>b</script>",$c_1$,kind', *lines]))
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    config = Config(data=str(tmp_path / name), label="kind", hidden=(4,), latent_dim=2, epochs=2)
    run = tmp_path / f"{NASTY.replace('/', '')}run"
    monkeypatch.setattr(run_figures, "draw_all", lambda *_: [])
    train_run(config, run, num_samples=30, device="cpu")
    text = (run / "report.html").read_text()  # written by the training
    page = Page(text)
    assert "script" not in page.tags and page.handlers == [] and page.tags.count("img") == len(page.addresses)
    assert "\x1b" not in text and "\u202e" not in text and r"\x1b[31m\u202e" in page.text and "<img src=x" in page.text
    monkeypatch.setattr(pictures_module, "drawn", lambda *_: None)
    capsys.readouterr()
    for command in (["show", str(run)], ["runs", str(tmp_path)], ["show", str(run), "--json"], ["report", str(run)]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said and "\u202e" not in said
        assert "--json" in command or max(map(cell_len, said.splitlines())) <= 80 or command[0] == "report"
    assert "[red]" in summary_of(run)["data"]


def test_the_command_for_new_rows_names_their_file(run, no_model, tmp_path):
    """A digest is no split that --split takes."""
    spoil(run / "evidence.json", split="more rows.csv, new rows", evaluation={"split": "new-1a2b3c4d", "rows": 9})
    for end in ("json", "csv"):
        (run / f"evidence.{end}").rename(run / f"evidence-new-1a2b3c4d-first-9.{end}")
    command = evaluation_command(read_facts(run))
    assert " --data 'more rows.csv' --rows 9 " in command and "new-" not in command


def test_several_runs_are_compared_and_others_refused(here, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert main(["report", str(here / "a"), str(here / "b"), "--out", str(out)]) == 0
    page = Page(out.read_text())
    assert "paired row by row" in page.text and len(page.addresses) == 1 and len(out.read_bytes()) < 1_000_000
    assert main(["report", str(here / "a"), str(here / "a"), "--out", str(out)]) == 2
    assert main(["report", str(here / "a"), "--out", "x.pdf"]) == 2 and main(["report"]) == 2
    assert "ending .html" in capsys.readouterr().err
    with pytest.raises(StorageError):
        (tmp_path / "file").write_text("mine")
        write_comparison([here / "a", here / "b"], tmp_path / "file" / "x.html")


def test_a_report_is_written_in_place_of_a_link_and_never_through_it(run, tmp_path, no_model):
    (tmp_path / "mine").write_text("mine")
    (run / "report.html").symlink_to(tmp_path / "mine")
    assert main(["report", str(run)]) == 4 and (tmp_path / "mine").read_text() == "mine"  # refused, as by other writers


def test_without_its_data_a_run_still_has_a_report(run, monkeypatch):
    def gone(*_):
        raise DataError("there is no file x.npy")

    monkeypatch.setattr(page_module, "read_data", gone)
    monkeypatch.setattr(pictures_module, "drawn", lambda *_: None)
    text = Page(write_report(run).read_text()).text
    assert (
        "data cannot be read: there is no file x.npy" in text and "--data-dir" in text and "Which columns" not in text
    )


# columns


def test_a_column_that_the_model_gets_wrong_is_first_and_one_that_it_gets_right_is_not_blamed():
    rng = np.random.default_rng(0)
    data = np.column_stack([rng.normal(size=3000), rng.exponential(size=3000), rng.integers(0, 3, 3000)])
    drawn = np.column_stack([rng.normal(size=4000), rng.normal(1, 1, 4000), rng.integers(0, 3, 4000)])
    data[:100, 0] = np.nan
    names = [ColumnName("x"), ColumnName("wait"), ColumnName("kind", ("a", "b", "c"))]
    fits = column_fits(data, drawn, names)
    assert (fits[0].name, fits[0].wrong) == ("wait", True) and not any(f.wrong for f in fits[1:])
    x, kind = (next(f for f in fits if f.name == name) for name in ("x", "kind"))
    assert (x.observed, x.missing) == (2900, 100) and kind.label in "abc" and abs(kind.mean - 1 / 3) < 0.03


def test_the_distance_of_columns_is_scipys():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(1)
    for x, y in ((rng.normal(size=80), rng.normal(0.3, 1, 50)), (rng.poisson(2, 70), rng.poisson(3, 90))):
        (fit,) = column_fits(x[:, None].astype(float), y[:, None].astype(float), [ColumnName("x")])
        assert fit.distance == pytest.approx(ks_2samp(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("level", [0.01], ids=["one per cent"])
def test_chance_is_blamed_no_more_often_than_it_says(level):
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(300):
        names = [ColumnName(str(i)) for i in range(5)]
        wrong += column_fits(rng.normal(size=(60, 5)), rng.normal(size=(80, 5)), names)[0].wrong
    assert wrong <= 300 * level + 4 * (300 * level) ** 0.5


def test_columns_are_called_what_the_data_calls_them():
    class Named:
        columns = (ColumnName("mass"), ColumnName("island", ("Biscoe", "Dream")))

    assert [n.name for n in column_names(Named(), 2)] == ["mass", "island"] and column_names(Named(), 2)[1].codes
    assert [n.name for n in column_names(object(), 2)] == ["column 0", "column 1"]


# show, runs


def test_runs_of_a_folder_are_listed_with_their_numbers(here, capsys):
    assert main(["runs", str(here), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [Path(about["run"]).name for about in listed] == ["a", "b"]
    for about in listed:
        s = folder.read_summary(Path(about["run"]) / "evidence.json")
        assert about["log_px"] == s["log_px"] and about["date"] == s["time"][:10] and about["data"] == "x.npy"
    assert main(["runs", str(here)]) == 0
    said = capsys.readouterr().out
    assert max(map(cell_len, said.splitlines())) <= 80 and "a" in said
    assert main(["runs", str(here / "nowhere")]) == 4 and main(["runs", str(here / "a" / "figures")]) == 0
    assert "there is no run in" in capsys.readouterr().out


def test_a_damaged_run_is_listed_as_such_and_the_others_stay(here, tmp_path):
    shutil.copytree(here / "a", tmp_path / "good")
    shutil.copytree(here / "a", tmp_path / "bad")
    (tmp_path / "bad" / "evidence.json").write_text("{")
    (tmp_path / "away").symlink_to(here)
    bad, good = list_runs(tmp_path)
    assert "error" in bad and good["verdict"] and "away" not in str(bad) + str(good)


def test_show_says_what_is_on_the_page(run, capsys):
    assert main(["show", str(run), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert main(["show", str(run)]) == 0
    said = capsys.readouterr().out
    assert about["verdict"] in said and about["log_px_text"] in said and max(map(cell_len, said.splitlines())) <= 80
    assert about["evaluation"] == "test" and about["asked"]["likelihood p(x | z)"] == "normal"


def test_the_package_is_a_command(monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.main.main", lambda: 7)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("pyro_vae", run_name="__main__")
    assert end.value.code == 7


# in a browser


def chromium():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


POLICY = '<meta http-equiv="Content-Security-Policy"'
THEIRS = "http://stranger.invalid/x.png"
WIDTHS = (400, 1200)


def browse(page, here, *more):
    """Open a page; return what the browser printed, and whether it asked the stranger."""
    log = here / f"{page.stem}.json"
    command = [
        *(chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
        *(f"--user-data-dir={here / 'profile'}", f"--log-net-log={log}", "--window-size=1200,900"),
    ]
    said = subprocess.run([*command, *more, page.as_uri()], capture_output=True, text=True, check=True, timeout=300)
    return said.stdout, "stranger.invalid" in log.read_text()


@pytest.mark.skipif(chromium() is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_browser_shows_the_page_and_lets_nothing_out_of_it(whole, tmp_path):
    """A picture of a stranger, smuggled in, is not asked for; without the page's policy it is, which the log then shows."""
    text = whole.read_text().replace("</main>", f'<img src="{THEIRS}"></main>')
    held, free = tmp_path / "held.html", tmp_path / "free.html"
    held.write_text(text)
    tell = "<script>parent.postMessage(`${innerWidth} ${document.documentElement.scrollWidth}`, '*')</script></body>"
    free.write_text(text.replace(POLICY, "<meta").replace("</body>", tell))
    frames = "".join(f'<iframe src="{free.as_uri()}" width="{w}" height="900"></iframe>' for w in WIDTHS)
    hear = "<script>onmessage = event => { document.body.append(`(${event.data})`) }</script>"
    (tmp_path / "frames.html").write_text(f"<style>iframe {{ border: 0 }}</style><body>{hear}{frames}")
    _, asked = browse(held, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert not asked and (tmp_path / "page.png").stat().st_size > 20_000
    dom, asked = browse(tmp_path / "frames.html", tmp_path, "--dump-dom", "--virtual-time-budget=5000")
    assert asked and all(f"({w} {w})" in dom for w in WIDTHS), dom[-300:]  # nothing stands out of its window
