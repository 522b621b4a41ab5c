"""Importance sampling against exact truths: errors, bias, tails, proposals, and the same numbers however it is run."""

import errno
import itertools
import math
import os
import resource
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal
from pyro_vae.data import dequantize
from pyro_vae.errors import (
    DataError,
    DeviceMemoryError,
    Interrupted,
    ProgramError,
    ShapeError,
    StorageError,
    SupportError,
    UnreliableError,
    UsageError,
)
from pyro_vae.evidence.importance import sampler
from pyro_vae.evidence.importance.accumulator import RowBlock, WeightSums
from pyro_vae.evidence.importance.pareto import LargestWeights, gpd_shape, khat_threshold, pareto_khat, tail_size
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal, defensive, widen, widened
from pyro_vae.evidence.importance.result import DIAGNOSTICS, ROW_FIELDS, Evidence
from pyro_vae.evidence.importance.storage import load_evidence, save_evidence
from pyro_vae.programs.measure import dominating, measure_of
from tests.helpers.bits import same
from tests.helpers.importance import (
    MODELS,
    Chain,
    check_arviz,
    check_flags,
    check_slopes,
    check_unbiased,
    check_within_errors,
    gaussian_weights,
    log_likelihood,
    of_weights,
    pareto_rows,
)

PROPOSALS = [GUIDE, defensive(0.2), widened(1.3), Proposal(weight=0.1, factor=1.2)]


# truth


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("oracle", MODELS)
def test_log_px_is_exact_within_its_error(oracle, proposal):
    o = oracle()
    check_within_errors(log_likelihood(o.model, o.guide, o.x, num_samples=2000, proposal=proposal), o.log_px())


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("oracle", MODELS)
def test_every_proposal_is_unbiased_in_the_natural_scale(oracle, proposal):
    o = oracle()
    check_unbiased(o.model, o.guide, o.x, o.log_px(), proposal)


def test_unbiased_one_particle_at_a_time_too():
    o = Chain(60)
    check_unbiased(o.model, o.guide, o.x, o.log_px(), defensive(0.3), k=5, vectorize_particles=False)


def test_the_prior_gets_its_share_of_the_particles():
    """⌊wK⌋ or one more, from block to block; the share of a run is w to 1 / K, its mean over starts exactly w."""
    w = defensive(0.1)
    assert sum(w.from_prior(k, k + 64, 0.37) for k in range(0, 6400, 64)) == 640
    starts = (torch.arange(1000) + 0.5) / 1000
    assert sum(w.from_prior(0, 5, o) for o in starts.tolist()) / 1000 == pytest.approx(0.5)
    assert all(GUIDE.from_prior(0, 100, o) == 0 for o in (0.0, 0.999999))


def check_fractions_of_particles():
    """wK = 0.5: mean of p̂ / p is 1 within 4 SE over 300 runs, whose rows share a start; half of them have no particle of p."""
    o = Chain(64)
    runs = [log_likelihood(o.model, o.guide, o.x, num_samples=5, proposal=defensive(0.1), seed=s) for s in range(300)]
    means = torch.stack([(run.log_px - o.log_px()).exp().mean() for run in runs])
    assert (means.mean() - 1).abs() < 4 * means.std() / 300**0.5


def test_fractions_of_particles_are_unbiased(monkeypatch):
    check_fractions_of_particles()
    monkeypatch.setattr(sampler, "stream", lambda *_: 0)
    with pytest.raises(AssertionError):
        check_fractions_of_particles()


def narrow_guide(x):
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(0.3 * x, 0.25))
        pyro.sample("z2", dist.Normal(0.4 * z1 + 0.4 * x, 0.25))


def test_a_defensive_mixture_bounds_the_weights():
    """w ≤ p(x | z) / weight: with a guide far too narrow it is still reliable where the guide alone is not."""
    o = Chain()
    alone, mixed = (
        log_likelihood(o.model, narrow_guide, o.x, num_samples=5000, proposal=p) for p in (GUIDE, defensive(0.1))
    )
    assert len(alone.flagged) > 100 and alone.khat.median() > 0.7
    assert len(mixed.flagged) < len(alone.flagged) / 4 and mixed.khat.median() < 0
    assert mixed.mc_se.mean() < alone.mc_se.mean() / 3
    good = mixed.reliable
    off = (mixed.log_px - o.log_px())[good]
    assert off.mean().abs() < 4 * mixed.mc_se[good].square().sum().sqrt() / len(off)
    densest = dist.Normal(0.0, 1.0).log_prob(torch.zeros(()))
    bound = densest - math.log(0.1) - mixed.log_px - math.log(5000)
    assert (mixed.max_share.log() <= bound + 1e-6).all()


