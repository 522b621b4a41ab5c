"""Particle filters, smoothing and forecasts against Kalman and the forward algorithm, gaps and ragged lengths included."""

import dataclasses

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Exact, StateSpaceModel, compare, forecast, log_likelihood, particle_filter, per_step, smooth
from pyro_vae.errors import ProgramError, ShapeError, UsageError
from pyro_vae.evidence.sequential import filtering
from pyro_vae.evidence.sequential.filtering import systematic
from pyro_vae.evidence.sequential.particle_filter import ess_of_runs, too_few
from pyro_vae.plots.forecast import forecast_fans
from tests.helpers.state_space import LINE, PLANE, exact_rows, forward, hidden_markov, line, plane, ragged

GAPS = [(0, 2), (1, 3, 1), (4, 0)]
KINDS = {"guided": "guide", "bootstrap": "prior"}


def rows(gaps=GAPS):
    return ragged(PLANE.draw(5, 6), [6, 6, 3, 1, 5], gaps)


def off(estimate, error, truth):
    """How many standard errors apart, over what is there."""
    there = ~truth.isnan()
    return ((estimate - truth).abs() / (error + 1e-7))[there]


def stacked(each, steps):
    """Sequences of several lengths as one array, NaN beyond them."""
    whole = torch.full((len(each), steps, *each[0].shape[1:]), torch.nan).double()
    for n, row in enumerate(each):
        whole[n, : len(row)] = row
    return whole


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def filtered(request):
    x, lengths = rows()
    return particle_filter(plane(missing=True), x, lengths, num_particles=400, num_runs=40, proposal=request.param)


def test_log_p_x_is_kalmans_and_the_steps_add_up_to_it(filtered):
    x, lengths = rows()
    assert off(filtered.log_px, filtered.mc_se, PLANE.log_px(x, lengths)).max() < 4
    assert filtered.mc_se.max() < 0.1
    assert torch.allclose(filtered.one_step.nansum(1), filtered.log_px)


def test_each_one_step_ahead_prediction_is_kalmans(filtered):
    x, lengths = rows()
    truth = stacked(exact_rows(PLANE.one_step, x, lengths), 6)
    assert torch.equal(filtered.one_step.isnan(), truth.isnan())
    assert off(filtered.one_step, filtered.one_step_se, truth).max() < 4


def test_filtering_means_are_kalmans(filtered):
    x, lengths = rows()
    truth = stacked(exact_rows(PLANE.means, x, lengths), 6)
    assert off(filtered.mean, filtered.mean_se, truth).max() < 4.5  # of 42 numbers
    assert filtered.mean_se.nan_to_num(0).max() < 0.05


def test_smoothing_is_rauch_tung_and_striebels_and_not_filtering():
    x, lengths = rows()
    s = smooth(plane(missing=True), x, lengths, num_particles=150, num_runs=40)
    mean, sd = (stacked(each, 6) for each in zip(*exact_rows(PLANE.smoothed, x, lengths), strict=True))
    assert off(s.mean, s.mean_se, mean).max() < 4.5
    assert (s.sd - sd).abs().nan_to_num(0).max() < 0.08
    filter_means = stacked(exact_rows(PLANE.means, x, lengths), 6)
    assert off(s.mean, s.mean_se, filter_means).max() > 10


@pytest.mark.parametrize("proposal", KINDS.values(), ids=KINDS)
def test_a_hidden_markov_model_is_filtered_to_the_forward_algorithm(proposal):
    x, lengths = ragged(LINE.draw(4, 8)[..., 0], [8, 5, 1, 7], [(0, 1)])
    f = particle_filter(hidden_markov(), x, lengths, num_particles=300, num_runs=40, proposal=proposal)
    steps, means = (stacked(each, 8) for each in zip(*exact_rows(forward, x, lengths), strict=True))
    assert off(f.log_px, f.mc_se, steps.nansum(1)).max() < 4
    assert off(f.one_step, f.one_step_se, steps).max() < 4
    assert off(f.mean, f.mean_se, means).max() < 4


def test_the_filter_agrees_with_importance_sampling_by_the_chain_rule():
    model, (x, lengths) = plane(), rows(())
    f = particle_filter(model, x, lengths)
    e = log_likelihood(model.model, model.guide, x, lengths, num_samples=20_000, verbose=False)
    gap, error = f.difference(e)
    assert abs(gap) < 4 * error < 0.4
    assert "particle filter" in str(f) and "filter" in str(compare({"filter": f, "sampled": e}))


