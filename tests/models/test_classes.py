"""Discrete beside continuous: the mixture and M2 against linear-Gaussian classes, whose log p(x) and p(y | x) are exact."""

import os

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO

from pyro_vae import (
    MLP,
    Bound,
    Classes,
    Conditional,
    SemiSupervised,
    adam,
    ais,
    bracket,
    class_posterior,
    cosine,
    dreg,
    elbo,
    encode,
    fit,
    fit_ensemble,
    gaps,
    iwae,
    latents,
    log_likelihood,
    normal,
    quadrature,
    reconstruct,
    sample,
    simulate,
    simulation_based_calibration,
    stl,
    supervised,
)
from pyro_vae.errors import ProgramError, PyroVAEError, SupportError
from tests.helpers.classes import labelled, log_joint_labelled, log_joint_mixed, mixed, rows, rows_mixed

X = rows_mixed(6)
EXACT = log_joint_mixed(X.double()).logsumexp(-1)
XL, Y, ALL = rows(6)
JOINT = log_joint_labelled(XL.double())
TRUTH = torch.where(Y >= 0, JOINT.gather(-1, ALL[:, None])[:, 0], JOINT.logsumexp(-1))
SHORT = {"num_temperatures": 6, "num_chains": 16, "leapfrog_steps": 2, "verbose": False}


def within(found, exact, errors=4):
    return bool(((found.log_px - exact).abs() <= errors * found.mc_se + 1e-6).all())


# --- log p(x), log p(x, y) ---------------------------------------------------------------------------------------------------


def test_mixture_by_importance_sampling():
    vae = mixed()
    assert within(log_likelihood(vae.model, vae.guide, X, num_samples=2000, verbose=False), EXACT)


def test_the_weights_of_an_exact_guide_are_exact_with_and_without_labels():
    vae = labelled()
    for args, exact in (
        ((XL, Y), TRUTH),
        ((XL,), JOINT.logsumexp(-1)),
        ((XL, ALL), JOINT.gather(-1, ALL[:, None])[:, 0]),
    ):
        found = log_likelihood(vae.model, vae.guide, *args, num_samples=8, verbose=False)
        assert (found.log_px - exact).abs().max() < 1e-5 and found.elbo.sub(exact).abs().max() < 1e-5


def test_a_class_that_weighs_other_than_the_models_shows():
    """The broken variant: with p(y) uniform the same rows have another log p(x)."""
    vae = mixed()
    vae.classes = Classes(3)
    assert not within(log_likelihood(vae.model, vae.guide, X, num_samples=2000, verbose=False), EXACT)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_annealing(start):
    vae = mixed()
    assert within(ais(vae.model, vae.guide, X, start=start, **SHORT), EXACT)


def test_both_ends_of_a_bracket_with_labels_and_without():
    vae, x = labelled(), XL[:4]
    wide = labelled(posterior=lambda x, y: dist.Normal(x[..., :2] * 0.4, 0.9).to_event(1))
    ends = bracket(wide.model, wide.guide, x, Y[:4], num_samples=500, **SHORT)
    assert ((ends.lower - TRUTH[:4]).abs() < 4 * ends.lower_se + 0.01).all()
    assert (ends.upper - TRUTH[:4] > -4 * ends.upper_se - 0.01).all()
    drawn = simulate(vae.model, x[:3])
    strict = bracket(vae.model, vae.guide, *drawn.args, latents=drawn.latents, num_samples=10, **SHORT)
    assert strict.strict and strict.gap.abs().max() < 1e-4


def test_quadrature_of_both():
    for vae, x, exact in ((mixed(), X[:2], EXACT[:2]), (labelled(), XL[:2], JOINT.logsumexp(-1)[:2])):
        assert (quadrature(vae.model, None, x, tol=1e-3).log_px - exact).abs().max() < 1e-3


# --- p(y | x) ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "x", "joint"), [(mixed, X, log_joint_mixed), (labelled, XL, log_joint_labelled)], ids=["mixture", "m2"]
)
def test_class_posterior_is_that_of_bayes_rule(make, x, joint):
    vae, exact = make(), joint(x.double())
    found = class_posterior(vae.model, vae.guide, x, num_samples=2000, verbose=False)
    assert ((found.log_joint - exact).abs() < 4 * found.log_joint_se + 1e-5)[exact.softmax(-1) > 1e-3].all()
    assert ((found.probs - exact.softmax(-1)).abs() < 4 * found.probs_se + 1e-4).all()
    assert within(found, exact.logsumexp(-1))


