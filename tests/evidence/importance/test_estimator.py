"""Importance sampling against exact truths: errors, bias, tails, proposals, and the same numbers however it is run."""

import itertools
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Conditional, StandardNormal, bernoulli, normal
from pyro_vae.errors import DeviceMemoryError, Interrupted, ProgramError, UnreliableError, UsageError
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal, defensive, widened
from pyro_vae.evidence.importance.result import DIAGNOSTICS, ROW_FIELDS, Evidence
from tests.helpers.bits import same
from tests.helpers.importance import MODELS, Chain, check_unbiased, check_within_errors, log_likelihood

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
    assert "or Monte Carlo error above 0.01" in str(evidence)
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
    assert same(run(num_samples=500, resume=grown), grown) and len(seen) < 40 < steps
    half = run(num_samples=500, particles=range(250))
    assert same(run(num_samples=500, resume=half), grown)
    assert same(run(num_samples=500, resume=run(num_samples=500, rows=range(64, 128))), grown)


@pytest.mark.parametrize("calls", [8, 15])
def test_an_interrupted_evaluation_goes_on(neural, calls):
    vae, x = neural
    left = [calls]

    def model(x):
        if len(x) > 32 and not torch.is_grad_enabled():  # not the probe, nor what tells programs apart
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
            if z1.dim() > 1 and len(z1) != 3:  # under the particles, however few, but for those of the probe
                raise torch.OutOfMemoryError("out of memory")
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    with pytest.raises(DeviceMemoryError, match=r"the smallest chunk of particles on cpu does not fit.*out of memory"):
        log_likelihood(model, o.guide, o.x, num_samples=10)


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