def test_widening_helps_a_narrow_guide():
    o = Chain()
    alone, wide = (
        log_likelihood(o.model, narrow_guide, o.x, num_samples=2000, proposal=p) for p in (GUIDE, widened(4.0))
    )
    assert len(wide.flagged) < 5 < 100 < len(alone.flagged) and wide.elbo.mean() > alone.elbo.mean() - 5
    check_within_errors(wide, o.log_px())


# bias


def test_bias_falls_as_1_over_k_and_the_jackknifes_as_1_over_k_squared():
    check_slopes()


def test_the_jackknife_is_leave_one_out():
    """Against K L_K − (K − 1) mean_k L of all but k, by hand; for K > 64 the smaller weights enter by their squares only."""
    for k, atol in ((2, 1e-12), (7, 1e-12), (64, 1e-12), (65, 2e-5), (400, 1e-6), (3000, 1e-7)):
        log_w = 2 * torch.randn(k, 5, dtype=torch.float64)
        moments = WeightSums(5, k)
        for part in log_w.split(17):
            moments.add(part)
        without = torch.stack([torch.cat([log_w[:i], log_w[i + 1 :]]).logsumexp(0) for i in range(k)]) - math.log(k - 1)
        direct = k * (log_w.logsumexp(0) - math.log(k)) - (k - 1) * without.mean(0)
        torch.testing.assert_close(moments.jackknife, direct, rtol=0, atol=atol)


def test_the_jackknife_of_one_weight_that_is_all():
    moments = WeightSums(1)
    moments.add(torch.tensor([[-900.0], [0.0], [-901.0]], dtype=torch.float64))
    without = [
        torch.tensor(w).logsumexp(0).item() - math.log(2) for w in ([0.0, -901.0], [-900.0, -901.0], [-900.0, 0.0])
    ]
    assert moments.jackknife.item() == pytest.approx(-3 * math.log(3) - 2 * np.mean(without), rel=1e-6)
    assert moments.max_share.item() == 1


def test_the_residual_bias_is_the_delta_methods():
    """−½ (1/ESS − 1/K) in the mean over repeats, against the bias that is known: −½ Var(w) / K, Var(w) = 4/√7 − 1."""
    moments = WeightSums(20_000, 200)
    moments.add(gaussian_weights(200, 20_000))
    ess = Evidence(*torch.zeros(5, 20_000), num_samples=200, seed=0)
    estimated = -0.5 * (1 / moments.ess - 1 / 200)
    assert estimated.mean() == pytest.approx(-0.5 * (4 / 7**0.5 - 1) / 200, rel=0.03)
    assert len(ess) == 20_000


# k̂


def test_khat_is_arvizs_frozen():
    check_arviz()


def test_khat_is_arvizs():
    arviz = pytest.importorskip("arviz_stats.base")
    rng = np.random.default_rng(0)
    for k in (25, 99, 225, 226, 1000, 5000, 20_000):
        log_w = np.stack(
            [rng.normal(size=k), 3 * rng.normal(size=k), rng.standard_t(3, size=k), rng.gumbel(size=k) - 800], 1
        )
        _, theirs = arviz.array_stats.psislw(-log_w.T)
        np.testing.assert_allclose(pareto_khat(torch.tensor(log_w)).numpy(), theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 0.7, 1.0])
