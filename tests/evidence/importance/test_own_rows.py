"""Guides with parameters of each row (AutoNormal) run on all rows or none: they are one block, however many they are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_vae import bracket, decompose, load_evidence, log_likelihood, save_evidence
from pyro_vae.errors import UsageError
from pyro_vae.evidence.importance.weighing import WeighingEngine
from tests.helpers.gaussian import gaussian

ROWS = 150


@pytest.fixture
def pair():
    """The exact posteriors N(x / 2, 1 / 2), a little wide, as AutoNormal has them; the rows; log p(x)."""
    x = torch.randn(ROWS, generator=torch.Generator().manual_seed(0)) * 1.4
    guide = AutoNormal(gaussian)
    guide(x)
    guide.locs.z.data, guide.scales.z = x / 2, torch.full((ROWS,), 0.8)
    return guide, x, dist.Normal(0.0, 2**0.5).log_prob(x)


def test_log_px_of_more_rows_than_a_block_has(pair):
    guide, x, exact = pair
    found = log_likelihood(gaussian, guide, x, num_samples=500, verbose=False)
    assert ((found.log_px - exact).abs() < 4 * found.mc_se).all() and not len(found.flagged)


def test_it_goes_on_and_is_saved(pair, tmp_path):
    guide, x, _ = pair
    whole = log_likelihood(gaussian, guide, x, num_samples=400, verbose=False)
    half = log_likelihood(gaussian, guide, x, num_samples=200, verbose=False)
    save_evidence(half, tmp_path / "half.safetensors")
    half = load_evidence(tmp_path / "half.safetensors")
    again = log_likelihood(gaussian, guide, x, num_samples=400, resume=half, verbose=False)
    assert torch.equal(again.log_px, whole.log_px) and torch.equal(again.mc_se, whole.mc_se)


def test_parts_of_the_rows_are_refused_and_other_rows_too(pair):
    guide, x, _ = pair
    with pytest.raises(UsageError, match="start at a multiple of 150"):
        log_likelihood(gaussian, guide, x, num_samples=10, rows=range(64))
    with pytest.raises(ValueError, match=r"has 150 rows of its own.* asked for 70"):
        log_likelihood(gaussian, guide, x[:70], num_samples=10)


def test_brackets_and_decompositions_take_all_rows_at_once(pair):
    guide, x, exact = pair
    ends = bracket(gaussian, guide, x, num_temperatures=4, num_samples=200)
    assert abs(ends.lower.mean() - exact.mean()) < 0.02 and ends.upper.mean() > exact.mean() - 0.02
    gap = torch.distributions.kl_divergence(dist.Normal(0.0, 0.8), dist.Normal(0.0, 0.5**0.5)).item()
    found = decompose(gaussian, guide, x)
    assert abs(found.elbo - (exact.mean().item() - gap)) < 4 * found.reconstruction.mc_se + 0.02


def test_all_rows_are_one_whole_block_which_a_graph_weighs_to_the_bit(pair, monkeypatch):
    guide, x, _ = pair
    made = []
    graph_of = WeighingEngine.made
    monkeypatch.setattr(WeighingEngine, "made", lambda self, kind: made.append(kind) or graph_of(self, kind))
    by_graph, alone = (
        log_likelihood(gaussian, guide, x, num_samples=60, engine=engine, verbose=False)
        for engine in ("trace", "eager")
    )
    assert {kind[0] for kind in made} == {ROWS} and torch.equal(by_graph.log_px, alone.log_px)


@pytest.mark.parametrize("parts", [{"particles": 5}, {"particles": [1, 2]}, {"rows": 2}], ids=["count", "list", "rows"])
def test_a_number_in_the_place_of_a_range_is_refused_by_name(parts):
    """It ended in "'int' object has no attribute 'start'"."""
    x = torch.zeros(3)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(UsageError, match=f"{next(iter(parts))}=.*wanted a range"):
        log_likelihood(gaussian, guide, x, verbose=False, **parts)
