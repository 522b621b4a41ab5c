"""Gaps of guides whose sites depend on each other: offsets of each row to the guide's own functions, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import HierarchicalVAE, TopDown, gaps, overfitting
from pyro_vae.diagnostics import per_row_optimum as module
from pyro_vae.errors import ProgramError
from tests.helpers.two_levels import TwoLevels
from tests.helpers.within import within

LEVELS = TwoLevels(8)
X = LEVELS.x
OFF, NARROW = 0.2, 0.8
QUIET = {"verbose": False}


@pytest.mark.parametrize("posterior", [LEVELS.top_down, LEVELS.bottom_up], ids=["top-down", "bottom-up"])
def test_offsets_mend_what_is_off_by_offsets(posterior):
    """Means off by 0.2 and scales by 0.8 at both levels: q* is the posterior, and amortisation all of KL(q ‖ p(z | x))."""
    vae = LEVELS.vae(posterior(OFF, NARROW))
    split = gaps(vae.model, vae.guide, X, steps=200, num_samples=500, log_px=LEVELS.log_px(X), **QUIET)
    assert split.approximation.abs().max() < 5e-3 and split.converged.all()
    assert split.moved == (("z1",) if posterior == LEVELS.top_down else ("z2",))
    if posterior == LEVELS.top_down:
        within(split.amortisation, LEVELS.kl_of(OFF, NARROW), split.amortisation_se)
    assert f"{split.moved[0]} (flow, or given other sites): the best offset a row" in str(split)
    assert split.summary()["moved_sites"] == list(split.moved)


# a slope that no offset mends: z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1), and a guide whose z1 does not read z2


def chain(x):
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(()).double(), 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def sloped(slope):
    def guide(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x / 3 + 0.3, 0.9))
            pyro.sample("z1", dist.Normal(slope * z2 + x / 2 - 0.2, 0.6))

    return guide


def best_kl(slope):
    """min over s2, s1 of KL(N(z2; m, s2²) N(z1; slope z2 + d, s1²) ‖ p(z2 | x) p(z1 | z2, x)), m and d being free.

    p(z1 | z2, x) = N((z2 + x) / 2, 1/2) and p(z2 | x) = N(x / 3, 2/3): with the means right, what is left is
    log √(2/3) / s2 + s2² / (4/3) − 1/2 + log √(1/2) / s1 + (s1² + (slope − 1/2)² s2²) − 1/2.
    """
    s2 = 1 / (3 / 2 + 2 * (slope - 0.5) ** 2)  # variances; that of s1 is 1/2
    return 0.5 * math.log((2 / 3) / s2) + 0.75 * s2 - 0.5 + (slope - 0.5) ** 2 * s2


ROWS = torch.linspace(-2, 2, 5).double()
LOG_PX = dist.Normal(0.0, 3**0.5).log_prob(ROWS)


def test_a_slope_that_is_wrong_is_approximation_and_the_split_a_bound():
    """A row with a slope of its own would have no approximation gap: what is shown is more, and amortisation less."""
    split = gaps(chain, sloped(0.2), ROWS, steps=200, num_samples=2000, log_px=LOG_PX, **QUIET)
    within(split.approximation, best_kl(0.2), split.approximation_se)
    assert best_kl(0.2) > 0.03 and best_kl(0.5) == pytest.approx(0, abs=1e-12)
    right = gaps(chain, sloped(0.5), ROWS, steps=200, log_px=LOG_PX, **QUIET)
    assert right.approximation.abs().max() < 1e-3


def test_the_split_starts_at_the_guide():
    """At offsets of 0, q* is q, to rounding, at the same draws."""
    split = gaps(chain, sloped(0.2), ROWS, steps=1, lr=1e-9, log_px=LOG_PX, **QUIET)
    assert split.amortisation.abs().max() < 1e-6


def test_fitted_through_the_draws_of_other_sites_alone_the_optimum_is_another(monkeypatch):
    """Broken on purpose: log q(z1 | z2) at the parameters that z2 had, without a gradient to what drew it."""
    original = module.OffsetFamily.at

    def detached(self, free, fn):
        return original(self, free, dist.Normal(fn.loc.detach(), fn.scale))

    monkeypatch.setattr(module.OffsetFamily, "at", detached)
    split = gaps(chain, sloped(0.9), ROWS, steps=200, num_samples=2000, log_px=LOG_PX, **QUIET)
    with pytest.raises(AssertionError):
        within(split.approximation, best_kl(0.9), split.approximation_se)


def test_overfitting_says_that_its_gaps_are_bounds():
    found = overfitting(chain, sloped(0.2), ROWS, ROWS + 1, steps=5, num_samples=50, **QUIET)
    assert "z1 (flow, or given other sites): the best offset a row, so both gaps are bounds" in str(found)


def test_other_families_given_draws_of_other_sites():
    """A Gamma whose rate is another site, a masked site and an inner plate: offsets make no number worse than the guide's."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor([2.0]), 2.0))
            with pyro.plate("columns", 2, dim=-1):
                z = pyro.sample("z", dist.Gamma(2.0, rate.expand(x.shape)).mask(x > 0))
                pyro.sample("x", dist.Normal(torch.where(x > 0, z, 0.0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            rate = pyro.sample("rate", dist.LogNormal(0 * x[:, :1], 0.5))
            with pyro.plate("columns", 2, dim=-1):
                pyro.sample("z", dist.LogNormal(-0.5 * rate.log() + 0 * x, 0.7).mask(x > 0))

    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [3.0, -0.5]]).double()
    split = gaps(model, guide, x, steps=200, num_samples=1000, **QUIET)
    assert split.moved == ("z",) and (split.amortisation > -4 * split.amortisation_se).all()
    assert split.amortisation.mean() > 0.01 and (split.approximation > -4 * split.approximation_se).all()


def test_what_cannot_be_moved_is_refused_by_site():
    def no_broadcast(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x / 3, 0.9))
            pyro.sample("z1", dist.Normal(z2.reshape(len(x), 1).mean(1), 0.6))

    with pytest.raises(ProgramError, match=r"site 'z1'.*does not broadcast.*log_likelihood"):
        gaps(chain, no_broadcast, ROWS, steps=1, **QUIET)

    def moving(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x / 3, 0.9))
            pyro.sample("z1", dist.Uniform(z2 - 5, z2 + 5))

    with pytest.raises(ProgramError, match=r"site 'z1'.*support moves"):
        gaps(chain, moving, ROWS, steps=1, **QUIET)


def test_parameters_and_modules_stay_as_they_are():
    def linear(inputs):
        return torch.nn.Linear(inputs, 2).double()

    up, down = linear(4), linear(6)
    vae = HierarchicalVAE(
        [LEVELS.middle, LEVELS.top],
        LEVELS.likelihood,
        TopDown(
            lambda x, z2: dist.Normal(down(torch.cat([x.expand(*z2.shape[:-1], 4), z2], -1)), 0.5).to_event(1),
            lambda x: dist.Normal(up(x), 0.5).to_event(1),
        ),
    )
    before, state = [p.detach().clone() for p in vae.parameters()], torch.get_rng_state()
    gaps(vae.model, vae.guide, X, steps=5, num_samples=20, **QUIET)
    assert all(map(torch.equal, before, vae.parameters())) and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in vae.parameters())