def test_khat_of_a_generalised_pareto_is_its_shape(shape):
    """y = ((u^-k) − 1) / k: the mean of 200 fits of 500 values, freed of its prior, within 4 SE plus 0.01 (bias O(1/M))."""
    u = torch.rand(200, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = gpd_shape((u.pow(-shape).sub(1) / shape).sort(1).values)
    free = (k * 510 - 5) / 500
    assert (free.mean() - shape).abs() < 4 * free.std() / 200**0.5 + 0.01


def test_khat_where_there_is_no_tail_or_none_known():
    same = torch.zeros(1000, 1, dtype=torch.float64)
    assert pareto_khat(same).item() == -math.inf
    assert pareto_khat(torch.randn(24, 2)).isnan().all() and pareto_khat(torch.randn(25, 2)).isfinite().all()
    gone = torch.full((1000, 1), -math.inf)
    assert pareto_khat(gone).isnan().all()
    with pytest.raises(ShapeError, match=r"\(K, N\), got shape \(5,\)"):
        pareto_khat(torch.zeros(5))


def test_khat_does_not_move_with_a_constant():
    log_w = 2 * torch.randn(2000, 3, dtype=torch.float64)
    torch.testing.assert_close(pareto_khat(log_w + 20_000), pareto_khat(log_w), rtol=0, atol=1e-7)


def test_the_tail_is_streamed():
    log_w = 3 * torch.randn(5000, 4, dtype=torch.float64)
    for step in (1000, 37):
        top = LargestWeights(4, tail_size(5000) + 64)
        for part in log_w.split(step):
            top.add(part)
            assert top.values.shape[1] <= 2 * top.keep + step
        assert torch.equal(top.khat(5000), pareto_khat(log_w))


def test_a_tail_that_was_let_go_is_not_made_up():
    top = LargestWeights(1, 64)
    top.add(torch.arange(1000.0, dtype=torch.float64).flip(0)[:, None])
    top.add(torch.full((4000, 1), -5.0, dtype=torch.float64))
    assert top.khat(5000).isnan().all()


def test_thresholds():
    assert khat_threshold(100) == 0.5 and khat_threshold(10**6) == 0.7 and khat_threshold(1) == -math.inf
    assert khat_threshold(1000) == pytest.approx(2 / 3)


# flags


def test_flags_are_where_the_shape_is_above_the_threshold():
    evidence = of_weights(pareto_rows([0.2, 0.3, 1.2, 0.4, 1.5]))
    check_flags(evidence)
    s = evidence.summary()
    assert s["rows_flagged"] == 2 and s["khat_max"] > 1 and s["khat_threshold"] == 0.7
    assert "2 flagged (k̂ above 0.70)" in str(evidence) and "(no bound)" in str(evidence)
    few = of_weights(pareto_rows([0.2, 0.55], k=100))
    assert few.threshold.tolist() == [0.5, 0.5]


def test_equal_weights_are_reliable_whatever_khat():
    evidence = of_weights(1e-5 * torch.randn(2000, 3, dtype=torch.float64) - 500)
    assert len(evidence.flagged) == 0
    assert "25 particles" in str(of_weights(torch.randn(24, 2, dtype=torch.float64)))


def test_weights_of_zero_are_flagged():
    evidence = of_weights(torch.full((100, 2), -math.inf, dtype=torch.float64))
    assert evidence.flagged.tolist() == [0, 1] and evidence.summary()["max_share"] is None


def test_strict_raises_and_names_the_rows():
    o = Chain(40)
    with pytest.raises(
        UnreliableError, match=r"in \d+ of 40 rows, the first \[\d+, .*k̂ is above 0.67.*defensive"
    ) as caught:
        log_likelihood(o.model, narrow_guide, o.x, num_samples=1000, strict=True)
    assert len(caught.value.result) == 40 and len(caught.value.result.flagged) > 20
    assert len(log_likelihood(o.model, o.guide, o.x, num_samples=1000, strict=True).flagged) == 0


# a target error


def test_particles_are_added_until_the_error_is_met():
    o = Chain(150)
    evidence = log_likelihood(o.model, o.guide, o.x, num_samples=100, target_se=0.02)
    assert (evidence.mc_se <= 0.02).all() and len(evidence.unmet.nonzero()) == 0 and evidence.target_se == 0.02
    assert evidence.samples.min() >= 100 and evidence.num_samples == evidence.samples.max() > 100
    assert (evidence.ess <= evidence.samples).all()
    for rows in (range(0, 64), range(64, 128), range(128, 150)):
        k = int(evidence.samples[rows.start])
        assert (evidence.samples[rows.start : rows.stop] == k).all()
        fixed = log_likelihood(o.model, o.guide, o.x, num_samples=k, rows=rows)
        assert torch.equal(fixed.log_px, evidence.log_px[rows.start : rows.stop])


def test_a_target_that_cannot_be_met_is_flagged():
    o = Chain(40)
    evidence = log_likelihood(o.model, o.guide, o.x, num_samples=100, target_se=0.01, max_samples=300)
    assert evidence.num_samples == 300 and len(evidence.flagged) > 30 and evidence.unmet.any()
    assert "or ± above 0.01" in str(evidence)
    with pytest.raises(UnreliableError, match=r"above target_se=0.01 \(K up to 300, guide\).*max_samples="):
        log_likelihood(o.model, o.guide, o.x, num_samples=100, target_se=0.01, max_samples=300, strict=True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target_se": 0.0}, "above 0"),
        ({"target_se": 0.1, "max_samples": 10}, "below num_samples"),
        ({"target_se": 0.1, "particles": range(10)}, "one of the two"),
        ({"rows": range(3, 40)}, "whole blocks"),
        ({"rows": range(0, 20)}, "whole blocks"),
        ({"rows": range(64, 128)}, "x has 40 rows"),
        ({"particles": range(50, 101)}, "num_samples=100"),
        ({"particles": range(0)}, "num_samples=100"),
    ],
)
def test_what_cannot_be_run_is_refused(wrong, says):
    o = Chain(40)
    with pytest.raises(UsageError, match=says):
        log_likelihood(o.model, o.guide, o.x, **{"num_samples": 100, **wrong})


