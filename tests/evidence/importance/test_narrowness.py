"""A proposal that is too narrow, which its own draws cannot show, is flagged by a few draws of the posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import UnreliableError
from pyro_vae.evidence.importance import estimator, narrowness
from pyro_vae.evidence.importance.narrowness import ROWS, SHARE, WALK, bridge, too_narrow
from pyro_vae.evidence.importance.proposals import GUIDE, defensive, widened
from pyro_vae.evidence.importance.result import ROW_FIELDS, Evidence
from pyro_vae.evidence.importance.storage import load_evidence, save_evidence
from tests.coverage_tables.gaussian import NARROW, WIDE, Gaussian
from tests.helpers.bits import same
from tests.helpers.environment import HEAVY
from tests.helpers.importance import log_likelihood

SOME = ("1 dims, scale x 0.5", "5 dims, scale x 0.6", "2 of 10 dims, scale x 0.5", "counts, scale x 0.4")


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch):
    """1,250 particles of 64 rows at a time, as on a GPU: K is a few passes, not eighty."""
    monkeypatch.setattr(estimator, "layout_on", lambda *_: (64, 64 * 1250))


def run(pair, rows=100, seed=1, num_samples=5000, **options):
    x = pair.rows(rows, seed)
    return log_likelihood(pair.model, pair.guide, x, num_samples=num_samples, **options), pair.log_px(x)


@pytest.mark.parametrize("name", NARROW if HEAVY else SOME)
def test_narrow_guides_are_flagged(name):
    """Rows that k̂ lets pass cover log p(x) in fewer than 9 of 10; of those, none or rows that do are left."""
    evidence, exact = run(NARROW[name], seed=2)
    inside = (evidence.log_px - exact).abs() < 1.96 * evidence.mc_se
    left = inside[evidence.reliable]
    assert len(left) == 0 or left.double().mean() > 0.85
    if name in SOME:
        assert inside[evidence.steady].double().mean() < 0.7 and not len(left)
        assert "the proposal is too narrow" in evidence.why_flagged() and "too narrow: " in str(evidence)


@pytest.mark.parametrize("name", WIDE)
def test_guides_that_are_wide_enough_are_not(name):
    """At most a few rows, of which the posterior's draws happen to lie far out."""
    evidence, _ = run(WIDE[name], seed=2)
    assert evidence.summary()["rows_looked_at"] >= 8 and evidence.summary()["rows_too_narrow"] <= 2


def test_the_number_is_the_same_with_and_without(monkeypatch):
    evidence, _ = run(NARROW[SOME[0]])
    monkeypatch.setattr(narrowness, "ROWS", range(10**9, 10**9))
    unseen, _ = run(NARROW[SOME[0]])
    assert same(evidence, unseen) and unseen.spread is None and evidence.spread is not None
    assert unseen.reliable.sum() > 50 and not evidence.reliable.any()


def test_strict_raises():
    with pytest.raises(UnreliableError, match="the proposal is too narrow"):
        run(Gaussian(1, 0.5), strict=True)


@pytest.mark.parametrize("proposal", [widened(1.6), defensive(0.2)], ids=str)
def test_what_is_drawn_from_is_looked_at(proposal):
    """The guide is too narrow, the proposal made of it is not."""
    assert run(Gaussian(2, 0.5), proposal=GUIDE)[0].too_narrow.all()
    evidence, exact = run(Gaussian(2, 0.5), proposal=proposal)
    assert evidence.spread is not None and evidence.too_narrow.sum() <= 3
    assert ((evidence.log_px - exact).abs() < 1.96 * evidence.mc_se)[evidence.reliable].double().mean() > 0.88


def test_spread_is_k_over_ess():
    """For a guide that is wide enough both sides estimate E_q[w²] / E_q[w]² = (a² / √(2a² − 1))^D, a the width."""
    pair = Gaussian(2, 1.3)
    evidence, _ = run(pair, rows=200)
    exact = (1.3**2 / (2 * 1.3**2 - 1) ** 0.5) ** 2
    looked = evidence.spread[evidence.spread.isfinite()]
    assert looked.mean() == pytest.approx(exact, rel=0.05)
    assert (evidence.counts / evidence.ess).mean() == pytest.approx(exact, rel=0.02)


