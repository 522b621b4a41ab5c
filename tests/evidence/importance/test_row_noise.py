"""noise="row": the bits of a row are its own, whatever stands beside it; equal rows err together, and means know it."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_vae import Evidence, compare, defensive, gaps, load_evidence, log_likelihood, per_step, save_evidence, widened
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.importance.noise import repeats_of
from tests.helpers.bits import same
from tests.helpers.gaussian import gaussian
from tests.helpers.importance import Chain, GammaPoisson, check_within_errors
from tests.helpers.small import binary, small_vae

by_row = partial(log_likelihood, noise="row", verbose=False)
FIELDS = ("log_px", "mc_se", "ess", "elbo", "elbo_se", "khat", "max_share", "jackknife", "samples")
TABLES = {
    "permuted": torch.randperm(70, generator=torch.Generator().manual_seed(1)),
    "a part": torch.arange(3, 66),
    "alone": torch.tensor([69]),
    "repeated": torch.tensor([5, 0, 5, 5, 69, 0]),
}
OPTIONS = {
    "plain": {"num_samples": 150},
    "defensive": {"num_samples": 60, "proposal": defensive(0.3)},
    "widened": {"num_samples": 60, "proposal": widened(1.2)},
    "many": {"num_samples": 4099},  # a prime above a block: 4096 and 3
    "target": {"num_samples": 50, "target_se": 0.1, "max_samples": 800},
}


def assert_same_rows(part, whole, rows, fields=FIELDS):
    for field in fields:
        a, b = getattr(part, field), getattr(whole, field)[rows]
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), field


@pytest.mark.parametrize("options", OPTIONS)
def test_rows_permuted_left_out_alone_and_repeated_have_their_own_bits(options):
    rows = 70 if options == "plain" else 8
    model = Chain(rows)
    whole = by_row(model.model, model.guide, model.x, **OPTIONS[options])
    check_within_errors(whole, model.log_px())
    for chosen in TABLES.values():
        chosen = chosen[chosen < rows]
        if len(chosen):
            assert_same_rows(by_row(model.model, model.guide, model.x[chosen], **OPTIONS[options]), whole, chosen)


def test_the_noise_of_blocks_has_no_such_bits():
    """Broken: what the test above is there for."""
    model = Chain(70)
    whole = log_likelihood(model.model, model.guide, model.x, num_samples=150, verbose=False)
    part = log_likelihood(model.model, model.guide, model.x[3:66], num_samples=150, verbose=False)
    assert not torch.equal(part.log_px, whole.log_px[3:66])


def test_a_network_in_float32_any_array_any_engine_and_any_batch(device):
    x, vae = torch.randn(9, 6, device=device), small_vae(likelihood=torch_normal, features=2, device=device)
    whole = by_row(vae.model, vae.guide, x, num_samples=100)
    each = [by_row(vae.model, vae.guide, x[i : i + 1], num_samples=100) for i in range(len(x))]
    assert torch.equal(torch.cat([one.log_px for one in each]), whole.log_px)
    traced = by_row(vae.model, vae.guide, x.flip(0), num_samples=100, engine="trace")
    assert "traced" in traced.engine_note and torch.equal(traced.log_px.flip(0), whole.log_px)
    table = np.asfortranarray(x.cpu().numpy()[2:].astype("float64"))
    with pytest.warns(UserWarning, match="converted"):
        assert torch.equal(by_row(vae.model, vae.guide, table, num_samples=100).log_px, whole.log_px[2:])


def torch_normal(h):
    loc, raw = h.chunk(2, -1)
    return dist.Normal(loc, raw.exp())


def test_contexts_are_part_of_a_row():
    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + c) / 2, 1.0))

    x, c = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.5, 0.0])
    found = by_row(model, guide, x, c, num_samples=200)
    assert found.log_px[0] == found.log_px[2] and found.repeats.tolist() == [2, 1, 2]
    noise = found.log_px - dist.Normal(c, 2**0.5).log_prob(x)
    assert noise[0] != noise[1]
    assert torch.equal(by_row(model, guide, x[1:], c[1:], num_samples=200).log_px, found.log_px[1:])


def test_the_error_of_a_mean_counts_the_noise_of_equal_rows_once():
    """Of 6 rows 25 times each: the spread of the mean over seeds is what is said, five times that of 150 rows apart."""
    model = GammaPoisson()
    distinct = [by_row(model.model, model.guide, model.x[:6], num_samples=30, seed=seed) for seed in range(25)]
    means = torch.stack([e.log_px.mean() for e in distinct])
    said = torch.tensor([e.summary()["log_px_mc_se"] for e in distinct]).mean().item()
    assert abs(means.std().item() / said - 1) < 4 / math.sqrt(2 * 24) + 0.1  # an error of its own, and few particles
    one = by_row(model.model, model.guide, model.x, num_samples=30)
    assert one.repeats.tolist() == [25] * 150 and one.log_px.mean() == pytest.approx(distinct[0].log_px.mean().item())
    summary, naive = one.summary(), one.mc_se.square().sum().sqrt().item() / 150
    assert summary["log_px_mc_se"] == pytest.approx(distinct[0].summary()["log_px_mc_se"], rel=1e-12)
    assert summary["log_px_mc_se"] == pytest.approx(5 * naive, rel=1e-12) and summary["noise"] == "row"
    assert summary["elbo_mc_se"] == pytest.approx(distinct[0].summary()["elbo_mc_se"], rel=1e-12)
    steps = per_step(one, torch.ones(150))
    assert steps.mc_se == pytest.approx(summary["log_px_mc_se"], rel=1e-12)
    other = by_row(model.model, model.guide, model.x, num_samples=30, seed=1)
    compared = compare({"a": one, "b": other}).models[1].difference_mc_se
    assert compared == pytest.approx(math.hypot(summary["log_px_mc_se"], other.summary()["log_px_mc_se"]), rel=1e-12)
    split = gaps(model.model, model.guide, model.x, log_px=one, steps=2, num_samples=20, verbose=False)
    assert split.summary()["log_px"]["mc_se"] == pytest.approx(summary["log_px_mc_se"], rel=1e-12)


@pytest.fixture
def chain():
    model = Chain(9)
    return model, by_row(model.model, model.guide, model.x, num_samples=100)


def test_it_is_merged_resumed_and_read_to_the_bit(chain, tmp_path):
    model, whole = chain
    run = partial(by_row, model.model, model.guide, model.x)
    parts = [run(num_samples=100, rows=range(4, 9)), run(num_samples=100, rows=range(4))]
    assert same(Evidence.merge(parts), whole) and Evidence.merge(parts).noise == "row"
    halves = [run(num_samples=100, particles=range(a, a + 50)) for a in (50, 0)]
    assert same(Evidence.merge(halves), whole)
    save_evidence(halves[1], tmp_path / "half.safetensors")
    half = load_evidence(tmp_path / "half.safetensors")
    assert half.noise == "row" and torch.equal(half.repeats, torch.ones(9))
    assert same(run(num_samples=100, resume=half), whole)
    table = Evidence.from_csv(whole.rows_csv(), num_samples=100, seed=0, noise="row")
    assert table.summary()["log_px_mc_se"] == whole.summary()["log_px_mc_se"]
    assert math.isnan(repeats_of("row", None, 1).item())


def test_noises_are_not_mixed(chain):
    model, whole = chain
    block = log_likelihood(model.model, model.guide, model.x, num_samples=100, verbose=False)
    with pytest.raises(UsageError, match="noise 'block' and 'row' cannot be put together"):
        by_row(model.model, model.guide, model.x, num_samples=200, resume=block)
    with pytest.raises(UsageError, match="noise 'row' and 'block' cannot be put together"):
        log_likelihood(model.model, model.guide, model.x, num_samples=200, resume=whole, verbose=False)
    with pytest.raises(UsageError, match="cannot be put together"):
        Evidence.merge([block, whole])
    with pytest.raises(UsageError, match="'a' is of noise='block' and 'b' of noise='row'"):
        compare({"a": block, "b": whole})
    with pytest.raises(UsageError, match="noise='rows': choose one of block, row"):
        log_likelihood(model.model, model.guide, model.x, noise="rows")


def test_a_guide_with_parameters_of_its_rows_is_refused():
    guide, x = AutoNormal(gaussian), torch.tensor([0.0, 1.0])
    guide(x)
    with pytest.raises(ProgramError, match="this guide has parameters for each of its 2 rows"):
        by_row(gaussian, guide, x, num_samples=50)


def test_k_particles_as_rows_and_one_by_one():
    """Programs that do not broadcast have their own bits, too."""
    vae = small_vae()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.posterior(x.view(len(x), -1)))

    x = binary(5)
    whole = by_row(vae.model, guide, x, num_samples=30, vectorize_particles=False)
    assert whole.vectorizing == "loop"
    part = by_row(vae.model, guide, x[[4, 1]], num_samples=30, vectorize_particles=False)
    assert torch.equal(part.log_px, whole.log_px[[4, 1]])