# the same numbers, however they are run


@pytest.fixture(scope="module")
def neural():
    """Matrix products and 150 rows: three blocks, of 64, 64 and 22 rows, whose particles come 64, 64 and 186 at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(StandardNormal(3), Conditional(MLP(3, 20, (16,)), bernoulli), Conditional(MLP(20, 6, (16,)), normal))
        return vae, torch.bernoulli(torch.full((150, 20), 0.3))


@pytest.mark.parametrize("proposal", [GUIDE, defensive(0.15)])
def test_parts_merge_to_the_whole_in_any_order(neural, proposal):
    vae, x = neural
    run = partial(log_likelihood, vae.model, vae.guide, x, num_samples=500, proposal=proposal)
    whole = run()
    parts = [run(particles=r) for r in (range(0, 70), range(70, 310), range(310, 500))]
    assert [p.num_samples for p in parts] == [70, 240, 190]
    for order in itertools.permutations(parts):
        assert same(Evidence.merge(order), whole)
    by_rows = [run(rows=r) for r in (range(64, 128), range(128, 150), range(0, 64))]
    assert [len(p) for p in by_rows] == [64, 22, 64] and same(Evidence.merge(by_rows), whole)
    corners = [
        run(rows=r, particles=k) for r in (range(0, 128), range(128, 150)) for k in (range(201, 500), range(201))
    ]
    assert same(Evidence.merge(corners), whole)
    assert not same(run(seed=1), whole)


def test_particles_are_added_to_what_is_there(neural):
    vae, x = neural
    seen = []

    def model(x):
        seen.append(1)
        return vae.model(x)

    run = partial(log_likelihood, model, vae.guide, x)
    start = run(num_samples=100)
    before = start.log_px.clone()
    seen.clear()
    grown = run(num_samples=500, resume=run(num_samples=300, resume=start))
    steps = len(seen)
    assert same(grown, run(num_samples=500)) and torch.equal(start.log_px, before)
    seen.clear()
    assert same(run(num_samples=500, resume=grown), grown) and len(seen) < 10 < steps
    half = run(num_samples=500, particles=range(250))
    assert same(run(num_samples=500, resume=half), grown)
    assert same(run(num_samples=500, resume=run(num_samples=500, rows=range(64, 128))), grown)


@pytest.mark.parametrize("calls", [8, 15])
def test_an_interrupted_evaluation_goes_on(neural, calls):
    vae, x = neural
    left = [calls]

    def model(x):
        if len(x) > 1 and not torch.is_grad_enabled():
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return vae.model(x)

    whole = log_likelihood(vae.model, vae.guide, x, num_samples=500)
    with pytest.raises(Interrupted, match="go on with resume=") as caught:
        log_likelihood(model, vae.guide, x, num_samples=500)
    so_far = caught.value.result
    assert 0 < so_far.samples[-1] < 500 and same(
        log_likelihood(model, vae.guide, x, num_samples=500, resume=so_far), whole
    )


def test_saved_particles_are_added_to(neural, tmp_path):
    vae, x = neural
    run = partial(log_likelihood, vae.model, vae.guide, x, num_samples=500)
    parts = [run(particles=r) for r in (range(0, 70), range(130, 500))]
    for i, part in enumerate(parts):
        save_evidence(part, tmp_path / f"{i}.safetensors")
    again = [load_evidence(tmp_path / f"{i}.safetensors") for i in range(2)]
    assert all(same(a, b) and a.summary() == b.summary() for a, b in zip(again, parts, strict=True))
    assert same(run(resume=Evidence.merge(again)), run())
    assert same(run(num_samples=700, resume=Evidence.merge(again)), run(num_samples=700))


def test_what_is_no_saved_evidence_is_refused(tmp_path):
    (tmp_path / "x").write_text("nothing")
    for name in ("x", "y"):
        with pytest.raises(DataError, match=f"{name} holds no evidence"):
            load_evidence(tmp_path / name)
    with pytest.raises(UsageError, match="holds no particles"):
        save_evidence(Evidence(*torch.zeros(5, 3), num_samples=1, seed=0), tmp_path / "z")


@pytest.fixture
def saved(neural, tmp_path):
    """Evidence, and the file that it was saved to."""
    vae, x = neural
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=50)
    save_evidence(evidence, tmp_path / "e.safetensors")
    return evidence, tmp_path / "e.safetensors"


@pytest.mark.parametrize("limit", [0, 1, 512, 4096])
def test_a_full_disk_leaves_the_evidence_that_was_saved_before(neural, saved, limit):
    (vae, x), (evidence, file) = neural, saved
    more = log_likelihood(vae.model, vae.guide, x, num_samples=2000, resume=evidence)
    before = file.read_bytes()
    bounds, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, bounds[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*e\.safetensors.*What was saved before is as it was"):
            save_evidence(more, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in file.parent.iterdir()] == [file.name] and file.read_bytes() == before
    assert same(load_evidence(file), evidence)
    save_evidence(more, file)  # there is room again
    assert same(load_evidence(file), more)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_the_system_refuses_while_evidence_is_saved(saved, monkeypatch, code, call):
    evidence, file = saved

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=os.strerror(code)) as caught:
            save_evidence(evidence, file)
    assert caught.value.exit_code == 6 and list(file.parent.iterdir()) == [file]
    assert same(load_evidence(file), evidence)
    with pytest.raises(StorageError, match="The folder is gone"):
        save_evidence(evidence, file.parent / "nowhere" / file.name)


def hollow(place, saved):
    with place.open("wb") as file:
        file.truncate(3 * 2**30)


UNREADABLE = {
    "sparse file of 3 GiB": (hollow, "most of it is holes"),
    "pipe": (lambda place, saved: os.mkfifo(place), "not a regular file"),
    "folder": (lambda place, saved: place.mkdir(), "not a regular file"),
    "link": (lambda place, saved: place.symlink_to(saved), "a link, and links are not followed"),
    "link to nothing": (lambda place, saved: place.symlink_to("nowhere"), "a link, and links are not followed"),
    "nothing": (lambda place, saved: None, "No such file"),
}
LOADING = """
import resource, sys, time
from pyro_vae import load_evidence
from pyro_vae.errors import DataError
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    load_evidence(sys.argv[1])
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start)
"""


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_plain_file_is_refused_at_once(saved, tmp_path, kind):
    make, why = UNREADABLE[kind]
    make(tmp_path / "given", saved[1])
    run = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path / "given")], capture_output=True, text=True, timeout=120
    )
    said, numbers = run.stdout.splitlines()
    assert said.startswith(f"{tmp_path}/given holds no evidence, as it cannot be read") and why in said
    grown, seconds = map(float, numbers.split())
    assert grown < 2**16 and seconds < 10  # KiB


def test_the_number_does_not_depend_on_the_chunk(neural):
    vae, x = neural
    vae = vae.double()
    run = partial(log_likelihood, vae.model, vae.guide, x.double(), num_samples=200, proposal=defensive(0.1))
    default = run()
    for chunk_size in (50, 1000, 10_000, 10**6):
        other = run(chunk_size=chunk_size)
        for field in ROW_FIELDS + DIAGNOSTICS:
            torch.testing.assert_close(getattr(other, field), getattr(default, field), rtol=1e-9, atol=1e-9, msg=field)
    vae.float()


def test_no_pass_of_the_model_takes_more_than_a_chunk():
    o, seen = Chain(150), []

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            seen.append(z2.numel())
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    log_likelihood(model, o.guide, o.x, num_samples=30, chunk_size=50)
    assert max(seen[5:]) <= 50 and len(seen) > 150 * 30 / 50


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_too_little_memory_takes_smaller_chunks(error):
    o = Chain(150)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            if z2.numel() > 300:
                raise error
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    small = log_likelihood(model, o.guide, o.x, num_samples=100)
    torch.testing.assert_close(
        small.log_px, log_likelihood(o.model, o.guide, o.x, num_samples=100).log_px, rtol=0, atol=1e-12
    )


def test_what_does_not_fit_at_all_is_not_hidden():
    o = Chain(3)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            if z1.dim() > 1:  # under the particles, however few
                raise torch.OutOfMemoryError("out of memory")
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    with pytest.raises(DeviceMemoryError, match=r"the smallest chunk of particles on cpu does not fit.*out of memory"):
        log_likelihood(model, o.guide, o.x, num_samples=10)


def test_the_ledger_is_small():
    """Floats held after K particles, by row: they grow with √K at most."""

    def held(k):
        ledger = RowBlock(range(64), k)
        for block in range(-(-k // ledger.size)):
            ledger.take(block, 0, torch.randn(ledger.extent(block), 64, dtype=torch.float64))
        tensors = [ledger.moments.sums, ledger.moments.top.values, *ledger.waiting.values()]
        tensors += [p for pieces in ledger.pieces.values() for p in pieces.values()]
        return sum(t.numel() for t in tensors) / 64

    few, many = held(1000), held(16_000)
    assert many < 2 * (3 * 16_000**0.5 + 64) + 64 + 10 and many < 4 * few


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (lambda run: [], "nothing to merge"),
        (lambda run: [run(), run()], "there twice"),
        (
            lambda run: [run(particles=range(60)), run(particles=range(50, 100))],
            "particles 50 to 99 of rows 0 to 39 are there tw",
        ),
        (lambda run: [run(particles=range(50)), run(particles=range(50, 100), seed=1)], "seed 1 and 0"),
        (lambda run: [run(particles=range(50)), run(particles=range(50, 100), proposal=widened(2.0))], "proposal"),
        (lambda run: [run(particles=range(50)), run(particles=range(50, 200), num_samples=200)], "same num_samples"),
        (lambda run: [run(), Evidence.from_csv(run().rows_csv(), num_samples=100, seed=0)], "holds no particles"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, says):
    o = Chain(40)

    def run(num_samples=100, **options):
        return log_likelihood(o.model, o.guide, o.x, num_samples=num_samples, **options)

    with pytest.raises(UsageError, match=says):
        Evidence.merge(parts(run))


def test_rows_that_are_left_out_are_missed():
    o = Chain(150)
    parts = [log_likelihood(o.model, o.guide, o.x, num_samples=10, rows=r) for r in (range(0, 64), range(128, 150))]
    with pytest.raises(UsageError, match="rows before row 128 are missing"):
        Evidence.merge(parts)
    with pytest.raises(UsageError, match="of other data: x has 40 rows"):
        log_likelihood(o.model, o.guide, o.x[:40], num_samples=10, resume=parts[0])
    with pytest.raises(UsageError, match="seed 0 and 3"):
        log_likelihood(o.model, o.guide, o.x, num_samples=10, resume=parts[0], seed=3)


def test_diagnostics_come_back_from_csv():
    o = Chain(40)
    evidence = log_likelihood(o.model, o.guide, o.x, num_samples=100)
    again = Evidence.from_csv(evidence.rows_csv(), num_samples=100, seed=0, measure="continuous")
    assert same(again, evidence) and again.summary() == evidence.summary()
    lines = [",".join(line.split(",")[:6]) for line in evidence.rows_csv().splitlines()]
    old = Evidence.from_csv("\n".join(lines), num_samples=100, seed=0)
    assert same(old, evidence, ROW_FIELDS) and "rows_flagged" not in old.summary() and "flagged" not in str(old)


# units


def test_bits_per_dim():
    evidence = of_weights(torch.full((3, 2), -6 * math.log(2), dtype=torch.float64))
    assert evidence.bits_per_dim(3).tolist() == pytest.approx([2.0, 2.0])
    with pytest.raises(UsageError, match="event_size"):
        evidence.bits_per_dim(0)


def test_dequantised_evidence_is_a_bound_on_the_counts():
    """One column of counts, P(x) = F((x + 1) / 5) − F(x / 5) for a normal F: the bound lies below it, by Jensen's gap."""
    d = dist.Normal(torch.tensor(0.4, dtype=torch.float64), 0.3)

    def model(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(0.4 + 0 * z, 0.3), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))

    x = torch.arange(5.0, dtype=torch.float64)
    exact = (d.cdf((x + 1) / 5) - d.cdf(x / 5)).log()
    y = dequantize(5)(x.repeat(4000), torch.Generator().manual_seed(0))
    found = log_likelihood(model, guide, y, num_samples=1, verbose=False).of_counts(5, 1)
    bound = found.log_px.view(4000, 5)
    mean, se = bound.mean(0), bound.std(0) / 4000**0.5
    assert (mean < exact + 4 * se).all() and (exact - mean < 0.1).all()
    assert found.measure == "counts, dequantised" and dominating(found.measure) == "counting"
    with pytest.raises(UsageError, match="density"):
        found.of_counts(5, 1)