@pytest.mark.parametrize("off", [5.0, 8.0])
def test_a_class_that_its_guide_misses_does_not_pass_for_one_without_probability(off):
    """p(y | x) is 1/2; log p(x, 1) came out too low by 5 to 20 nats, and p(y = 0 | x) as 1 ± 1e-7, without a flag."""

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(8 * y - 4, 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=x)

    def guide(x, off=off):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("z", dist.Normal((2 * y - 1) * (x / 2 + 2) - off * y, 0.5**0.5))

    x = torch.tensor([3.0, 4.0, 5.0])
    found = class_posterior(model, guide, x, num_samples=500, verbose=False)
    assert (found.probs[:, 1] < 0.01).all() and found.flagged.tolist() == [0, 1, 2] and "log p(x) ≥" in str(found)
    near = class_posterior(model, lambda x: guide(x, 0.0), x, num_samples=500, verbose=False)
    assert not len(near.flagged) and (near.probs[:, 1] - 0.5).abs().max() < 0.1


def test_what_classify_says():
    assert (labelled().classify(XL) - JOINT.softmax(-1)).abs().max() < 1e-5
    torch.manual_seed(0)
    assert (mixed().classify(X).sum(-1) - 1).abs().max() < 1e-5


# --- training ----------------------------------------------------------------------------------------------------------------


def test_the_elbo_that_is_trained_is_trace_enums():
    vae = labelled(posterior=lambda x, y: dist.Normal(x[..., :2] * 0.4 + y[..., :2], 0.9).to_event(1))
    objective = TraceEnum_ELBO(max_plate_nesting=1, num_particles=400, vectorize_particles=True)
    theirs = -objective.loss(vae.model, vae.guide, XL) / len(XL)
    torch.manual_seed(0)
    ours = torch.stack([Bound(elbo, 200).per_row(vae.model, vae.guide, XL) for _ in range(8)]).mean(1)
    assert abs(ours.mean().item() - theirs) < 4 * 1.5 * ours.std().item() / 8**0.5 + 0.05


def test_the_bound_of_an_exact_guide_is_log_p():
    vae = labelled()
    assert (Bound(elbo).per_row(vae.model, vae.guide, XL, Y) - TRUTH).abs().max() < 1e-5


def test_the_bound_trains_the_classifier_as_enumeration_does():
    """Gradients of q(y | x) on unlabelled rows, by hand: the exact z, all classes weighed."""
    logits = torch.zeros(len(XL), 3, requires_grad=True)
    vae = labelled(classifier=lambda x: dist.Categorical(logits=logits))
    Bound(elbo).loss_and_grads(vae.model, vae.guide, XL)
    by_hand = logits.detach().requires_grad_()
    q = by_hand.softmax(-1)
    (-(q * (JOINT.float() - q.log())).sum()).backward()
    assert (logits.grad - by_hand.grad).abs().max() < 1e-4


def trainable():
    torch.manual_seed(1)
    classifier = Conditional(MLP(3, 3, ()), lambda h: dist.Categorical(logits=h), event_dim=0)
    return labelled(classifier, Conditional(MLP(3 + 3, 2 * 2, ()), normal))


def test_training_reaches_log_p():
    """The guide's families hold the posterior: the optimum is log p(x, y) of labelled rows, log p(x) of the others."""
    x, y, every = rows(512, seed=1)
    joint = log_joint_labelled(x)
    best = torch.where(y >= 0, joint.gather(-1, every[:, None])[:, 0], joint.logsumexp(-1)).mean().item()
    vae = trainable()
    fit(vae, x, y, epochs=20, batch_size=64, optimizer=adam(0.05), schedule=cosine, verbose=False)
    elbo_now = Bound(elbo, 16).per_row(vae.model, vae.guide, x, y).mean().item()
    assert best - 0.02 < elbo_now < best + 0.02


