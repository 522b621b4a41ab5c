"""encode, decode and score outside of Pyro: the numbers of the run's own functions, without a pickle, in torch and in ONNX."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import encode
from pyro_vae.cli.main import main
from pyro_vae.common.optional import installed
from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError
from pyro_vae.runs.config import Config
from pyro_vae.runs.export.graphs import graph_of, reason_of, solve_lower
from pyro_vae.runs.export.tensor_programs import (
    Encode,
    NoFormError,
    extreme_rows,
    log_weights,
    make_score,
    tensor_programs,
)
from pyro_vae.runs.export.torch_archive import pickles_in
from pyro_vae.runs.load import Run
from pyro_vae.runs.registry import build

SHAPE = (4,)


def untrained(likelihood="normal", **options):
    """A run as it is opened from a folder, of a model that was never trained, of four columns."""
    config = Config(hidden=(5,), latent_dim=3, likelihood=likelihood, **options)
    with seeded(0):
        vae = build(config, SHAPE).eval()
    return Run(Path("run"), config, {"data": {"name": "x", "shape": list(SHAPE)}}, vae)


@pytest.fixture
def opened(monkeypatch):
    """Has the exports open such a run."""

    def open_as(**options):
        run = untrained(**options)
        monkeypatch.setattr("pyro_vae.runs.export.written_graphs.load_run", lambda *_: run)
        return run

    return open_as


def exported(tmp_path, form):
    assert main(["export", "run", str(tmp_path / form), f"--{form}"]) == 0
    return tmp_path / form, json.loads((tmp_path / form / "interface.json").read_text())


def draws_of(run, rows=2, particles=4):
    g = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((rows, *SHAPE), 2.0), generator=g)
    return x, torch.randn(particles, rows, run.config.latent_dim, generator=g)


def expected(run, x, noise):
    """log w of the pair as it is written, at the z that a normal posterior makes of the noise."""
    with torch.no_grad():
        q = run.vae.posterior(x)
        z = q.mean + q.stddev * noise
    log_w = torch.stack([log_weights(run.vae, x, one) for one in z])
    return log_w, log_w.double().logsumexp(0) - math.log(len(noise))


def test_archives_of_torch_give_the_runs_numbers_of_any_rows_and_particles_without_a_pickle(opened, tmp_path):
    run = opened(likelihood="bernoulli")
    to, about = exported(tmp_path, "torch")
    assert about["left_out"] == {} and sorted(about["programs"]) == ["decode", "encode", "score"]
    rows = ["5 rows", "2 rows", "1 row", "13 rows"]
    assert about["programs"]["score"]["checked_on"][:6] == [*rows, "1 particle", "13 particles"]
    assert about["programs"]["decode"]["checked_on"] == [*rows, "3 extreme rows"]
    assert "Checked on 5 rows, 2 rows" in (to / "README.md").read_text()
    assert all(not pickles_in((to / one["file"]).read_bytes()) for one in about["programs"].values())
    assert not any(b"pyro_vae/" in path.read_bytes() for path in to.iterdir())  # no place of this machine
    score = torch.export.load(to / "score.pt2").module()
    for rows, particles in ((2, 4), (1, 1), (9, 2)):
        x, noise = draws_of(run, rows, particles)
        x = x.clamp(max=1)
        for got, want in zip(score(x, noise), expected(run, x, noise), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.export.load(to / "encode.pt2").module()(x), encode(run.vae, x))
    x[0, 0] = 0.5  # a grey value has no log p under a Bernoulli
    assert score(x, noise)[1].isnan().tolist() == [True] + 8 * [False]


def test_onnx_gives_the_runs_numbers_of_counts_too(opened, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'pyro-vae[onnx]'")
    run = opened(likelihood="poisson")
    to, about = exported(tmp_path, "onnx")
    assert about["left_out"] == {} and (to / "README.md").is_file()
    assert not any(b"pyro_vae/" in path.read_bytes() for path in to.iterdir())
    session = ort.InferenceSession(to / "score.onnx")
    for rows, particles in ((2, 4), (1, 1)):
        x, noise = draws_of(run, rows, particles)
        given = session.run(["log_w", "log_px"], {"x": x.numpy(), "noise": noise.numpy()})
        for got, want in zip(given, expected(run, x, noise), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    outside = {"x": x.numpy() + 0.5, "noise": noise.numpy()}
    assert np.isnan(session.run(["log_px"], outside)[0]).all()


@pytest.mark.skipif(installed("onnxruntime"), reason="onnxruntime is installed")
def test_without_the_extra_it_is_named(opened, tmp_path, capsys):
    opened()
    assert main(["export", "run", str(tmp_path / "o"), "--onnx"]) == 1
    assert "pip install 'pyro-vae[onnx]'" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("posterior", ["low_rank_normal", "mixture_normal"])
def test_draws_that_are_not_of_one_normal_a_latent_are_refused_by_name(posterior):
    run = untrained(posterior=posterior)
    with pytest.raises(NoFormError, match="one standard normal a latent"):
        dict(tensor_programs(run))["score"]()


def test_classes_have_no_mean_to_decode():
    run = untrained(likelihood="categorical", likelihood_options={"num_classes": 9})
    with pytest.raises(NoFormError, match="has no mean: x are classes"):
        dict(tensor_programs(run))["decode"]()


@pytest.mark.parametrize("likelihood", ["categorical", "columns"])
def test_a_class_that_is_none_makes_its_own_row_nan_and_no_other(likelihood):
    blocks = {"blocks": "normal:1,poisson:2,categorical:1:num-classes=4"}
    options = {"num_classes": 4} if likelihood == "categorical" else blocks
    program = dict(tensor_programs(untrained(likelihood=likelihood, likelihood_options=options)))["score"]()
    x = torch.tensor([[0.0, 1, 2, 3], [0, 0, 0, 4], [0, 0, 0, -1], [0, 0, 0, 0.5], [0, 0, 0, math.nan], [1, 0, 3, 0]])
    noise = torch.zeros(2, 6, 3)
    log_w, log_px = graph_of(program).module()(x, noise)
    assert log_px.isnan().tolist() == log_w[0].isnan().tolist() == [False, True, True, True, True, False]
    torch.testing.assert_close(log_w[:, [0, 5]], program.module(x[[0, 5]], noise[:, :2])[0])


def test_other_graphs_are_refused():
    run = untrained()
    other = Run(run.path, Config(model="hierarchical", latent_dim=3), run.record, run.vae)
    with pytest.raises(UsageError, match="'hierarchical' has another graph"):
        list(tensor_programs(other))


def test_another_number_is_never_written():
    run = untrained()
    program = make_score(run.vae, torch.randn(5, *SHAPE))
    log_w, log_px = program.module(*program.inputs.values())
    program.check({"log_w": log_w, "log_px": log_px}, "here")
    with pytest.raises(NoFormError, match="log_w is another number here than in the run's programs, by"):
        program.check({"log_w": log_w * (1 + 1e-4), "log_px": log_px}, "here")
    with pytest.raises(NoFormError, match="log_px"):
        program.check({"log_w": log_w, "log_px": log_px.where(log_px > log_px.min(), math.nan)}, "here")


class OnFive(Encode):
    """Right on five rows alone."""

    def forward(self, x):
        return super().forward(x) * x.shape[0] / 5


class OnDraws(Encode):
    """Right on what is not far out."""

    def forward(self, x):
        return super().forward(x.clamp(max=8.0))


@pytest.mark.parametrize(("wrong", "said"), [(OnFive, "on 2 rows, than"), (OnDraws, r"on \d extreme rows, than")])
def test_what_is_right_on_the_example_alone_is_never_written(wrong, said):
    run = untrained(likelihood="poisson")
    program = dict(tensor_programs(run))["encode"]()
    assert len(program.inputs["x"]) == 5 and program.extreme.inputs["x"].max() > program.inputs["x"].max()
    with pytest.raises(NoFormError, match=said):
        graph_of(replace(program, module=wrong(run.vae).eval()))


def test_extreme_rows_lie_in_the_support_and_have_every_gap():
    rows = extreme_rows(untrained(likelihood="bernoulli"))
    assert set(rows.unique().tolist()) == {0.0, 1.0}
    gaps = extreme_rows(untrained(missing=True)).isnan()
    assert gaps[-2].all() and gaps[-1].tolist() == [False, True, True, True] and not gaps[:-2].any()
    assert extreme_rows(untrained(likelihood="categorical", likelihood_options={"num_classes": 9})).max() <= 8


def test_a_graph_holds_at_the_edges_of_counts_with_gaps():
    run = untrained(likelihood="negative_binomial", missing=True)
    program = dict(tensor_programs(run))["score"]()
    assert program.extreme.inputs["x"].nan_to_num().max() >= 100 and program.extreme.inputs["x"].isnan().any()
    graph_of(program)


def test_a_triangular_system_is_solved_as_torch_solves_it():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(2, 4, 4, generator=g, dtype=torch.float64).tril() + 3 * torch.eye(4)
    b = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(solve_lower(a, b, upper=False), torch.linalg.solve_triangular(a, b, upper=False))
    with pytest.raises(NotImplementedError):
        solve_lower(a, b, upper=True)


def test_a_reason_names_the_operation():
    error = RuntimeError("long\nreport")
    error.__cause__ = ValueError("Error when translating node %e : call_function[target=torch.ops.aten.erfinv.default]")
    assert reason_of(error) == "the operation erfinv has no such form" and reason_of(ValueError("a\nb")) == "a"