def test_a_filter_that_forgets_the_weights_of_the_steps_before_is_seen(monkeypatch):
    """The broken variant: resampled or not, all particles count alike after each step."""
    keep = filtering.Cloud.__init__

    def forgetful(self, z, log_weights, log_increment):
        keep(self, z, torch.full_like(log_weights, -torch.tensor(float(len(z))).log()), log_increment)

    monkeypatch.setattr(filtering.Cloud, "__init__", forgetful)
    x, lengths = rows()
    f = particle_filter(plane(missing=True), x, lengths, num_particles=400)
    assert off(f.log_px, f.mc_se, PLANE.log_px(x, lengths)).max() > 6


def test_one_filter_draws_by_weight():
    weights = torch.tensor([[0.5], [0.0], [0.2], [0.3]]).double()
    counts = torch.stack([torch.bincount(systematic(weights.log())[:, 0], minlength=4) for _ in range(2000)]).double()
    assert (counts.sum(1) == 4).all() and counts[:, 1].max() == 0
    assert ((counts - 4 * weights[:, 0]).abs() < 1).all()  # of systematic resampling: each number is rounded
    assert torch.allclose(counts.mean(0), 4 * weights[:, 0], atol=0.05)


def test_a_seed_draws_the_same_and_the_global_state_stays():
    x, lengths = rows()
    before = torch.get_rng_state()
    a, b = (particle_filter(plane(missing=True), x, lengths, num_particles=20, seed=4) for _ in range(2))
    other = particle_filter(plane(missing=True), x, lengths, num_particles=20, seed=5)
    assert torch.equal(a.log_px, b.log_px) and not torch.equal(a.log_px, other.log_px)
    assert torch.equal(before, torch.get_rng_state())


def test_an_encoder_is_called_as_the_guide_calls_it():
    model, (x, _) = plane(), rows(())
    seen, encoder = [], model.encoder
    model.encoder = lambda x, lengths: seen.append(lengths) or encoder(x, lengths)
    particle_filter(model, x[:2], num_particles=5)
    assert seen and set(seen) == {None}


def test_few_particles_that_count_are_flagged():
    model, (x, lengths) = plane(), rows(())
    f = particle_filter(model, x + 30, lengths, num_particles=50, proposal="prior")
    assert len(f.flagged) == len(x) and "loose" in str(f)


def test_smoothing_and_forecasts_carry_the_flags_of_their_filters():
    """Where one filter outweighs the others they spread about it by nothing: E[z_T | x] is thousands of `mean_se` off."""
    model, (x, lengths) = plane(), rows(())
    x, lengths = x[:2, :2] + torch.tensor([[[0.0]], [[30.0]]]), lengths[:2].clamp_max(2)
    options = {"num_particles": 30, "num_runs": 6, "proposal": "prior"}
    f, one = particle_filter(model, x, lengths, **options), smooth(model, x, lengths, num_trajectories=5, **options)
    flagged, at = f.flagged.tolist(), (1, lengths[1] - 1)
    drawn = forecast(model, x, lengths, steps=1, num_samples=5, **options)
    assert 1 in flagged and one.flagged.tolist() == drawn.flagged.tolist() == flagged
    assert f"{len(flagged)} row" in str(one) and "flagged)" in str(drawn)
    assert ((one.mean - f.mean).abs()[at] > 1000 * (one.mean_se + f.mean_se)[at]).all()
    assert too_few(torch.full((2,), 30.0), ess_of_runs(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), 2).tolist() == [
        False,
        True,
    ]


# --- forecasts ------------------------------------------------------------------------------------------------------------


def ahead(sequence, steps):
    """Mean and standard deviation of x_{T+h}, by Kalman: the steps after it are gaps."""
    x = torch.cat([sequence, torch.full((steps, sequence.shape[1]), torch.nan)])
    moments = PLANE.filter(x)[-steps:]
    means = torch.stack([PLANE.c @ m for _, m, *_ in moments])
    covs = torch.stack([PLANE.c @ p @ PLANE.c.T + PLANE.r for _, _, p, *_ in moments])
    return means, covs.diagonal(dim1=-2, dim2=-1).sqrt()


def test_quantiles_of_forecasts_are_kalmans_each_from_its_own_last_step():
    x, lengths = rows()
    drawn = forecast(plane(missing=True), x, lengths, steps=3, num_samples=4000)
    quantiles = drawn.quantiles((0.1, 0.5, 0.9))
    for n, (mean, sd) in enumerate(exact_rows(lambda row: ahead(row, 3), x, lengths)):
        normal = dist.Normal(mean, sd)
        levels = normal.cdf(quantiles[:, n])
        assert (
            levels - torch.tensor([0.1, 0.5, 0.9]).double()[:, None, None]
        ).abs().max() < 0.05  # √(1/4 / 4000) is 0.008
    assert drawn.draws.shape == (4000, 5, 3, 2) and drawn.latents.shape == (4000, 5, 3, 2)
    assert (drawn.probability_below(quantiles[1]) - 0.5).abs().max() < 0.01


