"""State-space models: every number of sequences against Kalman and the forward algorithm, engines, and what is refused."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.nn.utils.rnn import pack_sequence

from pyro_vae import (
    MLP,
    BackwardGRU,
    Conditional,
    SkipMissing,
    StandardNormal,
    StateSpaceModel,
    WithMask,
    ais,
    bracket,
    cosine,
    encode,
    fit,
    fit_ensemble,
    impute_mean,
    latents,
    log_likelihood,
    log_weights,
    normal,
    posterior_predictive_check,
    reconstruct,
    sample,
    simulate,
    simulation_based_calibration,
)
from pyro_vae.errors import DataError, ShapeError, UsageError
from tests.helpers.engines import weights
from tests.helpers.environment import HEAVY
from tests.helpers.state_space import LINE, PLANE, exact_rows, forward, hidden_markov, line, plane, ragged

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [5, 5, 3, 1, 4, 2]


def line_rows(rows=6, steps=5):
    return ragged(LINE.draw(rows, steps), (LENGTHS * rows)[:rows] if steps == 5 else [steps] * rows)


def plane_rows(gaps=()):
    return ragged(PLANE.draw(4, 3), [3, 3, 2, 1], gaps)


GAPS = [(0, 1), (1, 0, 1), (2, 1, 0)]


def deep(missing=False):
    """A deep Markov model with small networks."""
    torch.manual_seed(1)
    likelihood, encoder = Conditional(MLP(2, 2 * 3, (8,)), normal), BackwardGRU(6 if missing else 3, 5)
    return StateSpaceModel(
        initial=StandardNormal(2),
        transition=Conditional(MLP(2, 2 * 2, (8,)), normal),
        likelihood=SkipMissing(likelihood) if missing else likelihood,
        encoder=WithMask(encoder) if missing else encoder,
        posterior=Conditional(MLP(2 + 5, 2 * 2, (8,)), normal),
    )


def deep_rows(rows=20, steps=4):
    x = torch.randn(rows, steps, 3, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(rows) % steps + 1


# --- exact truth ----------------------------------------------------------------------------------------------------------


def test_under_the_exact_posterior_every_weight_is_kalmans_p_x():
    model, (x, lengths) = line(5), line_rows()
    log_w = log_weights(model.model, model.guide, x, lengths, num_particles=3)
    assert torch.allclose(log_w, LINE.log_px(x, lengths), atol=1e-6)


def test_what_is_beyond_a_sequence_counts_for_nothing():
    """Nor does the mask of another length: the broken variant, of lengths one too long, is another number."""
    model, (x, lengths) = line(5), line_rows()
    other = x.clone()
    for row, n in enumerate(lengths.tolist()):
        other[row, n:] = 50.0
    log_w = log_weights(model.model, model.guide, other, lengths)[0]
    assert torch.allclose(log_w, LINE.log_px(x, lengths), atol=1e-6)
    longer = log_weights(model.model, model.guide, x, (lengths + 1).clamp_max(5))[0]
    assert ((longer - log_w).abs() > 0.1).sum() == (lengths < 5).sum()


def within(estimate, truth, errors=4):
    off = (estimate.log_px - truth).abs()
    return bool((off <= errors * estimate.mc_se + 1e-9).all())


@pytest.mark.parametrize("gaps", [(), GAPS], ids=["whole", "with_gaps"])
def test_the_closed_form_is_kalmans_where_steps_are_masked(gaps):
    model, (x, lengths) = plane(missing=bool(gaps)), plane_rows(gaps)
    exact = log_likelihood(*programs(model), x, lengths, method="exact", missing=True)
    assert exact.method == "linear-Gaussian closed form"
    assert torch.allclose(exact.log_px, PLANE.log_px(x, lengths), atol=1e-6)


@pytest.mark.parametrize("gaps", [(), GAPS], ids=["whole", "with_gaps"])
def test_importance_sampling_is_kalmans(gaps):
    model, (x, lengths) = plane(missing=bool(gaps)), plane_rows(gaps)
    e = log_likelihood(model.model, model.guide, x, lengths, num_samples=20_000, verbose=False)
    assert within(e, PLANE.log_px(x, lengths)) and (e.mc_se < 0.1).all()


def test_annealing_from_the_prior_is_kalmans():
    model, (x, lengths) = plane(), plane_rows()
    annealed = ais(
        model.model, model.guide, x, lengths, start="prior", num_temperatures=30, num_chains=32, leapfrog_steps=3,
        verbose=False,
    )  # fmt: skip
    assert within(annealed, PLANE.log_px(x, lengths)) and (annealed.mc_se < 0.7).all()


def test_both_ends_of_a_bracket_hold_kalmans_log_p_x():
    model, (x, lengths) = plane(), plane_rows()
    drawn = simulate(model.model, x, lengths, seed=3)
    ends = bracket(
        model.model, model.guide, drawn.x, lengths, latents=drawn.latents, num_temperatures=12, leapfrog_steps=3,
        verbose=False,
    )  # fmt: skip
    truth = PLANE.log_px(drawn.x, lengths)
    assert ends.strict
    assert (ends.lower - 4 * ends.lower_se <= truth).all() and (truth <= ends.upper + 4 * ends.upper_se).all()


def test_the_states_of_a_hidden_markov_model_are_enumerated_to_the_forward_algorithm():
    model = hidden_markov()
    x, lengths = ragged(LINE.draw(4, 4)[..., 0], [4, 3, 1, 4], [(0, 1)])
    truth = torch.stack([steps.sum() for steps, _ in exact_rows(forward, x, lengths)])
    exact = log_likelihood(model.model, model.guide, x, lengths, method="exact", missing=True)
    sampled = log_likelihood(model.model, model.guide, x, lengths, num_samples=5000, verbose=False)
    assert torch.allclose(exact.log_px, truth, atol=1e-6) and within(sampled, truth)


def test_stock_pyro_sums_the_states_out_in_parallel():
    """TraceEnum_ELBO on the same model with an empty guide, its cost linear in T."""
    model, x = hidden_markov(), LINE.draw(3, 6)[..., 0]
    truth = torch.stack([forward(row)[0].sum() for row in x])
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model.model, "parallel"), lambda x: None, x)
    assert loss == pytest.approx(-truth.sum().item(), abs=1e-6)


def test_training_finds_the_posterior_to_a_hundredth_of_a_nat():
    """A guide of the posterior's family, started away from it; the optimum of its ELBO is Kalman's log p(x)."""
    model, (x, lengths) = line(3), line_rows(400, 3)
    with torch.no_grad():
        model.posterior.table.mul_(0.3)
    truth = LINE.log_px(x, lengths).mean().item()
    run = fit(
        model,
        x,
        lengths,
        epochs=25,
        batch_size=100,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        schedule=cosine,
        seed=2,
        verbose=False,
    )
    assert run.history[0]["train_elbo"] < truth - 0.1
    e = log_likelihood(model.model, model.guide, x, lengths, num_samples=200, verbose=False)
    assert abs(e.elbo.mean().item() - truth) < 0.02


# --- every evaluation -----------------------------------------------------------------------------------------------------


def test_sbc_ranks_only_what_is_there_and_tells_a_guide_that_is_too_narrow():
    x, lengths = line_rows()
    calibrated = simulation_based_calibration(*programs(line(5)), x, lengths, num_rows=300, num_draws=49)
    assert calibrated.passed, calibrated
    rows = dict(zip(calibrated.names, calibrated.rows_ranked.tolist(), strict=True))
    assert [rows[f"z_{t}"] for t in range(1, 6)] == [50 * sum(n >= t for n in LENGTHS) for t in range(1, 6)]
    narrow = simulation_based_calibration(*programs(line(5, -0.5)), x, lengths, num_rows=300, num_draws=49)
    assert not narrow.passed and "too narrow" in str(narrow)


def programs(model):
    return model.model, model.guide


def test_a_gap_is_imputed_as_the_smoother_says():
    model, (x, lengths) = plane(missing=True), plane_rows(GAPS)
    filled = impute_mean(model, x, lengths, num_samples=20_000)
    ess = log_likelihood(*programs(model), x, lengths, num_samples=20_000, verbose=False).ess
    for n, (mean, _) in enumerate(exact_rows(PLANE.smoothed, x, lengths)):
        gap = x[n, : len(mean)].isnan()
        off = (filled[n, : len(mean)] - mean @ PLANE.c.T)[gap].abs()
        assert (off < 4 * 1.5 / ess[n].sqrt()).all()  # the means of p(x_t | z_t) have a standard deviation below 1.5
        assert torch.equal(filled[n, : len(mean)][~gap], x[n, : len(mean)][~gap])


def test_latent_usage_and_predictive_checks_take_sequences():
    model, (x, lengths) = line(5), line_rows(30)
    usage = latents(*programs(model), x, lengths, num_samples=8)
    assert usage.mutual_information > 0.3
    check = posterior_predictive_check(*programs(model), x, lengths, num_draws=20)
    assert len(check.p_value if hasattr(check, "p_value") else x) == len(x)


# --- engines --------------------------------------------------------------------------------------------------------------


def trained(engine, rows):
    model = deep()
    run = fit(model, *rows, epochs=2, batch_size=8, seed=5, engine=engine, verbose=False)
    return run, weights(model)


def test_training_traces_to_the_same_bits():
    (eager, held), (traced, other) = (trained(engine, deep_rows(16, 2)) for engine in ("eager", "trace"))
    assert "traced" in traced.engine and "eager from here on" not in traced.engine
    assert all(map(torch.equal, held, other))
    assert [r["elbo"] for r in eager.history] == [r["elbo"] for r in traced.history]


@pytest.mark.skipif(not HEAVY, reason="ten seconds of a compiler: PYRO_VAE_HEAVY=1")
def test_training_compiles():
    (_, held), (compiled, other) = (trained(engine, deep_rows(16, 2)) for engine in ("eager", "compile"))
    assert "eager from here on" not in compiled.engine
    for ours, theirs in zip(held, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_two_seeds_train_as_one_graph():
    ensemble = fit_ensemble(
        deep, *deep_rows(20, 2), seeds=[0, 1], epochs=1, batch_size=10, engine="trace", verbose=False
    )
    assert "2 members as one graph" in ensemble.results[0].engine, ensemble.results[0].engine


def test_gaps_within_sequences_train():
    x, lengths = deep_rows()
    x[3, 0] = x[7, 1, 2] = torch.nan
    model = deep(missing=True)
    run = fit(model, x, lengths, epochs=2, batch_size=8, missing=True, verbose=False)
    assert torch.tensor([r["elbo"] for r in run.history]).isfinite().all()


def test_the_cost_is_linear_in_the_number_of_steps():
    """Calls of the roles, whatever they cost."""
    calls = []
    for steps in (4, 8, 12):
        model, (x, _) = deep(), deep_rows(3, steps)
        counts = [0]
        for part in (model.transition, model.likelihood, model.posterior):
            part.register_forward_hook(lambda *_, counts=counts: counts.__setitem__(0, counts[0] + 1))
        model.guide(x)
        model.model(x)
        calls.append(counts[0])
    assert calls == [3 * steps - 1 for steps in (4, 8, 12)]


# --- the encoder ----------------------------------------------------------------------------------------------------------


def test_the_encoder_sees_a_sequence_as_if_it_stood_alone():
    gru, (x, lengths) = BackwardGRU(3, 5), deep_rows()
    together = gru(x, lengths)
    for n, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[n : n + 1, :length], gru(x[n : n + 1, :length]))


def test_the_encoder_is_torchs_gru_backwards():
    gru, (x, _) = BackwardGRU(3, 5), deep_rows()
    stock = torch.nn.GRU(3, 5, batch_first=True)
    stock.load_state_dict(
        {
            "weight_ih_l0": gru.inputs.weight, "bias_ih_l0": gru.inputs.bias,
            "weight_hh_l0": gru.recurrent.weight, "bias_hh_l0": gru.recurrent.bias,
        }
    )  # fmt: skip
    torch.testing.assert_close(gru(x), stock(x.flip(1))[0].flip(1))


def test_contexts_reach_every_role():
    model = StateSpaceModel(
        initial=lambda c: dist.Normal(c, 1.0).to_event(1),
        transition=lambda z, c: dist.Normal(z + c, 1.0).to_event(1),
        likelihood=lambda z, c: dist.Normal(z + c, 1.0).to_event(1),
        encoder=lambda x, lengths, c: x + c.unsqueeze(1),
        posterior=lambda z, h, c: dist.Normal(z + h + c, 1.0).to_event(1),
    )
    x, c = torch.zeros(2, 3, 1), torch.tensor([[1.0], [2.0]])
    sites = pyro.poutine.trace(model.model).get_trace(x, torch.tensor([3, 2]), c).nodes
    assert torch.equal(sites["z_1"]["fn"].base_dist.loc, c)


# --- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda m, *args: log_likelihood(m.model, m.guide, *args, verbose=False),
        lambda m, *args: fit(m, *args, epochs=1, verbose=False),
        lambda m, *args: m.model(*args),
    ],
    ids=["log_likelihood", "fit", "by_hand"],
)
@pytest.mark.parametrize("wrong", [0, 5, -1], ids=["zero", "too_long", "negative"])
def test_lengths_that_x_does_not_have_are_refused_by_row(use, wrong):
    x, lengths = deep_rows()
    lengths[7] = wrong
    with pytest.raises(DataError, match=rf"lengths are outside 1..4 in 1 of \d+ rows: .*{wrong} in row"):
        use(deep(), x, lengths)


def test_sequences_are_encoded_step_by_step_and_drawn_like_others():
    model, (x, lengths) = deep(), deep_rows()
    steps = x.shape[1]
    assert list(encode(model, x, lengths)) == [f"z_{t + 1}" for t in range(steps)]
    assert reconstruct(model, x, lengths, site="x_1").shape == x[:, 0].shape
    assert set(sample(model, 3, like=x)) == {f"{s}_{t + 1}" for t in range(steps) for s in "zx"}
    with pytest.raises(UsageError, match="like=x"):
        sample(model, 3)


def test_as_many_lengths_as_rows():
    x, lengths = deep_rows()
    with pytest.raises(ShapeError, match="x has 20 rows, context 0 has 19"):
        log_likelihood(*programs(deep()), x, lengths[1:], verbose=False)


def test_a_packed_sequence_is_told_how_to_be_padded():
    packed = pack_sequence([torch.zeros(3, 3), torch.zeros(2, 3)])
    with pytest.raises(UsageError, match="pad_sequences"):
        deep().model(packed)
