"""Bound: Pyro's own objectives where these are right, the exact log p(x) where they are not; scales, refusals, memory."""

import itertools
import runpy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import (
    MLP,
    Beta,
    Bound,
    analytic_kl,
    ciwae,
    dreg,
    elbo,
    fit,
    gdreg,
    iwae,
    log_likelihood,
    miwae,
    normal,
    pathwise,
    piwae,
    renyi,
    rws,
    stl,
    tvo,
    vimco,
)
from pyro_vae.errors import ProgramError
from pyro_vae.programs.pair import without_validation
from tests.helpers.environment import ROOT
from tests.helpers.exact import LinearGaussian
from tests.helpers.objectives import close, loss_and_grads, plated, scaled
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64
ESTIMATORS = [pathwise, stl, dreg, gdreg, vimco, rws]


def check_same(ours, theirs, vae, *args, pair=None):
    (a, grads_a), (b, grads_b) = (loss_and_grads(o, pair or vae, *args, modules=vae) for o in (ours, theirs))
    close(a, b)
    assert any(g.abs().max() > 0 for g in grads_a)
    for one, other in zip(grads_a, grads_b, strict=True):
        close(one, other)


# Pyro's own, where they are right


PYRO = [
    (lambda k, v: Bound(elbo, k, vectorize_particles=v), Trace_ELBO),
    (lambda k, v: Bound(iwae, k, vectorize_particles=v), lambda **kw: RenyiELBO(alpha=0, **kw)),
    (lambda k, v: Bound(renyi(0.5), k, vectorize_particles=v), lambda **kw: RenyiELBO(alpha=0.5, **kw)),
    (lambda k, v: Bound(elbo, k, estimator=analytic_kl(), vectorize_particles=v), TraceMeanField_ELBO),
]


@pytest.mark.parametrize(("ours", "theirs"), PYRO, ids=["elbo", "iwae", "renyi", "analytic_kl"])
@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("k", [2, 5])
def test_is_pyros_objective_to_the_last_digits(ours, theirs, vectorized, k, vae, x):
    """Losses and gradients, under one noise; looped particles draw in another order, as their Pyro twin does."""
    check_same(
        ours(k, vectorized), theirs(num_particles=k, max_plate_nesting=1, vectorize_particles=vectorized), vae, x
    )


def test_one_particle(vae, x):
    check_same(Bound(), Trace_ELBO(), vae, x)
    check_same(Bound(estimator=analytic_kl()), TraceMeanField_ELBO(), vae, x)


def test_scales_of_the_elbo_are_pyros(vae, x):
    """Linear in log w: here every handler of scale means to Pyro what it means here. (But for a scale on one program
    alone, where TraceMeanField_ELBO weighs both log p(z) and log q(z | x) as the guide does; ours takes the KL at the draws.)
    """
    weights = torch.arange(1, 8, dtype=DOUBLE, device=x.device)
    pair, kw = (vae.model, vae.guide), {"num_particles": 3, "max_plate_nesting": 1, "vectorize_particles": True}
    both = [scaled(pair, 0.1), scaled(pair, weights), Beta(0.3).pair(vae), scaled(Beta(0.3).pair(vae), weights)]
    both += [tuple(poutine.mask(program, mask=weights > 2) for program in pair), plated(vae, 50)]
    for handled in [*both, (poutine.scale(vae.model, scale=0.5), vae.guide)]:
        check_same(Bound(elbo, 3), Trace_ELBO(**kw), vae, x, pair=handled)
    for handled in both:
        check_same(Bound(elbo, 3, estimator=analytic_kl()), TraceMeanField_ELBO(**kw), vae, x, pair=handled)


# one number, however it is asked for


