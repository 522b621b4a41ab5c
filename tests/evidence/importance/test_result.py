"""What an evaluation hands back: parts that merge, tables, units."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.data import dequantize
from pyro_vae.errors import SupportError, UsageError
from pyro_vae.evidence.importance.proposals import widened
from pyro_vae.evidence.importance.result import ROW_FIELDS, Evidence
from pyro_vae.programs.measure import dominating
from tests.helpers.bits import same
from tests.helpers.importance import Chain, log_likelihood, of_weights

# the same numbers, however they are run


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


def test_the_gap_errs_by_no_more_than_its_error_says():
    """Of a thousand rows alike, each with weights of its own, the gaps spread by less than gap_se, and by no tenth of it."""
    log_w = 0.7 * torch.randn(200, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = of_weights(log_w)
    spread, told = found.gap.std(), found.gap_se.mean()
    assert 0.1 * told < spread < told and told < found.mc_se.mean() + found.elbo_se.mean()
    s = found.summary()
    assert s["gap_mc_se"] == pytest.approx(math.hypot(s["log_px_mc_se"], s["elbo_mc_se"]))


def test_the_gap_to_an_elbo_of_draws_apart_errs_as_its_error_says():
    x = torch.full((1000, 1), 0.3, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2 + 0.2, 0.6))

    found = log_likelihood(model, guide, x, num_samples=200, proposal=widened(), verbose=False)
    assert found.gap.std() == pytest.approx(
        found.gap_se.mean().item(), rel=0.1
    )  # 4 standard errors of a spread of 1,000


def test_a_gap_prints_with_its_error():
    printed = str(of_weights(torch.tensor([[0.0, 0.1], [0.2, -0.1]], dtype=torch.float64).repeat(50, 1)))
    assert " ± " in printed.split("| gap ")[1].split(" |")[0]
