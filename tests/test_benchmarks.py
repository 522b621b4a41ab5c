"""The benchmark harness: it runs, compares like with like, and says who failed."""

import copy
import json
import math
import sys

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from benchmarks import __main__ as command
from benchmarks import checkpoints, evidence_by_hand, history, linear_cost
from benchmarks.by_hand import ByHand, normal_log_prob
from benchmarks.cases import KINDS, QUICK, Case, data
from benchmarks.peers import objective_of, ours, vae_of
from benchmarks.timing import Budget, interleave, ratio
from benchmarks.whole_step import WholeStep
from pyro_vae import Bound, iwae, log_likelihood
from pyro_vae.errors import SupportError
from pyro_vae.training.metrics import EpochMetrics
from tests.helpers.children import printed_by

CPU = torch.device("cpu")


def run_quick_form(out):
    """Run in a child."""
    sys.argv[1:] = ["--quick", "--threads", "1", "--out", str(out)]
    command.main()


def test_the_quick_form_writes_table_json_pictures_and_history(tmp_path):
    printed = printed_by(run_quick_form, tmp_path, seconds=500)
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    steps = {case["case"]: case for case in results["cases"] if case["unit"] == "step"}
    assert list(steps) == [case.name for case in QUICK]
    for case in steps.values():
        assert {"pyro_vae eager", "pyro_vae trace", "PyTorch, fused Adam", "Pyro"} <= set(case["peers"])
    for case in results["cases"]:
        assert case["peers"][case["ours"]]["ratio"] == 1 and "pyro_vae" in case["ours"] and case["failed"] == {}
        assert all(math.isfinite(r["ms"]) and r["ms"] > 0 for r in case["peers"].values())
    assert any("importance sampling" in case["case"] for case in results["cases"])
    assert printed.startswith((tmp_path / "benchmarks.md").read_text()[:40])
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("benchmarks.png", "growth.png"))
    (run,) = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert set(run["ratios"]) == {case["case"] for case in results["cases"]} and run["versions"]["torch"]
    assert run["commit"] in (tmp_path / "history.md").read_text()


def test_a_slip_shows_in_the_history():
    def run(date, ratio, cpu="one"):
        machine = {"cpu": cpu, "gpu": None, "threads": 2}
        about = {"date": date, "commit": "abc", "machine": machine, "versions": {"torch": "2"}, "load": 0.5}
        return about | {"blocks": {"a case": 3}, "ratios": {"a case": {"peer": ratio, "pyro_vae": 1.0}}}

    runs = [run("1", 1.50), run("2", 1.44), run("3", 1.41), run("4", 1.60), run("5", 1.51), run("1", 1.0, "two")]
    lines = [line for line in history.table(runs).splitlines() if line[:3] in ("| 1", "| 2", "| 3", "| 4", "| 5")]
    assert ["↓" in line for line in lines] == [False, False, True, False, True, False]  # each machine has its own best


def test_minutes_cut_blocks_and_no_case(monkeypatch):
    """Time as steps take it, on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: now[0])

    def ten_seconds(steps):
        now[0] += 10.0 * steps

    budget = Budget(minutes=2.0, cases=2)
    first, _ = interleave({"one": ten_seconds}, CPU, 9, 0.0, budget.deadline(), least=1)
    assert len(first["one"].wall) == 5 and now[0] == 60.0  # one to warm up
    second, _ = interleave({"one": ten_seconds}, CPU, 9, 0.0, budget.deadline(), least=3)
    assert len(second["one"].wall) == 1
    assert Budget(None, 2).deadline() == float("inf")


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
        x = data(CPU, 8)
        torch.manual_seed(1)
        theirs = hand(x).item()
        torch.manual_seed(1)
        objective = objective_of(case)
        objective.loss(vae.model, vae.guide, x)
        torch.manual_seed(1)
        assert theirs == pytest.approx(float(objective.loss(vae.model, vae.guide, x)), rel=1e-5)


def same_weights(case):
    """Our VAE and the one by hand, with one set of weights."""
    torch.manual_seed(0)
    vae, hand = vae_of(case), ByHand(case)
    for own, other in ((hand.encoder, vae.posterior.net), (hand.decoder, vae.likelihood.net)):
        own.load_state_dict(other.state_dict())
    return vae, hand


def test_the_whole_step_by_hand_is_adam_on_the_same_loss():
    """Three steps from one seed: the loss of each, and then the weights, are those of torch's own Adam."""
    case, x = Case(16, 3, 8), data(CPU, 24)
    _, hand = same_weights(case)
    whole, plain = WholeStep(copy.deepcopy(hand)), copy.deepcopy(hand)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for start in (0, 8, 16):
        torch.manual_seed(start)
        with torch.no_grad():
            loss = whole.flat(x[start : start + 8])
        torch.manual_seed(start)
        optimizer.zero_grad()
        other = plain(x[start : start + 8])
        other.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(other.item(), rel=1e-6)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(whole.parameters[name], parameter.detach(), rtol=1e-5, atol=1e-7)
        assert not torch.equal(parameter, dict(hand.named_parameters())[name])


def test_evidence_by_hand_is_ours():
    """The same log weights from the same noise; the running estimate is their log-mean-exp; AIS within its error."""
    vae, hand = same_weights(Case(16, 3, 8))
    x = data(CPU, 6)
    bound = Bound(iwae, 5)
    bound.per_row(vae.model, vae.guide, x)  # the first time it looks at the programs
    torch.manual_seed(1)
    theirs = iwae(evidence_by_hand.log_weights(hand, x, 5).detach())
    torch.manual_seed(1)
    torch.testing.assert_close(theirs, bound.per_row(vae.model, vae.guide, x), rtol=1e-5, atol=1e-3)
    exact = log_likelihood(vae.model, vae.guide, x, num_samples=20_000, verbose=False)
    sampled = evidence_by_hand.ImportanceSampling(hand, 64, compiled=False)(x, 5000)
    assert ((sampled - exact.log_px).abs() < 5 * exact.mc_se * 3 + 0.02).all()
    annealed = evidence_by_hand.annealed(hand, x, temperatures=20, chains=64)
    assert (annealed - exact.log_px).abs().max() < 0.3