CASES = [(iwae, None, e) for e in ESTIMATORS] + [(elbo, None, analytic_kl()), (elbo, None, stl), (miwae, 2, pathwise)]
CASES += [
    (piwae, 2, pathwise),
    (piwae, 2, dreg),
    (ciwae(0.5), None, dreg),
    (tvo(3), None, pathwise),
    (renyi(2.0), None, stl),
]


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize(("bound", "groups", "estimator"), CASES)
def test_all_ways_of_asking_agree(bound, groups, estimator, dtype, device):
    vae, x = small_vae(seed=0).to(dtype).to(device), binary(7, device, dtype, seed=1)
    objective = Bound(bound, 3, estimator=estimator, num_groups=groups)
    loss, grads = loss_and_grads(objective, vae, x)

    def seeded(function):
        torch.manual_seed(3)
        return function(vae.model, vae.guide, x)

    plain, rows, tensor = (seeded(getattr(objective, f)) for f in ("loss", "per_row", "differentiable_loss"))
    assert plain.dtype == rows.dtype == tensor.dtype == dtype and plain.shape == tensor.shape == ()
    assert not plain.requires_grad and not rows.requires_grad and tensor.requires_grad and rows.shape == (7,)
    tol = {"atol": 1e-10} if dtype == DOUBLE else {"atol": 1e-4, "rtol": 1e-5}
    close(plain.double(), loss, **tol)
    close(tensor.detach().double(), loss, **tol)
    close(-rows.sum().double(), loss, **tol)
    vae.zero_grad()
    torch.manual_seed(3)
    objective(vae.model, vae.guide)(x).backward()  # as a module
    for p, g in zip(vae.parameters(), grads, strict=True):
        close(torch.zeros_like(p) if p.grad is None else p.grad, g, **tol)


@pytest.mark.parametrize(("bound", "groups", "estimator"), CASES)
def test_looped_particles_have_the_vectorised_gradient(bound, groups, estimator):
    """Of a guide without noise, in which the order of draws plays no part."""
    weight = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=DOUBLE))
    prior = torch.nn.Parameter(torch.zeros(2, dtype=DOUBLE))
    noise = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(6, 2)
    count = itertools.count()
    prior_kind = dist.Normal

    class Fixed(dist.Normal):
        """Normal, with its noise from a list."""

        def rsample(self, sample_shape=()):
            if self.batch_shape[0] == 6:
                return self.loc + self.scale * noise.unsqueeze(1)
            return self.loc + self.scale * noise[next(count) % 6]

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", prior_kind(prior, torch.ones_like(prior)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("z", Fixed((x.unsqueeze(-1) * weight).expand(4, 2), weight.exp().expand(4, 2)).to_event(1))

    if "analytic_kl" in repr(estimator):  # closed forms are of two distributions of one class
        prior_kind = Fixed
    x, results = torch.linspace(-1, 1, 4, dtype=DOUBLE), []
    for vectorized in (True, False):
        weight.grad = prior.grad = None
        objective = Bound(
            bound, 6 // (groups or 1), estimator=estimator, num_groups=groups, vectorize_particles=vectorized
        )
        objective.problem(model, guide, (x,), {})
        while next(count) % 6 != 5:  # the runs that found the plates drew, too
            pass
        results.append((objective.loss_and_grads(model, guide, x), weight.grad, prior.grad))
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize(("bound", "groups", "estimator"), CASES)
def test_nothing_is_read_back_from_the_device(bound, groups, estimator, vae, x, monkeypatch):
    """No .item(), no tensor turned into a number, while a loss and its gradient are made."""
    objective = Bound(bound, 3, estimator=estimator, num_groups=groups)
    objective.loss_and_grads(vae.model, vae.guide, x)

    def refuse(*_):
        raise AssertionError("a tensor was read back")

    with without_validation(), monkeypatch.context() as patch:
        for name in ("item", "__float__", "__int__", "__bool__", "tolist"):
            patch.setattr(torch.Tensor, name, refuse)
        loss = objective.loss_and_grads(vae.model, vae.guide, x)
    assert isinstance(loss, torch.Tensor)


# training