def test_only_counts_are_dequantised():
    for bad in (-1.0, 5.0, 0.5, math.nan):
        with pytest.raises(SupportError, match="row"):
            dequantize(5)(torch.tensor([[bad]]))
    with pytest.raises(UsageError):
        dequantize(1)


@pytest.mark.parametrize(
    ("fn", "measure"),
    [
        (dist.Bernoulli(0.5), "binary"),
        (dist.Poisson(1.0), "counts"),
        (dist.Binomial(3, 0.5), "counts"),
        (dist.Categorical(torch.ones(3)), "categories"),
        (dist.Normal(0.0, 1.0), "continuous"),
        (dist.Beta(1.0, 1.0), "continuous"),
        (dist.Normal(0.0, 1.0).expand([3]).to_event(1), "continuous"),
    ],
)
def test_the_measure_is_the_supports(fn, measure):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", fn, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = fn.sample((1,))
    assert measure_of(model, guide, x) == measure
    assert log_likelihood(model, guide, x.float(), num_samples=2).summary()["measure"] == measure


def test_a_bare_factor_is_a_score():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("extra", -x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert measure_of(model, guide, torch.zeros(1)) == "continuous x score"


# what is refused


def test_nan_weights_name_row_and_site():
    o = Chain(40)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(torch.where(x == 0, torch.nan, z2), 1.0), obs=x)

    o.x[[3, 7]] = 0.0
    with pytest.raises(ProgramError, match=r"NaN or \+inf for rows \[3, 7\], from site 'x' of the model"):
        log_likelihood(model, o.guide, o.x, num_samples=10)


