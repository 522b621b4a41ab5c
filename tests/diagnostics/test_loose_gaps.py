"""No ± beside gaps of a log p(x) of which more than a tenth of the rows is flagged: in print, and in the picture."""

import dataclasses
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Evidence, Exact, log_likelihood
from pyro_vae.diagnostics.inference_gaps import gaps
from pyro_vae.diagnostics.overfitting import Overfitting, overfitting
from pyro_vae.errors import UnknownProgramsWarning
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.plots import bars, evidence
from tests.helpers.exact import LinearGaussian
from tests.helpers.gaussian import gaussian

X = torch.linspace(-2, 2, 10, dtype=torch.float64)
QUIET = {"steps": 5, "verbose": False}


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 0.3, 0.8))


@cache
def importance():
    return log_likelihood(gaussian, guide, X, num_samples=100, verbose=False)


@cache
def annealing():
    return ais(gaussian, guide, X, num_temperatures=3, leapfrog_steps=1, step_size=0.5, verbose=False)


def sampled(flagged):
    """Importance sampling whose k̂ flags the first rows."""
    found = importance()
    khat = torch.where(torch.arange(len(X)) < flagged, 0.9, 0.1).double()
    return dataclasses.replace(found, khat=khat, max_share=khat, spread=None)


def oracle(flagged):
    log_px = dist.Normal(X.new_zeros(()), 2**0.5).log_prob(X)
    return Exact(log_px, log_px * 0 + 1e-6, torch.arange(len(X)) >= flagged, "quadrature", "continuous", "a grid")


def annealed(flagged):
    found = annealing()
    ess = torch.where(torch.arange(len(X)) < flagged, 2.0, 12.0).double()
    return dataclasses.replace(found, ess=ess)


GIVEN = {"importance sampling": (sampled, "≥"), "an oracle": (oracle, "≈"), "annealing": (annealed, "≥")}


@pytest.mark.parametrize("flagged", [0, 1, 2, 10])
@pytest.mark.parametrize("kind", GIVEN)
def test_gaps_of_a_given_log_px_are_as_loose_as_it_is(kind, flagged):
    make, sign = GIVEN[kind]
    found = gaps(gaussian, guide, X, log_px=make(flagged), **QUIET)
    said, amortised = str(found), str(found).split("amortisation")[1]
    assert found.summary()["rows_flagged"] == flagged and "±" in amortised
    loose = flagged > 1
    assert ("± Monte Carlo ± data)" in said) != loose and (f"gap {sign} " in said) == loose
    assert (f"approximation {sign} " in said) == loose and (f"{flagged}0 % of rows flagged)" in said) == loose
    assert ("±" in said.split("amortisation")[0]) != loose


def test_bare_numbers_are_believed():
    found = gaps(gaussian, guide, X, log_px=oracle(0).log_px, **QUIET)
    assert found.reliable.all() and "≥" not in str(found) and "flagged" not in str(found)


@pytest.mark.parametrize(("num_samples", "loose"), [(24, True), (25, False), (1000, False)])
def test_its_own_log_px_is_judged_by_khat(num_samples, loose):
    """25 particles at least; q* is nearly the posterior here, so that its weights are nearly equal."""
    found = gaps(gaussian, guide, X, steps=200, num_samples=num_samples, verbose=False)
    assert ("gap ≥" in str(found)) == loose and (found.summary()["rows_flagged"] == 10) == loose


def test_a_family_that_cannot_hold_the_posterior_is_flagged():
    """Two latents that are one in the posterior, and a guide of independent ones: k̂ of q* is high, whatever it fitted."""
    lg = LinearGaussian()
    far = lg.x[:12].new_tensor([40.0, 0.0])

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2) + far, 1e-3).to_event(1))

    found = gaps(lg.model, narrow, lg.x[:12], steps=1, num_samples=100, verbose=False)
    assert found.summary()["rows_flagged"] > 6 and "loose" in str(found)


@pytest.mark.parametrize(("train", "test"), [(0, 0), (2, 0), (0, 10)])
def test_overfitting_of_loose_bounds_has_an_error_for_the_encoder_alone(train, test):
    found = Overfitting(*(gaps(gaussian, guide, X, log_px=sampled(n), **QUIET) for n in (train, test)))
    before, encoder = str(found).split("encoder")
    assert ("±" in before) == (train + test == 0) and "±" in encoder
    assert before.count("(loose)") == (0 if train + test == 0 else 2)


def test_overfitting_is_judged_by_its_own_draws_too():
    said = str(overfitting(gaussian, guide, X, X, num_samples=20, **QUIET))
    assert "decoder" in said and said.count("(loose)") == 2 and "100 % of rows flagged" in said


@pytest.mark.parametrize("flagged", [1, 3])
def test_bars_of_loose_gaps_have_no_error_and_say_so(flagged):
    summary = gaps(gaussian, guide, X, log_px=sampled(flagged), **QUIET).summary()
    ax = bars.gap_bars({"rows": summary}).axes[0]
    loose = flagged > 1
    assert len(ax.collections) == (1 if loose else 2)  # the approximation's error bar is gone
    assert ax.get_yticklabels()[0].get_text() == ("rows, loose:\n30 % of rows flagged" if loose else "rows")
    assert ax.texts[0].get_text().startswith("≥ ") == loose


def test_an_oracle_that_flags_is_no_bound_in_the_picture():
    summary = gaps(gaussian, guide, X, log_px=oracle(9), **QUIET).summary()
    assert bars.gap_bars({"rows": summary}).axes[0].texts[0].get_text().startswith("≈ ")


@pytest.mark.parametrize("flagged", [0, 5])
def test_the_title_of_a_loose_bracket_has_no_error(flagged):
    s = {"importance": -2.0, "annealing": -1.9, "lower": -1.9, "upper": -1.8, "gap": 0.1, "gap_se": 0.03, "rows": 9}
    s |= {"importance_mc_se": 0.1, "annealing_mc_se": 0.1, "upper_mc_se": 0.1, "upper_is": "approximate"}
    title = evidence.bracket_ends({"rows": s | {"rows_flagged": flagged}}).axes[0].get_title(loc="left")
    assert ("±" in title) == (not flagged) and ("loose: 56 % of rows flagged" in title) == bool(flagged)


def test_evidence_without_khat_is_loose_throughout():
    found = sampled(0)
    old = Evidence(found.log_px, found.mc_se, found.ess, found.elbo, found.elbo_se, num_samples=100, seed=0)
    with pytest.warns(UnknownProgramsWarning):
        assert "approximation ≥" in str(gaps(gaussian, guide, X, log_px=old, **QUIET))
