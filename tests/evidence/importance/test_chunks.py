"""Chunks of rows and particles: the same numbers, in bounded memory."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.evidence.importance.accumulator import WeightSums

log_likelihood = partial(noisy_log_likelihood, verbose=False)


def direct(log_w):
    """What Moments streams, all at once in the natural scale."""
    w, k = log_w.exp(), len(log_w)
    return {
        "log_px": w.mean(0).log(),
        "mc_se": w.std(0) / w.mean(0) / k**0.5,
        "ess": w.sum(0) ** 2 / (w**2).sum(0),
        "elbo": log_w.mean(0),
        "elbo_se": log_w.std(0) / k**0.5,
    }


def check_streamed(make, k=701, block=300):
    log_w = torch.randn(k, 4, dtype=torch.float64)
    moments = make(4)
    for part in log_w.split(block):
        moments.add(part)
    for name, value in direct(log_w).items():
        torch.testing.assert_close(getattr(moments, name), value, rtol=1e-9, atol=1e-9)


class RoundedUp(WeightSums):
    """Broken: counts whole blocks."""

    def add(self, log_w):
        super().add(log_w)
        self.count += 300 - len(log_w)


class MeanOfMeans(WeightSums):
    """Broken: averages the blocks' averages, though they are uneven."""

    def __init__(self, rows):
        super().__init__(rows)
        self.blocks = []

    def add(self, log_w):
        super().add(log_w)
        self.blocks.append(log_w.logsumexp(0) - math.log(len(log_w)))

    @property
    def log_px(self):
        return torch.stack(self.blocks).logsumexp(0) - math.log(len(self.blocks))


def test_streamed_moments_are_the_direct_ones():
    check_streamed(WeightSums)


@pytest.mark.parametrize("broken", [RoundedUp, MeanOfMeans])
def test_wrong_streaming_is_caught(broken):
    with pytest.raises(AssertionError):
        check_streamed(broken)


def test_moments_survive_weights_that_no_float_holds():
    moments = WeightSums(1)
    moments.add(torch.tensor([[-20000.0], [-20001.0]], dtype=torch.float64))
    expected = -20000 + math.log((1 + math.exp(-1)) / 2)
    assert moments.log_px.item() == pytest.approx(expected, abs=1e-9) and 1 < moments.ess.item() < 2
    gone = WeightSums(1)
    gone.add(torch.full((3, 1), -math.inf))
    assert gone.log_px.item() == -math.inf


def rows_103(lg):
    return lg.x[torch.arange(103, device=lg.x.device) % 40]


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 103, 1000])
def test_chunks_give_what_one_pass_gives(lg, chunk_size):
    """Exactly, with a guide that has no noise. 103 rows and 10 particles divide by none of the chunks."""
    x = rows_103(lg)
    at_once = log_likelihood(lg.model, lg.pinned_guide, x, num_samples=10, chunk_size=10**6)
    chunked = log_likelihood(lg.model, lg.pinned_guide, x, num_samples=10, chunk_size=chunk_size)
    assert len(chunked) == 103
    torch.testing.assert_close(chunked.log_px, at_once.log_px, rtol=0, atol=1e-10)
    torch.testing.assert_close(chunked.elbo, at_once.elbo, rtol=0, atol=1e-10)


@pytest.mark.parametrize("vectorized", [True, False])
def test_chunks_of_noisy_particles_agree_within_error(lg, vectorized):
    x = rows_103(lg)
    a = log_likelihood(lg.model, lg.mean_field_guide, x, num_samples=70, chunk_size=10**6)
    b = log_likelihood(
        lg.model, lg.mean_field_guide, x, num_samples=70, chunk_size=3000, vectorize_particles=vectorized, seed=1
    )
    se = (a.mc_se.square() + b.mc_se.square()).sqrt()
    assert (a.log_px - b.log_px).mean().abs() < 4 * se.square().sum().sqrt() / 103


@pytest.mark.parametrize("num_samples", [1, 63, 65, 1001])
def test_every_particle_is_counted_once(lg, num_samples):
    """Under the exact posterior the ESS is K and log p is exact: a wrong count would shift it by a logarithm."""
    evidence = log_likelihood(lg.model, lg.exact_guide, lg.x[:3], num_samples=num_samples, chunk_size=200)
    torch.testing.assert_close(evidence.ess, torch.full((3,), float(num_samples), dtype=torch.float64))
    torch.testing.assert_close(evidence.log_px, lg.log_px(lg.x[:3]).cpu(), rtol=0, atol=1e-8)
    assert evidence.num_samples == num_samples


def check_mean(mean, rows):
    assert mean == pytest.approx(rows.mean().item(), abs=1e-12)


def test_the_mean_is_over_rows_not_over_chunks(lg):
    evidence = log_likelihood(lg.model, lg.pinned_guide, rows_103(lg), num_samples=10, chunk_size=500)
    check_mean(evidence.summary()["log_px"], evidence.log_px)
    of_batches = torch.stack([part.mean() for part in evidence.log_px.split(50)]).mean().item()
    with pytest.raises(AssertionError):
        check_mean(of_batches, evidence.log_px)


def test_no_pass_takes_more_rows_than_a_chunk(lg):
    seen = []

    def model(x):
        seen.append(len(x))
        return lg.model(x)

    log_likelihood(model, lg.exact_guide, lg.x.repeat(100, 1), num_samples=1, chunk_size=500)
    assert max(seen) <= 2000 and max(seen[-5:]) <= 500


MEMORY = """
import re, torch, pyro, pyro.distributions as dist
from pyro_vae import log_likelihood
torch.set_num_threads(1)
weight = torch.randn(4, 64)
def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)
def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
def peak(k, chunk_size):
    log_likelihood(model, guide, torch.zeros(20, 64), num_samples=k, chunk_size=chunk_size, verbose=False)
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])  # ru_maxrss starts at the parent's
few, many, at_once = peak(500, 8192), peak(20_000, 8192), peak(20_000, 10**9)
print((many - few) / 1024, (at_once - many) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux keeps it")
def test_memory_does_not_grow_with_particles():
    """MiB that the peak of a fresh process grows by from 500 to 20,000 particles, in chunks and then all at once."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300, check=True)
    in_chunks, at_once = map(float, done.stdout.split())
    assert in_chunks < 50
    assert at_once > 50, "all at once would"