@pytest.mark.parametrize("d", [dist.Gamma(2.0, 1.0), dist.Delta(torch.zeros(())), dist.Categorical(torch.ones(3))])
def test_only_location_and_scale_can_be_widened(d):
    with pytest.raises(ProgramError, match=rf"site 'z' of the guide is a {type(d).__name__}.*defensive"):
        widen(d, 2.0, "z")


@pytest.mark.parametrize(
    "d",
    [
        dist.Normal(1.0, 2.0),
        dist.StudentT(5.0, 1.0, 2.0),
        dist.Laplace(torch.ones(2), 2.0).to_event(1),
        dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        dist.LowRankMultivariateNormal(torch.ones(2), torch.ones(2, 1), torch.ones(2)),
        dist.Normal(torch.ones(3, 2), 2.0).to_event(1).expand([3]),
    ],
)
def test_widening_multiplies_the_standard_deviation(d):
    wide = widen(d, 3.0, "z")
    torch.testing.assert_close(wide.variance, 9 * d.variance)
    torch.testing.assert_close(wide.mean, d.mean)
    assert wide.shape() == d.shape()


def test_widening_a_lognormal_is_in_its_logarithm():
    wide = widen(dist.LogNormal(0.3, 0.5), 2.0, "z")
    assert (wide.loc, wide.scale) == (0.3, 1.0)
    flow = dist.TransformedDistribution(dist.Normal(0.3, 0.5), [dist.transforms.ExpTransform()])
    z = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(widen(flow, 2.0, "z").log_prob(z), wide.log_prob(z))


@pytest.mark.parametrize(
    "wrong", [partial(defensive, 1.0), partial(defensive, -0.1), partial(widened, 0.0), partial(widened, math.inf)]
)
def test_proposals_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_modules_are_in_eval_mode_whatever_the_proposal():
    vae = VAE(
        StandardNormal(2),
        Conditional(nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)), bernoulli),
        Conditional(nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)), normal),
    )
    x = torch.bernoulli(torch.full((7, 6), 0.3))
    first, second = (
        log_likelihood(vae.train(mode).model, vae.guide, x, num_samples=30, proposal=Proposal(0.2, 1.5))
        for mode in (True, False)
    )
    assert same(first, second)