@pytest.mark.parametrize("objective", [Bound(), Bound(iwae, 4, estimator=dreg), Bound(miwae, 2, num_groups=2)])
def test_trains_in_stock_svi(objective):
    vae, x = small_vae(seed=0), binary(64, seed=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
    torch.manual_seed(0)
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 10 * 3, (losses[:3], losses[-3:])
    assert svi.evaluate_loss(x) < losses[0]


def test_trains_as_a_module_with_a_torch_optimizer():
    vae, x = small_vae(seed=0), binary(64, seed=1)
    loss, optimizer = Bound(iwae, 4, estimator=stl)(vae.model, vae.guide), torch.optim.Adam(vae.parameters(), lr=1e-2)
    torch.manual_seed(0)
    before = loss(x).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    assert loss(x).item() < before - 5


@pytest.mark.parametrize("objective", [Bound(iwae, 4, estimator=dreg), Bound(estimator=analytic_kl())])
def test_trains_in_fit(objective):
    vae, x = small_vae(seed=0), binary(96, seed=1)
    run = fit(vae, x, objective=objective, epochs=8, batch_size=32, verbose=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]


def test_the_logged_elbo_is_the_true_one_whatever_is_trained():
    """β = 0.1: the history's ELBO is log_likelihood's on the same rows, and the loss is another number."""
    vae, x = small_vae(seed=0), binary(400, seed=1)
    beta, noises = Beta(0.1), []
    run = fit(beta.pair(vae), x, validation=x, objective=Bound(), epochs=15, verbose=False)
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=200, verbose=False)
    for seed in range(10):
        torch.manual_seed(seed)
        noises.append(Bound().per_row(vae.model, vae.guide, x).mean())
    one_draw = torch.stack(noises).std()  # the logged figure is of one draw a row
    assert abs(run.best["elbo"] - evidence.elbo.mean()) < 4 * one_draw
    assert abs(-run.best["loss"] - run.best["elbo"]) > 8 * one_draw


# other programs


class Hierarchy:
    """z2 -> z1 -> x, the guide q(z2 | x) q(z1 | z2, x), with a context."""

    def __init__(self):
        torch.manual_seed(0)
        self.nets = torch.nn.ModuleDict(
            {n: MLP(i, o, (8,)) for n, i, o in [("x", 3, 6), ("p", 1, 2), ("q2", 7, 2), ("q1", 7, 4)]}
        )
        self.nets.to(DOUBLE)

    def model(self, x, c):
        pyro.module("hierarchy", self.nets)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.nets["p"](z2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Bernoulli(logits=self.nets["x"](torch.cat([z1, c.expand(*z1.shape[:-1], 1)], -1))).to_event(1),
                obs=x,
            )

    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.nets["q2"](torch.cat([x, c], -1))).to_event(1))
            both = torch.cat([x.expand(*z2.shape[:-1], 6), z2], -1)
            pyro.sample("z1", normal(self.nets["q1"](both)).to_event(1))


def test_several_latents_a_hierarchical_guide_and_a_context():
    x = binary(7, dtype=DOUBLE, seed=1)
    h, c = Hierarchy(), torch.linspace(-1, 1, 7, dtype=DOUBLE).unsqueeze(-1)
    pair = h.model, h.guide
    for k in (1, 4):
        kw = {"num_particles": k, "max_plate_nesting": 1, "vectorize_particles": True}
        check_same(Bound(elbo, k), Trace_ELBO(**kw), h.nets, x, c, pair=pair)
        check_same(Bound(elbo, k, estimator=analytic_kl()), TraceMeanField_ELBO(**kw), h.nets, x, c, pair=pair)
    kw = {"num_particles": 4, "max_plate_nesting": 1, "vectorize_particles": True}
    check_same(Bound(iwae, 4), RenyiELBO(0, **kw), h.nets, x, c, pair=pair)


def test_an_own_program_with_constrained_parameters():
    own = runpy.run_path(str(ROOT / "examples" / "bring_your_own.py"))
    x = torch.randn(64, 13)
    torch.manual_seed(0)
    run = fit((own["model"], own["guide"]), x, objective=Bound(iwae, 4, estimator=dreg), epochs=10, verbose=False)
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]


def test_automatic_guides():
    """AutoDelta trains by log p(x, z), and has no bound; AutoNormal is taken row by row, by the density of both sites."""
    lg = LinearGaussian(rows=20)
    point, spread = pyro.infer.autoguide.AutoDelta(lg.model), pyro.infer.autoguide.AutoNormal(lg.model)
    loss = Bound().loss(lg.model, point, lg.x)
    z = point.median(lg.x)["z"]
    close(-loss, (lg.prior().log_prob(z) + lg.likelihood(z).log_prob(lg.x)).sum())
    with pytest.raises(ProgramError, match=r"'z'.*Delta, a single point"):
        Bound().per_row(lg.model, point, lg.x)
    torch.manual_seed(0)
    rows = Bound().per_row(lg.model, spread, lg.x)
    torch.manual_seed(0)
    close(-rows.sum(), torch.tensor(Trace_ELBO().loss(lg.model, spread, lg.x), dtype=rows.dtype))
