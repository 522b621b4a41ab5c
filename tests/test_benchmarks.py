"""The benchmark harness: it runs, compares like with like, and says who failed."""

import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks import checkpoints
from benchmarks.by_hand import ByHand
from benchmarks.cases import KINDS, QUICK, Case, data
from benchmarks.peers import objective_of, ours, vae_of
from benchmarks.timing import interleave, ratio
from tests.helpers.environment import ROOT

CPU = torch.device("cpu")


def test_the_quick_form_writes_table_json_and_pictures(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [case["case"] for case in results["cases"]] == [case.name for case in QUICK]
    for case in results["cases"]:
        assert {"pyro_vae eager", "pyro_vae trace", "PyTorch, fused Adam", "Pyro"} <= set(case["peers"])
        assert case["peers"][case["ours"]]["ratio"] == 1 and "pyro_vae" in case["ours"]
        assert all(math.isfinite(r["ms"]) and r["ms"] > 0 for r in case["peers"].values())
    assert done.stdout.startswith((tmp_path / "benchmarks.md").read_text()[:40])
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("benchmarks.png", "growth.png"))


def test_a_ratio_is_taken_block_by_block():
    assert ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_a_peer_that_fails_is_reported_and_the_others_go_on(capsys):
    def bad(steps):
        raise RuntimeError("no luck")

    times, failed = interleave({"good": lambda steps: None, "bad": bad}, CPU, blocks=2, seconds=1e-5)
    assert set(times) == {"good"} and len(times["good"].wall) == 2
    assert failed == {"bad": "RuntimeError: no luck"} and "no luck" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["elbo", *(case.kind for case in KINDS)])
def test_by_hand_and_ours_are_one_model(kind):
    """As many parameters, and one loss under the same weights and noise."""
    case = Case(16, 3, 8, kind, 4 if kind == "iwae" else 1)
    torch.manual_seed(0)
    vae, hand = vae_of(case), ByHand(case)
    count = [sum(p.numel() for p in {id(p): p for p in module.parameters()}.values()) for module in (vae, hand)]
    assert count[0] == count[1]
    with torch.no_grad():
        for own, other in ((hand.encoder, vae.posterior.net), (hand.decoder, vae.likelihood.net)):
            own.load_state_dict(other.state_dict())
        if kind == "flow":
            hand.flow.load_state_dict(vae.posterior.flow.state_dict())
        if kind == "vamp":
            hand.pseudo.copy_(vae.prior.raw)
        x = data(CPU)[:8]
        torch.manual_seed(1)
        theirs = hand(x).item()
        torch.manual_seed(1)
        objective = objective_of(case)
        objective.loss(vae.model, vae.guide, x)
        torch.manual_seed(1)
        assert theirs == pytest.approx(float(objective.loss(vae.model, vae.guide, x)), rel=1e-5)


def test_an_engine_that_gave_up_is_not_timed_as_if_it_ran(monkeypatch):
    monkeypatch.setattr("pyro_vae.training.engines.traced.TracedEngine.why_untraceable", lambda self: "out of order")
    with pytest.raises(RuntimeError, match="eager from here on: out of order"):
        ours(QUICK[0], data(CPU), "trace")(3)


def test_evaluation_beside_its_matrix_products():
    from benchmarks.evaluation import main

    threads = torch.get_num_threads()
    found = main(64, 64, 1, None)
    torch.set_num_threads(threads)
    assert 0 < found["share_of_matmul_rate_median"] < 2 and found["memory_mb_more_at_ten_k"] >= 0


def test_the_cost_of_checkpoints_is_measured(tmp_path, capsys):
    """The figures of a tiny training add up; how large they are is the benchmark's to say."""
    found = checkpoints.main(rows=256, epochs=2, saves=2, out=tmp_path / "checkpoints.json")
    assert json.loads((tmp_path / "checkpoints.json").read_text()) == found and "in all" in capsys.readouterr().out
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert found["share"] == found["note_share"] + found["save_share"]


def test_engines_that_agree_are_nought_apart():
    from benchmarks.agreement import main

    threads = torch.get_num_threads()
    found = main(2, 1, False, None)
    torch.set_num_threads(threads)
    assert found["trace float32"]["each"] == [0.0, 0.0] and found["trace float32"]["said"].startswith("engine trace")