@pytest.mark.parametrize("engine", ["trace", *(["compile"] if os.environ.get("PYRO_VAE_HEAVY") else [])])
def test_engines_give_what_eager_gives(engine):
    """A compiler takes a minute: only where that is asked for."""
    x, y, _ = rows(64)
    losses = []
    for one in ("eager", engine):
        run = fit(
            trainable(),
            x,
            y,
            epochs=2,
            batch_size=16,
            objective=Bound(elbo, terms=[supervised(5.0)]),
            engine=one,
            verbose=False,
        )
        losses.append([record["loss"] for record in run.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_transform_to_another_shape_is_what_the_sum_over_codes_is_of():
    """As of M2 on the latents of another model: trained on rows of 6 columns made 3, as on these 3 from the start."""
    x, y, _ = rows(48)
    wide = torch.cat([x / 2, x], 1)
    kept = {"objective": Bound(elbo, terms=[supervised(5.0)]), "epochs": 2, "batch_size": 16, "engine": "trace"}
    before = fit(trainable(), x, y, **kept, transform=lambda x, g: x.clone(), verbose=False)
    made = fit(trainable(), wide, y, **kept, transform=lambda x, g: x[:, 3:].clone(), verbose=False)
    assert [r["loss"] for r in made.history] == [r["loss"] for r in before.history]
    assert made.history[-1]["elbo"] == before.history[-1]["elbo"]


def test_an_ensemble_of_two_trains():
    x, y, _ = rows(64)
    found = fit_ensemble(
        trainable,
        x,
        y,
        seeds=(0, 1),
        epochs=1,
        batch_size=16,
        objective=Bound(elbo, terms=[supervised(5.0)]),
        verbose=False,
    )
    assert len(found) == 2


@pytest.mark.parametrize(
    "objective", [Bound(iwae, 4, estimator=dreg), Bound(elbo, 2, estimator=stl)], ids=["iwae-dreg", "elbo-stl"]
)
def test_a_site_of_the_model_alone_is_summed_out_under_any_bound(objective):
    vae = mixed(Conditional(MLP(3, 4, (8,)), normal))
    run = fit(vae, rows_mixed(64), epochs=2, batch_size=32, objective=objective, verbose=False)
    assert run.history[-1]["elbo"] < log_joint_mixed(rows_mixed(64)).logsumexp(-1).mean() + 1


def test_the_classifiers_term_is_of_labelled_rows_alone():
    vae, term = labelled(), supervised(2.0)
    with_it, without = (Bound(elbo, terms=t).per_row(vae.model, vae.guide, XL, Y) for t in ([term], []))
    log_q = JOINT.log_softmax(-1).gather(-1, ALL[:, None])[:, 0].float()
    assert torch.allclose(with_it - without, torch.where(Y >= 0, 2 * log_q, 0.0), atol=1e-4)


# --- everything else ---------------------------------------------------------------------------------------------------------


def test_diagnostics_run_on_both():
    vae, m2 = mixed(), labelled()
    split = gaps(vae.model, vae.guide, X, log_px=EXACT, steps=20, num_samples=50, verbose=False)
    assert (split.gap > -4 * split.gap_se).all() and latents(vae.model, vae.guide, X).units == 2
    assert latents(m2.model, m2.guide, XL, Y).units == 2
    calibrated = simulation_based_calibration(m2.model, m2.guide, XL[:1], num_rows=200, num_draws=9)
    assert calibrated.passed and calibrated.names[-1] == "log p(x, z)"


def test_a_guide_that_is_too_narrow_is_miscalibrated():
    m2 = labelled(posterior=lambda x, y: dist.Normal(x[..., :2] * 0.4, 0.1).to_event(1))
    assert not simulation_based_calibration(m2.model, m2.guide, XL[:1], num_rows=200, num_draws=9).passed


def test_use():
    vae, m2 = mixed(), labelled()
    assert encode(vae, X).shape == (6, 2) and reconstruct(vae, X).shape == (6, 3) and sample(vae, 5).shape == (5, 3)
    assert sample(m2, 5).shape == (5, 3) and sample(m2, 3, torch.arange(3)).shape == (3, 3)
    assert reconstruct(m2, XL, Y.clamp_min(0)).shape == XL.shape
    with pytest.raises(ProgramError, match=r"'y' of the guide.*has no mean in closed form.*num_samples=100"):
        encode(m2, XL)


def test_draws_given_labels_are_of_these_classes():
    """A decoder that shows the class alone: each draw is of its label's, and of any where the label is missing."""
    given = labelled()

    def shown(z, y):
        return dist.Normal(10.0 * y + 0 * z[..., :1], 0.1).to_event(1)

    m2 = SemiSupervised(given.classes, given.prior, shown, given.classifier, given.posterior)
    y = torch.tensor([0, 1, 2, -1]).repeat(100)
    drawn = sample(m2, 400, y, seed=1)
    means = sample(m2, 400, y, seed=1, mean=True)
    assert torch.equal(drawn.argmax(-1)[y >= 0], y[y >= 0]) and torch.equal(means.argmax(-1)[y >= 0], y[y >= 0])
    free = drawn.argmax(-1)[y < 0].bincount(minlength=3) / 100
    assert (free - m2.classes().probs).abs().max() < 4 * 0.05
    assert torch.equal(sample(m2, 400, y, seed=1, site="y_observed")[y >= 0], y[y >= 0])


def test_draws_given_what_depends_on_latents_are_refused():
    """Another modality, observed given z: running forward would draw x without it."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.1), obs=y)
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    with pytest.raises(ProgramError, match=r"site 'y' observes a context given latents.*NaN"):
        sample(model, 3, torch.zeros(3), like=torch.zeros(1))
    drawn = sample(model, 2000, torch.full((2000,), torch.nan), like=torch.zeros(1))
    assert torch.stack([drawn["x"], drawn["y"]]).corrcoef()[0, 1] > 0.97


def test_a_context_that_leads_the_latents_is_given():
    """y ~ p(y), z | y, x | z: forward from y is x given it."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
            z = pyro.sample("z", dist.Normal(y, 0.1))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    y = torch.linspace(-5, 5, 50)
    drawn = sample(model, 50, y, like=torch.zeros(1))
    assert torch.equal(drawn["y"], y) and (drawn["x"] - y).abs().max() < 1


@pytest.mark.parametrize("use", ["importance", "training", "draws"])
def test_one_hot_labels_are_refused(use):
    vae, rows = labelled(), torch.eye(3)[Y.clamp_min(0)]
    run = {
        "importance": lambda: log_likelihood(vae.model, vae.guide, XL, rows, verbose=False),
        "training": lambda: fit(vae, XL, rows, epochs=1, verbose=False),
        "draws": lambda: sample(vae, len(rows), rows),
    }[use]
    with pytest.raises(PyroVAEError, match=r"labels y are whole numbers of shape \(N,\).*got shape \(.*, 3\)"):
        run()


# --- bad input ---------------------------------------------------------------------------------------------------------------


def test_labels_out_of_range_are_refused_by_row():
    vae, bad = labelled(), Y.clone()
    bad[3] = 7
    with pytest.raises(SupportError, match=r"'y_observed'.*row 3"):
        log_likelihood(vae.model, vae.guide, XL, bad, verbose=False)
    with pytest.raises(SupportError, match=r"'y_observed'.*row 3"):
        fit(vae, XL, bad, epochs=1, verbose=False)


def test_labels_that_are_all_missing_are_none():
    vae = labelled()
    found = log_likelihood(vae.model, vae.guide, XL, torch.full_like(Y, -1), num_samples=4, verbose=False)
    assert (found.log_px - JOINT.logsumexp(-1)).abs().max() < 1e-5


def test_other_bounds_of_a_guide_with_codes_are_refused():
    vae = labelled()
    with pytest.raises(ProgramError, match=r"site 'y' of the guide is marked for enumeration.*Bound\(elbo\)"):
        Bound(iwae, 4).per_row(vae.model, vae.guide, XL)


def test_the_classifiers_term_wants_labels():
    vae = labelled()
    with pytest.raises(ProgramError, match="obs_mask=known"):
        Bound(elbo, terms=[supervised(1.0)]).per_row(vae.model, vae.guide, XL)


def test_classes_draw_from_streams_of_their_own():
    """Under seed + c the second class had, under one seed, the particles that the first has under the next."""
    vae = mixed()
    here, there = (class_posterior(vae.model, vae.guide, X, num_samples=30, seed=s, verbose=False) for s in (0, 1))
    seeds = [{run.seed for run in found.by_class} for found in (here, there)]
    assert seeds[0].isdisjoint(seeds[1]) and len(seeds[0]) == len(here.by_class)


def test_class_posterior_names_a_site_that_is_not_there():
    vae = mixed()
    with pytest.raises(ProgramError, match="no latent site 'k'"):
        class_posterior(vae.model, vae.guide, X, site="k")
    with pytest.raises(ProgramError, match="'z' is continuous"):
        class_posterior(vae.model, vae.guide, X, site="z")


def test_a_class_that_is_the_only_latent_is_told_what_it_takes():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.25))
            pyro.sample("x", dist.Normal(8 * y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.5))

    with pytest.raises(ProgramError, match=r"'y' is the model's only latent.*softmax over classes"):
        class_posterior(model, guide, torch.zeros(3), num_samples=5, verbose=False)


def test_the_store_and_the_stream_stay_as_they_were():
    vae, before = mixed(), torch.get_rng_state()
    store = dict(pyro.get_param_store())
    class_posterior(vae.model, vae.guide, X, num_samples=5, verbose=False)
    assert torch.equal(before, torch.get_rng_state()) and dict(pyro.get_param_store()) == store
