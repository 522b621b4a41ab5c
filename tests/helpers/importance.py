"""What importance sampling is checked on, and the checks: of a right estimator they pass, of each wrong one they fail."""

from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.evidence.importance import estimator, guide_elbo
from pyro_vae.evidence.importance.accumulator import RowBlock, WeightSums
from pyro_vae.evidence.importance.pareto import pareto_khat
from pyro_vae.evidence.importance.proposals import GUIDE
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.programs.program_ids import ProgramIds
from tests.helpers.exact import LinearGaussian

log_likelihood = partial(noisy_log_likelihood, verbose=False)


class Chain:
    """z1 ~ N(0, 1), z2 ~ N(z1, 1), x ~ N(z2, 1), so x ~ N(0, 3); a guide that is neither right nor far off."""

    def __init__(self, rows=150, seed=0):
        self.x = 3**0.5 * torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(()), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.3 * x, 0.9))
            pyro.sample("z2", dist.Normal(0.4 * z1 + 0.4 * x, 0.8))

    def log_px(self):
        return dist.Normal(0.0, 3**0.5).log_prob(self.x)


class GammaPoisson:
    """z ~ Gamma(2, 1), x ~ Poisson(z), so x is negative binomial; a lognormal guide."""

    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 9.0] * 25, dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(((x + 2) / 2).log() - 0.1, (x + 2) ** -0.5))

    def log_px(self):
        return dist.NegativeBinomial(2.0, probs=torch.tensor(0.5, dtype=torch.float64)).log_prob(self.x)


class Tall(LinearGaussian):
    """The linear-Gaussian oracle under its mean-field guide, with the names of the others."""

    guide = LinearGaussian.mean_field_guide

    def log_px(self, x=None):
        return super().log_px(self.x if x is None else x)


MODELS = [Tall, Chain, GammaPoisson]


def check_within_errors(evidence, exact):
    """5 standard errors in each row, 4 in the mean, sqrt(sum mc_se^2) / N."""
    off = evidence.log_px - exact.cpu()
    assert (off.abs() < 5 * evidence.mc_se + 1e-9).all()
    assert off.mean().abs() < 4 * evidence.mc_se.square().sum().sqrt() / len(off) + 1e-9


@contextmanager
def checked_once():
    """Runs of a pair on the same rows look at both once, not for each seed; the guide's ELBO, unasked for, has two draws."""
    problems, ids = {}, {}
    check, of = estimator.checked_problem, ProgramIds.of

    def checked(model, guide, args, proposal, *, seed, **options):
        key = (model, guide, *map(id, args), proposal, *options.values())
        if key not in problems:
            problems[key] = check(model, guide, args, proposal, seed=seed, **options)
        return problems[key]

    def of_programs(problem):
        if id(problem) not in ids:
            ids[id(problem)] = of(problem)
        return ids[id(problem)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator, "checked_problem", checked)
        patch.setattr(estimator, "ProgramIds", SimpleNamespace(of=of_programs))
        patch.setattr(guide_elbo, "DRAWS", 2)
        yield


def check_unbiased(model, guide, x, exact, proposal=GUIDE, k=20, repeats=15, **options):
    """Mean of p̂ / p over rows and repeats is 1 within 4 standard errors, sd / √(rows · repeats).

    One run has a copy of the rows for each repeat, with noise of its own; but as many runs, of a copy each, where the prior
    has no whole number of the K particles: what a run's rows share is where its particles start.
    """
    share = k * proposal.weight
    copies = repeats if abs(share - round(share)) < 1e-9 else 1
    x, exact = x.repeat(copies, *[1] * (x.dim() - 1)), exact.repeat(copies)
    seeds = range(repeats // copies)
    with checked_once():
        runs = [log_likelihood(model, guide, x, num_samples=k, proposal=proposal, seed=s, **options) for s in seeds]
    ratio = torch.cat([(run.log_px - exact).exp() for run in runs])
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / len(ratio) ** 0.5


def gaussian_weights(k, repeats, seed=0):
    """log w for p = N(0, 1) and q = N(0, 4): E[w] = 1, and log p(x) = 0."""
    z = 2 * torch.randn(k, repeats, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.0, 2.0).log_prob(z)


@cache
def sums_of_weights(k, repeats=40_000):
    """The sums of so many particles; and what is subtracted, mean(δ) and the U-statistic of δ = w − 1, of mean 0 exactly."""
    log_w = gaussian_weights(k, repeats, seed=k)
    sums = WeightSums(repeats, k)
    sums.add(log_w)
    delta = log_w.exp() - 1
    return sums, delta.mean(0), (delta.sum(0).square() - delta.square().sum(0)) / (k * (k - 1))


def biases(jackknife, iwae, ks=(8, 16, 32, 64)):
    """Biases of the two over K."""
    found = []
    for sums, mean, pairs in map(sums_of_weights, ks):
        found.append([(iwae(sums) - mean).mean(), (jackknife(sums) - mean + pairs / 2).mean()])
    slope = [np.polyfit(np.log(ks), np.log(np.abs(column)), 1)[0] for column in np.array(found).T]
    return np.array(found), slope


def check_slopes(jackknife=lambda m: m.jackknife, iwae=lambda m: m.log_px):
    found, (bound, corrected) = biases(jackknife, iwae)
    assert (found[:, 0] < 0).all() and bound == pytest.approx(-1, abs=0.15)
    assert corrected == pytest.approx(-2, abs=0.3)


def deterministic(k):
    """Log weights that any machine makes alike: four rows of growing tails, ``(K, 4)``."""
    u = (np.arange(1, k + 1) * (5**0.5 - 1) / 2) % 1
    return torch.tensor(np.stack([-0.3 * np.log(u), -0.9 * np.log(u), 3 * np.sin(1e3 * u), 100 * u**2 - 5000.0], 1))


ARVIZ = {  # arviz-stats 0.8.0, array_stats.psislw(-log_w)[1], log_w = deterministic(K)
    25: [0.527025920755814, 0.6514026267960408, 0.13973713883294453, 4.155025319310197],
    200: [0.27563845401988957, 0.6955789810979863, -1.0831309186929412, 8.84084763350471],
    226: [0.24832588187583132, 0.675942570446324, -1.1418153131423567, 9.377441290143947],
    1000: [0.29954510447544924, 0.8097773289973493, -1.4348220050468337, 5.306883326471947],
    5000: [0.30874562286778406, 0.8696603068504718, -1.7165000373262116, 2.337377579556626],
}


def check_arviz(khat=pareto_khat):
    for k, values in ARVIZ.items():
        np.testing.assert_allclose(khat(deterministic(k)).numpy(), values, rtol=0, atol=1e-10)


def of_weights(log_w, **said):
    """Evidence of given log weights, (K, N)."""
    block_sums = RowBlock(range(log_w.shape[1]), len(log_w))
    for block, part in enumerate(log_w.split(block_sums.size)):
        block_sums.add(block, 0, part)
    return Evidence.of([block_sums], seed=0, **said)


def pareto_rows(shapes, k=5000):
    """w = u^-shape: the weights themselves are Pareto, of that shape."""
    u = torch.rand(k, len(shapes), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return -torch.tensor(shapes, dtype=torch.float64) * u.log()


def check_flags(evidence):
    assert evidence.flagged.tolist() == [2, 4] and evidence.reliable.tolist() == [True, True, False, True, False]


def narrow_guide(x):
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(0.3 * x, 0.25))
        pyro.sample("z2", dist.Normal(0.4 * z1 + 0.4 * x, 0.25))
