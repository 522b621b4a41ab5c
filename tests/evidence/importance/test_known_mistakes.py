"""What tests/evidence/importance would see: known mistakes in importance sampling, made on purpose, each of which must fail."""

import math
from dataclasses import replace
from functools import cache

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import UsageError
from pyro_vae.evidence.importance import accumulator, pareto, proposals, result, sampler
from pyro_vae.evidence.importance.accumulator import RowBlock, Strata, WeightSums
from pyro_vae.evidence.importance.block_sums import sums_of
from pyro_vae.evidence.importance.pareto import pareto_khat, tail_size
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal, defensive, propose, terms_at, widen, widened
from pyro_vae.programs.sites import sum_terms
from tests.helpers.importance import (
    MODELS,
    Chain,
    GammaPoisson,
    check_arviz,
    check_flags,
    check_slopes,
    check_unbiased,
    check_within_errors,
    log_likelihood,
    of_weights,
    pareto_rows,
)

K = 1000  # in 40 rows, not a multiple of the 102 particles of a block


def passes(oracle=Chain, proposal=GUIDE, rows=40, k=K):
    """The two checks of :mod:`test_importance` that see an estimator of log p(x) from outside."""
    o = oracle()
    x, exact = o.x[:rows], o.log_px()[:rows]
    check_within_errors(log_likelihood(o.model, o.guide, x, num_samples=k, proposal=proposal), exact)
    check_unbiased(o.model, o.guide, x, exact, proposal, k=50, repeats=75)


passes_unbroken = cache(passes)  # once for all mistakes that are tried on the same


@pytest.mark.parametrize("oracle", MODELS)
def test_what_is_right_passes(oracle):
    passes_unbroken(oracle=oracle)


class Far(Chain):
    """Rows that the prior and the guide explain by different latents."""

    def __init__(self):
        super().__init__()
        self.x = 3 * self.x


weigh = sampler.Sampler.weigh
noise = sampler.Sampler.noise


def rounded_k(self):
    """log K of a K that is rounded up to whole blocks of 64."""
    return self.sums[0] - math.log(-(-self.count // 64) * 64)


def mean_of_batch_means(self):
    """Averages the logarithms of the batches' means, as if log and mean could be swapped."""
    log_w = self.largest.values.T  # all of them, for the K that this is tried with
    order = torch.randperm(len(log_w), generator=torch.Generator().manual_seed(0))
    return torch.stack([batch.logsumexp(0) - math.log(len(batch)) for batch in log_w[order].split(10)]).mean(0)


def scaled_weights(self, draws, problem):
    """N/B on log w before the logsumexp: what a subsampled plate's scale does to a bound that forgets to divide it out."""
    return 1.05 * weigh(self, draws, problem)


def summed_over_the_batch(self, draws, problem):
    """One joint weight for all rows, shared out evenly: the mean of a batch's log p̂ is that of the product."""
    log_w = weigh(self, draws, problem)
    return log_w.sum(1, keepdim=True).expand_as(log_w) / log_w.shape[1]


def softmax_of_the_loss(self):
    """Σ softmax(−log w) log w: the worst particle gets the largest weight."""
    log_w = self.largest.values
    return ((-log_w).softmax(1) * log_w).sum(1)


def k_forgotten(self):
    """log Σ w without − log K."""
    return self.sums[0]


def same_particles_in_each_block(self, block_sums, problem, block):
    """A seed that does not know the block: unbiased still, but its error bars are too small."""
    return noise(self, block_sums, problem, 0 if block_sums.extent(block) == block_sums.extent(0) else block)


def density_of_the_one_drawn(self, terms):
    """A mixture scored with the guide's density alone."""
    return terms.log_w


def mixture_without_weights(self, terms):
    """log(q + p), with the shares left out."""
    prior = sum_terms(terms.prior)
    return terms.reconstruction + prior - torch.logaddexp(sum_terms(terms.posterior), prior)


def mixture_site_by_site(self, terms):
    """Each site's own mixture, multiplied: which is not how z was drawn."""
    w = self.weight
    if not w:  # the guide alone, of which the ELBO is taken
        return terms.log_w
    mixed = [
        torch.logaddexp(math.log1p(-w) + terms.posterior[site], math.log(w) + terms.prior[site]) for site in terms.prior
    ]
    return terms.reconstruction + sum_terms(terms.prior) - sum(mixed)


def prior_hard_coded(problem, draws):
    """N(0, 1), whatever the model says."""
    terms = terms_at(problem, draws)
    return replace(terms, prior={site: dist.Normal(0.0, 1.0).log_prob(z) for site, z in draws.values.items()})


def prior_too_seldom(self, start, stop):
    """One in four particles, where one in two is meant."""
    return [k % 4 == 0 for k in range(start, stop)]


def drawn_wide_scored_narrow(proposal, problem, from_prior):
    """log q of the guide that was not widened."""
    wide = propose(proposal, problem, from_prior)
    return proposals.draw(problem, problem.guide, len(wide), wide.trace)


def widened_by_the_variance(d, factor, site):
    """Draws and scores alike: another proposal, and still unbiased. Here for the opposite: this must pass."""
    return widen(d, factor**0.5, site)


BROKEN = [  # where, what, the mistake, what it is tried on
    (WeightSums, "log_px", property(rounded_k), {}),
    (WeightSums, "log_px", property(k_forgotten), {}),
    (WeightSums, "log_px", property(mean_of_batch_means), {"k": 60}),
    (WeightSums, "log_px", property(softmax_of_the_loss), {"k": 60}),
    (sampler.Sampler, "weigh", scaled_weights, {}),
    (sampler.Sampler, "weigh", summed_over_the_batch, {}),
    (sampler.Sampler, "noise", same_particles_in_each_block, {"k": 3000}),
    (sampler, "terms_at", prior_hard_coded, {"oracle": GammaPoisson}),
    (sampler, "terms_at", prior_hard_coded, {}),
    (sampler, "propose", drawn_wide_scored_narrow, {"proposal": widened(1.5)}),
    (Proposal, "log_w", density_of_the_one_drawn, {"proposal": defensive(0.2)}),
    (Proposal, "log_w", mixture_without_weights, {"proposal": defensive(0.2)}),
    (Proposal, "log_w", mixture_site_by_site, {"oracle": Far, "proposal": defensive(0.4)}),
    (Strata, "mask", prior_too_seldom, {"proposal": defensive(0.5)}),
]


@pytest.mark.parametrize(("where", "what", "mistake", "tried"), BROKEN)
def test_what_is_wrong_fails(monkeypatch, where, what, mistake, tried):
    passes_unbroken(**{"oracle": Chain, **tried})
    monkeypatch.setattr(where, what, mistake)
    with pytest.raises(AssertionError):
        passes(**tried)


def test_another_proposal_is_no_mistake(monkeypatch):
    monkeypatch.setattr(proposals, "widen", widened_by_the_variance)
    passes(proposal=widened(1.5))


def check_extremes():
    """log p̂ of weights that no float holds."""
    sums = WeightSums(1)
    sums.add(torch.tensor([[-20000.0], [-20900.0], [-20001.0]], dtype=torch.float64))
    assert sums.log_px.item() == pytest.approx(-20000 + math.log((1 + math.exp(-1)) / 3), abs=1e-9)


def shifted_by_the_least(log_w, prior=None):
    low = log_w.amin(0) if len(log_w) else 0.0
    sums = sums_of(log_w)
    return torch.stack([(log_w - low).exp().sum(0).log() + low, *sums[1:]])


def test_a_logsumexp_shifted_by_the_least_fails(monkeypatch):
    check_extremes()
    monkeypatch.setattr(accumulator, "sums_of", shifted_by_the_least)
    with pytest.raises(AssertionError):
        check_extremes()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: 2 * m.log_px - m.jackknife,  # the sign
        lambda m: (m.log_px + m.jackknife) / 2,  # half of it
        lambda m: m.jackknife + 0.5 / m.ess.square().clamp_max(1e9) * m.count,  # a term of order 1/K too many
        lambda m: m.log_px,  # none
    ],
)
def test_wrong_jackknives_fail(wrong):
    with pytest.raises(AssertionError):
        check_slopes(jackknife=wrong)