def test_numpyros_programs_are_ours():
    """The same parameters and latents: log p(x, z) and log q(z | x) to float32's digits."""
    numpyro = pytest.importorskip("numpyro")
    jnp = pytest.importorskip("jax.numpy")
    from numpyro.infer.util import log_density

    from benchmarks.numpyro_peer import programs

    case = Case(16, 3, 8)
    _, hand = same_weights(case)
    x = data(CPU, 8)

    def weights(net):
        layers = [net[0], net[2]]
        return [
            (jnp.asarray(layer.weight.detach().numpy().T), jnp.asarray(layer.bias.detach().numpy())) for layer in layers
        ]

    loc, scale = hand.posterior(x)
    z = (loc + 0.5 * scale).detach()
    params = {"encoder": weights(hand.encoder), "decoder": weights(hand.decoder), "z": jnp.asarray(z.numpy())}
    model, guide = programs(case)
    here = evidence_by_hand.log_joint(hand, z, x).sum().item(), normal_log_prob(z, loc, scale).sum().item()
    for program, value in zip((model, guide), here, strict=True):
        found, _ = log_density(numpyro.handlers.substitute(program, data=params), (jnp.asarray(x.numpy()),), {}, params)
        assert float(found) == pytest.approx(value, rel=1e-5)


def test_pythaes_loss_is_ours():
    """Its mean over rows of −reconstruction + KL in closed form, at the same weights and noise."""
    pytest.importorskip("pythae")
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput

    from benchmarks.pythae_peer import Decoder, Encoder

    case = Case(16, 3, 8)
    vae, hand = same_weights(case)
    x, raw = data(CPU, 8), 0.3
    with torch.no_grad():  # a scale that both can have: softplus here, half a logarithm there
        hand.encoder[2].weight[case.latent :] = 0.0
        hand.encoder[2].bias[case.latent :] = raw
        vae.posterior.net.load_state_dict(hand.encoder.state_dict())
        theirs = PythaeVAE(VAEConfig((784,), case.latent, reconstruction_loss="bce"), Encoder(case), Decoder(case))
        theirs.encoder.hidden.load_state_dict(hand.encoder[0].state_dict())
        theirs.encoder.loc.weight.copy_(hand.encoder[2].weight[: case.latent])
        theirs.encoder.loc.bias.copy_(hand.encoder[2].bias[: case.latent])
        theirs.encoder.log_var.weight.zero_()
        theirs.encoder.log_var.bias.fill_(2 * math.log(math.log1p(math.exp(raw)) + 1e-4))
        theirs.decoder.net.load_state_dict(hand.decoder.state_dict())
        torch.manual_seed(1)
        loss = theirs(ModelOutput(data=x)).loss.item()
        torch.manual_seed(1)
        assert loss == pytest.approx(TraceMeanField_ELBO().loss(vae.model, vae.guide, x) / 8, rel=1e-5)


def test_an_engine_that_gave_up_is_not_timed_as_if_it_ran(monkeypatch):
    monkeypatch.setattr("pyro_vae.training.engines.traced.TracedEngine.why_untraceable", lambda self: "out of order")
    run = ours(QUICK[0], data(CPU, 64), "trace")
    assert run(3) == 4  # whole epochs
    assert run.close() == "eager from here on: out of order"


def test_fit_takes_turns_with_its_log_and_without(monkeypatch):
    logs = []
    elbo = EpochMetrics.elbo
    monkeypatch.setattr(EpochMetrics, "elbo", lambda self, when: logs.append(when) or elbo(self, when))
    for logged in (True, False):
        run = ours(QUICK[0], data(CPU, 64), "trace", logged)
        made = [run(1), run(12)]
        assert made == [4, 12] and len(logs) == (4 if logged else 0) and run.close() is None
        logs.clear()
    bad = ours(QUICK[0], torch.full((64, 784), 0.5), "trace")
    with pytest.raises(SupportError):
        bad(1)


def test_evaluation_beside_its_matrix_products():
    from benchmarks.evaluation import main

    threads = torch.get_num_threads()
    found = main(64, 64, 1, None, compiled=False)
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


def test_a_line_is_told_from_a_square():
    sizes = [4, 8, 16, 32]
    a, b, off, exponent = linear_cost.line(sizes, [2.0 + 3.0 * t for t in sizes])
    assert (a, b) == pytest.approx((2.0, 3.0)) and off < 1e-9 and exponent == pytest.approx(math.log2(98 / 50))
    *_, off, exponent = linear_cost.line(sizes, [float(t * t) for t in sizes])
    assert exponent == pytest.approx(2.0) and off > 0.2


def test_the_cost_of_levels_is_measured_by_fit_itself():
    """Fewer rows, two sizes, eager: whether it runs, and prints what it measured."""
    made = {levels: linear_cost.hierarchies(levels) for levels in (1, 2)}
    found = linear_cost.costs(made, 1, "eager")
    assert all(value > 0 for of_size in found.values() for value in of_size.values())
    printed = linear_cost.table("levels", "L", found)
    assert f"{found[2]['step']:.3g}" in printed and "L = 2" in printed
