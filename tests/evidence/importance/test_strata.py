"""Mixtures of guide and prior: any of their particles, chosen beforehand, are a mixture; their errors are of two strata."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load, save

from pyro_vae.common.digests import digest_of
from pyro_vae.evidence.importance.accumulator import Strata, WeightSums
from pyro_vae.evidence.importance.convergence import convergence
from pyro_vae.evidence.importance.proposals import Proposal, defensive
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.importance.storage import evidence_bytes, evidence_from
from tests.coverage_tables.gaussian import Gaussian
from tests.helpers.bits import same
from tests.helpers.importance import checked_once, log_likelihood

PAIR = Gaussian(8, 1.0)  # the exact guide: its particles alone have all but one weight, 1 / (1 − weight)
X = PAIR.rows(64, 0)
EXACT = PAIR.log_px(X)
HALF, TENTH, WIDER = defensive(0.5), defensive(0.1), Proposal(weight=0.3, factor=1.1)
run = partial(log_likelihood, PAIR.model, PAIR.guide, X)


def parts_of(proposal):
    """Evidence of some of 400 particles, as every function that takes some hands it out."""
    part = partial(run, num_samples=400, proposal=proposal)
    curve = convergence(PAIR.model, PAIR.guide, X, samples=(30, 90, 400), proposal=proposal, verbose=False)
    return {
        "first of a curve": curve[0],
        "second of a curve": curve[1],
        "a part from the middle": part(particles=range(37, 181)),
        "two parts with a gap between": Evidence.merge([part(particles=range(0, 50)), part(particles=range(300, 390))]),
        "gone on from, in part": part(particles=range(100), resume=part(particles=range(20, 60))),
    }


def check_parts(proposal):
    """Each part's log p̂ is log p(x) in the mean of 64 rows, within 5 of its errors and 0.02 for a start that rows share."""
    for name, evidence in parts_of(proposal).items():
        off = (evidence.log_px - EXACT).mean().abs()
        assert off < 5 * evidence.mc_se.square().sum().sqrt() / len(X) + 0.02, name


@pytest.mark.parametrize("proposal", [HALF, TENTH, WIDER], ids=["half", "tenth", "wider"])
def test_every_part_is_a_mixture(proposal):
    check_parts(proposal)


def guide_first(self, start, stop):
    """The prior's particles stand at the end of each block of 64."""
    return [k % 64 >= 64 * (1 - self.weight) for k in range(start, stop)]


def test_a_block_with_the_guide_first_fails(monkeypatch):
    monkeypatch.setattr(Strata, "mask", guide_first)
    with pytest.raises(AssertionError):
        check_parts(HALF)


def check_errors(proposal, k, pair=PAIR):
    """The sd over 8 · 64 of (log p̂ − log p) / mc_se is 1 to a tenth, that is 3 of its own errors."""
    x = pair.rows(64, 0)
    with checked_once():
        runs = [log_likelihood(pair.model, pair.guide, x, num_samples=k, proposal=proposal, seed=s) for s in range(8)]
    z = torch.cat([(run.log_px - pair.log_px(x)) / run.mc_se for run in runs])
    assert z.square().mean().sqrt() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("proposal", "k"), [(HALF, 100), (TENTH, 400), (defensive(0.15), 250), (WIDER, 300)])
def test_errors_are_those_of_two_strata(proposal, k):
    check_errors(proposal, k)


def test_the_error_of_so_many_independent_particles_fails(monkeypatch):
    monkeypatch.setattr(WeightSums, "stratified", False)
    with pytest.raises(AssertionError):
        check_errors(HALF, 100)


FAR = Gaussian(
    20, 1.0
)  # particles of the prior weigh nothing, those of the guide all the same: what is left is rounding


def test_half_a_particle_is_in_the_error():
    check_errors(HALF, 25, FAR)


def test_an_error_without_the_rounding_fails(monkeypatch):
    rounded = property(lambda self: self.prior_count / max(self.count, 1), lambda *_: None)
    monkeypatch.setattr(WeightSums, "prior_weight", rounded, raising=False)
    monkeypatch.setattr(WeightSums, "stratified", property(lambda self: len(self.sums) > 6))
    with pytest.raises(AssertionError):
        check_errors(HALF, 25, FAR)


def test_bias_and_jackknife_follow():
    evidence = run(num_samples=60, proposal=HALF)
    assert torch.allclose(evidence.bias, -evidence.mc_se.square() / 2)
    assert torch.allclose(evidence.jackknife, evidence.log_px - evidence.bias)


def test_strata_are_saved_and_merged():
    whole = run(num_samples=300, proposal=HALF)
    parts = [run(num_samples=300, proposal=HALF, particles=r) for r in (range(0, 70), range(70, 300))]
    again, _ = evidence_from(evidence_bytes(whole), "here")
    for other in (Evidence.merge(parts), again, run(num_samples=300, proposal=HALF, resume=again)):
        assert same(other, whole)
    more = run(num_samples=600, proposal=HALF, resume=again)
    assert same(more, run(num_samples=600, proposal=HALF))


def test_evidence_of_an_older_version_is_read():
    """Without sums of strata: its errors are those of independent particles, as they were."""
    tensors = load(content := evidence_bytes(run(num_samples=64, proposal=HALF)))
    head = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["evidence"])
    tensors["0/sums"] = tensors["0/sums"][:4].clone()
    for name in ("strata", "sha256"):
        head.pop(name)
    assert digest_of(head)
    old, _ = evidence_from(save(tensors, {"evidence": json.dumps(head)}), "here")
    assert torch.allclose(old.mc_se, ((64 / old.ess - 1) / 63).sqrt()) and torch.equal(
        old.log_px, run(num_samples=64, proposal=HALF).log_px
    )