@pytest.mark.parametrize("wrong", [lambda m: m.jackknife, lambda m: m.log_px + 0.01, lambda m: m.log_px + 1 / m.count])
def test_bounds_of_another_bias_fail(wrong):
    with pytest.raises(AssertionError):
        check_slopes(iwae=wrong)


def of_all(log_w, tail, cut=0):
    """k̂ with another tail, or another cut-off: `cut` places further down."""
    w = (log_w - log_w.max(0).values).exp().sort(0, descending=True).values.T
    return pareto.gpd_shape((w[:, :tail] - w[:, tail + cut, None]).flip(1))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda log_w: pareto_khat(-log_w),  # as arviz takes them
        lambda log_w: pareto_khat(2 * log_w),
        lambda log_w: pareto_khat(log_w) * 1.02 - 0.01,  # the prior twice
        lambda log_w: of_all(log_w, math.ceil(3 * len(log_w) ** 0.5) if len(log_w) > 225 else len(log_w) // 5 + 1),
        lambda log_w: of_all(log_w, tail_size(len(log_w)), 1),
    ],
)
def test_wrong_tails_fail(wrong):
    check_arviz(lambda log_w: of_all(log_w, tail_size(len(log_w))))
    with pytest.raises(AssertionError):
        check_arviz(wrong)


@pytest.mark.parametrize("wrong", [lambda count: 1.3, lambda count: 0.1, lambda count: -0.7])
def test_wrong_thresholds_fail(monkeypatch, wrong):
    shapes = [0.2, 0.3, 1.2, 0.4, 1.5]
    check_flags(of_weights(pareto_rows(shapes)))
    for module in (result, pareto):
        monkeypatch.setattr(module, "khat_threshold", wrong)
    with pytest.raises(AssertionError):
        check_flags(of_weights(pareto_rows(shapes)))


class Overlapping(RowBlock):
    """Counts pieces that come twice."""

    def add(self, block, offset, log_w):
        self.weight_sums.add(log_w)


class OutOfTurn(RowBlock):
    """Adds sums as they come, not in their order."""

    def settle(self):
        for block in list(self.waiting):
            self.weight_sums.include(self.waiting.pop(block), self.size)


def check_order(kind):
    """The bits do not depend on the order, nor on what is taken twice, which is refused."""
    log_w = torch.randn(64 * 40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    totals = []
    for order in (range(40), range(39, -1, -1)):
        block_sums = kind(range(64), len(log_w))
        for block in order:
            block_sums.add(block, 0, log_w[64 * block : 64 * block + 64])
        totals.append(block_sums.total())
        with pytest.raises(UsageError):
            block_sums.add(3, 0, log_w[:1])
    assert torch.equal(totals[0].sums, totals[1].sums) and torch.equal(totals[0].khat, totals[1].khat)


@pytest.mark.parametrize("broken", [Overlapping, OutOfTurn])
def test_wrong_row_blocks_fail(broken):
    check_order(RowBlock)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_order(broken)