def test_a_picture_of_forecasts_is_drawn(tmp_path):
    fan = [[0.0, -1.0], [0.5, 0.0], [1.0, 1.0], [1.5, 2.0], [2.0, 3.0]]
    fig = forecast_fans({"a": ([1.0, 2.0], fan, [1.2]), "b": ([1.0], fan, [])}, ylabel="x_t")
    assert [ax.get_xlabel() for ax in fig.axes] == ["step", "step"]
    assert len(fig.axes) == 2 and fig.axes[0].get_ylabel() == "x_t"


# --- per step -------------------------------------------------------------------------------------------------------------


def test_nats_per_step_are_sums_over_sums():
    x, lengths = ragged(LINE.draw(6, 5), [5, 5, 3, 1, 4, 2])
    model = line(5)
    e = log_likelihood(model.model, model.guide, x, lengths, num_samples=4, verbose=False)
    whole = per_step(e, lengths)
    assert whole.log_px == pytest.approx((LINE.log_px(x, lengths).sum() / lengths.sum()).item(), abs=1e-6)
    assert whole.steps == 20 and whole.data_se > 0 and "nats per step" in str(whole)
    with pytest.raises(ShapeError, match="6 lengths"):
        per_step(e, lengths[1:])


@pytest.mark.parametrize("flagged", [0, 2, 3, 20], ids=str)
def test_nats_per_step_carry_the_flags_of_their_sequences(flagged):
    """Up to a tenth of the rows may be flagged beside an error; beyond there is none, and an oracle is no bound."""
    values, reliable = torch.full((20,), -5.0).double(), torch.arange(20) >= flagged
    text = str(per_step(Exact(values, torch.ones(20).double(), reliable, "quadrature", "continuous", ""), [5] * 20))
    if flagged > 2:
        assert "±" not in text and "≈ -1.00" in text and f"{5 * flagged} % of rows flagged" in text
    else:
        assert "±" in text and "-1.0000" in text and "flagged" not in text


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_programs_that_are_not_those_of_the_roles_are_refused_by_site():
    model, (x, lengths) = plane(), rows(())
    other = plane()
    other.transition = lambda z: dist.Normal(0.5 * z, 1.0).to_event(1)
    other.model = model.model
    with pytest.raises(ProgramError, match="site 'z_2' of the model has another density than the roles say, in rows"):
        particle_filter(other, x, lengths)


def test_a_guide_that_leaves_out_some_of_the_prior_proposes_nothing():
    walk = StateSpaceModel(
        initial=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        transition=lambda z: dist.Normal(0.9 * z, 0.5).to_event(1),
        likelihood=lambda z: dist.Normal(z, 1.0).to_event(1),
        encoder=lambda x, lengths=None: x,
        posterior=lambda z, h: dist.HalfNormal(1 + 0 * h).to_event(1),
    )
    x, few = torch.zeros(2, 2, 1), {"num_particles": 5, "num_runs": 2}
    with pytest.raises(ProgramError, match=r"site 'z_1': the guide never draws .* proposal='prior'"):
        particle_filter(walk, x, **few)
    with pytest.raises(ProgramError, match="site 'z_1': the guide never draws"):
        smooth(walk, x, **few)
    with pytest.raises(ProgramError, match="site 'z_1': the guide never draws"):
        forecast(walk, x, steps=1, **few)
    assert particle_filter(walk, x, proposal="prior", **few).log_px.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_runs": 1}, UsageError, "num_runs must be at least 2"),
        ({"num_particles": 0}, UsageError, "num_particles must be at least 1"),
        ({"proposal": "smoother"}, UsageError, "'guide' or 'prior'"),
        ({"particles": 9}, TypeError, "did you mean 'num_particles'"),
    ],
    ids=["one_run", "no_particles", "proposal", "typo"],
)
def test_arguments_that_mean_nothing(options, error, said):
    with pytest.raises(error, match=said):
        particle_filter(plane(), *rows(()), **options)


def test_what_has_no_roles_is_no_state_space_model():
    with pytest.raises(UsageError, match="has no model: wanted a StateSpaceModel"):
        particle_filter(torch.nn.Linear(1, 1), *rows(()))


def test_parameters_that_are_invalid_where_particles_go_are_named():
    model, (x, lengths) = plane(), rows(())
    model.transition = lambda z: dist.Normal(z, 3.0 - z.abs().clamp_max(2.9) * 1.2).to_event(1)
    with pytest.raises(ProgramError, match="scale"):
        particle_filter(model, 2 * x, lengths, num_particles=400, proposal="prior")


def test_results_are_plain_data():
    f = particle_filter(plane(), *rows(()), num_particles=20)
    assert {"log_px_per_step", "steps", "rows_flagged"} <= f.summary().keys()
    assert dataclasses.is_dataclass(f) and len(f) == 5 and f.row_ids is not None
