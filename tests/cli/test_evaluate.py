"""Evaluating from the command line: methods, targets, and going on."""

import csv
import math

import pytest

from pyro_vae.cli.main import main
from pyro_vae.data import load
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.importance.sampler import Sampler
from pyro_vae.evidence.importance.storage import load_evidence
from pyro_vae.runs import folder
from pyro_vae.runs.load import load_run

SMALL = {"--hidden": "8", "--latent-dim": "2", "--epochs": "2", "--batch-size": "256", "--num-samples": "20"}


@pytest.mark.rendered
def test_evaluate_draws_khat_where_it_is_known(run, device):
    """K = 20 has no k̂, so training drew none; fewer samples replace neither the evidence of more nor its picture."""
    picture, evaluate = run / "figures" / "khat.png", ["evaluate", str(run), "--device", str(device), "--num-samples"]
    assert not picture.exists()
    assert main([*evaluate, "30"]) == 0
    before = picture.read_bytes()
    assert len(before) > 3000
    assert main([*evaluate, "20"]) == 0
    assert picture.read_bytes() == before and not (run / "figures" / "khat-test-k20.png").exists()
    found = {name: folder.read_json(run / f"{name}.json")["num_samples"] for name in ("evidence", "evidence-test-k20")}
    assert found == {"evidence": 30, "evidence-test-k20": 20}


def test_floor_is_the_exact_log_likelihood_of_independent_binomials(run):
    from scipy.stats import binom

    from pyro_vae.data import load

    digits = load("digits")
    x, test = digits.train.x.double().numpy(), digits.test.x.numpy()
    rate = (x.sum(0) + 0.5) / (16 * len(x) + 1)
    exact = binom.logpmf(test, 16, rate).sum(1)
    assert folder.read_json(run / "evidence.json")["floor"]["log_px"] == pytest.approx(exact.mean(), abs=1e-4)


# evaluate: methods, and going on


def test_evaluate_by_an_oracle_where_one_applies(run, capsys):
    """Two latents: quadrature, and the report says so, with the measure of the number."""
    assert main(["evaluate", str(run), "--method", "auto", "--rows", "1"]) == 0
    said, found = capsys.readouterr().out, folder.read_json(run / "evidence-test-first-1-exact.json")
    assert "method: quadrature in 2 dimensions" in said and "± numerical" in said and "ELBO" not in said
    assert "measure: counts, a log probability" in said and f"{found['bits_per_dim']:.4f} bits for each of 64" in said
    opened, rows = load_run(run), load("digits").test.x[:1]
    exact = quadrature(opened.vae.model, opened.vae.guide, rows)
    with (run / "evidence-test-first-1-exact.csv").open() as file:
        kept = [float(line["log_px"]) for line in csv.DictReader(file)]
    assert kept == exact.log_px.tolist() and found["log_px"] == exact.log_px.mean().item()
    assert found["bits_per_dim"] == pytest.approx(-found["log_px"] / (64 * math.log(2)))
    assert main(["evaluate", str(run), "--num-samples", "30"]) == 0
    said = capsys.readouterr().out
    assert "method: importance sampling, from the guide" in said and "flagged, not to be believed: k̂ is above" in said


def test_an_interrupted_evaluation_goes_on_from_the_folder(run, monkeypatch, capsys):
    options = ["evaluate", str(run), "--num-samples", "300", "--device", "cpu"]
    assert main(options) == 0
    whole, kept = (run / "evidence.csv").read_bytes(), run / "particles-test.safetensors"
    assert not kept.exists()
    weigh, left = Sampler.weigh, [7]

    def interrupted(self, draws, problem):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return weigh(self, draws, problem)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "weigh", interrupted)
        assert main(options) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err and kept.is_file()
    held, seen = load_evidence(kept), []
    monkeypatch.setattr(Sampler, "weigh", lambda *a: seen.append(len(a[1])) or weigh(*a))
    assert 0 < held.samples.sum() < 300 * 180 and main([*options, "--resume"]) == 0
    assert (run / "evidence.csv").read_bytes() == whole and 0 < len(seen) < 3 * 5
    seen.clear()
    assert main([*options, "--resume"]) == 0 and not seen  # all of it is kept, for more
    assert (run / "evidence.csv").read_bytes() == whole
    assert main([*options, "--resume", "--proposal", "defensive"]) == 0  # another evaluation, with particles of its own
    assert (run / "evidence.csv").read_bytes() == whole and (run / "particles-test-defensive.safetensors").is_file()
    assert main([*options, "--resume", "--seed", "1"]) == 2
    assert "run all of it with the same" in capsys.readouterr().err
    folder.clear(run)
    assert not kept.exists()


def test_evaluate_until_the_error_is_small_enough_from_another_proposal(run, capsys):
    options = ["--rows", "64", "--num-samples", "50", "--target-se", "0.001", "--max-samples", "200"]
    assert main(["evaluate", str(run), *options, "--proposal", "defensive"]) == 0
    found = folder.read_json(run / "evidence-test-first-64-defensive.json")
    assert (found["num_samples"], found["proposal"], found["target_se"]) == (200, "0.9 guide + 0.1 prior", 0.001)
    assert "or the Monte Carlo error above 0.001" in capsys.readouterr().out