def test_the_flag_is_saved_merged_and_read(tmp_path):
    evidence, _ = run(Gaussian(1, 0.5), rows=150)
    save_evidence(evidence, tmp_path / "e")
    again = load_evidence(tmp_path / "e")
    table = Evidence.from_csv(evidence.rows_csv(), num_samples=5000, seed=0)
    for other in (again, table):
        assert torch.equal(other.spread.nan_to_num(-1), evidence.spread.nan_to_num(-1)) and other.too_narrow.all()
    assert again.summary() == evidence.summary()
    pair = Gaussian(1, 0.5)
    parts = [
        log_likelihood(pair.model, pair.guide, pair.rows(150, 1), num_samples=5000, particles=part)
        for part in (range(0, 2600), range(2600, 5000))
    ]
    merged = Evidence.merge(parts)
    assert same(merged, evidence, ROW_FIELDS) and merged.too_narrow.all()
    assert evidence.of_counts(5, 1).too_narrow.all()


def test_what_goes_on_keeps_what_was_seen():
    pair = Gaussian(1, 0.5)
    first, _ = run(pair)
    more = log_likelihood(pair.model, pair.guide, pair.rows(100, 1), num_samples=6000, resume=first)
    seen = first.spread.isfinite()
    assert torch.equal(more.spread[seen], first.spread[seen]) and more.too_narrow.all()


def test_small_evaluations_are_left_alone():
    """A twentieth of the cost buys fewer than eight rows."""
    most = int(ROWS.start * WALK.cost / SHARE / 100)
    assert run(Gaussian(1, 0.5), num_samples=most - 1)[0].spread is None
    assert run(Gaussian(1, 0.5), num_samples=most + 1)[0].spread is not None


def test_programs_without_gradients_are_not_looked_at():
    """A discrete latent: the number is there, and nothing is said of the guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))

    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert log_likelihood(model, guide, x, num_samples=5000).spread is None


def test_the_bridge_is_log_px():
    """Draws of N(0, 1) and of N(0, w²), the weights of which integrate to e: both narrow and wide, within 4 standard errors."""
    for width in (0.5, 2.0):
        z = torch.randn(2, 400, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        log_w = [
            1 - u.square() / 2 + (u / width).square() / 2 + torch.tensor(width).log() for u in (width * z[0], z[1])
        ]
        found = bridge(*log_w)
        assert (found.mean() - 1).abs() < 4 * found.std() / 50**0.5


@pytest.mark.parametrize(
    ("spread", "khat", "flags"),
    [
        ([1.5, 1.4, 1.6, float("nan")], 0.3, [False] * 4),
        ([9.0, 1.5, 1.4, 1.5], 0.3, [True] * 4),  # √(8 / 0.5) = 4: one row alone tips the mean of four
        ([float("nan")] * 4, 0.5, [False] * 4),
        ([1.5] * 9 + [4.0], 0.3, [False] * 9 + [True]),
        ([2.6] * 4, 0.3, [True] * 4),
        ([1.5, 1.4, 1.6, float("nan")], 0.5, [True] * 4),
        ([1.2, 1.1, 1.2, float("nan")], 0.5, [False] * 4),
        ([1.5, 1.4, 1.6, float("nan")], float("-inf"), [False] * 4),
        ([1.5, 1.4, 1.6, float("nan")], float("nan"), [False] * 4),
    ],
    ids=[
        "as the draws say", "one far off", "not looked at", "one of ten", "all a little", "no variance",
        "no variance and smaller errors", "bounded weights", "no tail known",
    ],
)  # fmt: skip
def test_the_verdict(spread, khat, flags):
    spread = torch.tensor(spread, dtype=torch.float64)
    counts, steady = torch.full_like(spread, 1000), torch.ones_like(spread, dtype=torch.bool)
    assert too_narrow(spread, counts / 1.5, counts, steady, torch.full_like(spread, khat)).tolist() == flags


@pytest.mark.parametrize("broken", ["no walk", "no weights"])
def test_broken_looks_see_nothing(monkeypatch, broken):
    """Chains that do not move stay where the proposal is; the proposal's own spread says what its draws say."""
    evidence, _ = run(NARROW[SOME[1]])
    assert evidence.too_narrow.all()
    if broken == "no walk":
        monkeypatch.setattr(narrowness, "walk", lambda density, u, sd: density.scores(u)[1].double())
    else:
        monkeypatch.setattr(narrowness, "walk", lambda density, u, sd: density.scores(density.draw(64))[1].double())
    assert not run(NARROW[SOME[1]])[0].too_narrow.all()
