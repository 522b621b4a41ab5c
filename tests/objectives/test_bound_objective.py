"""Bound: Pyro's own objectives where these are right, the exact log p(x) where they are not; scales, refusals, memory."""

import itertools
import math
import runpy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Conditional,
    analytic_kl,
    bernoulli,
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
from pyro_vae.errors import DivergedError, ProgramError, UsageError
from pyro_vae.objectives import bound_objective as objective_module
from pyro_vae.posteriors import one_hot_categorical
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.parameters import register
from pyro_vae.programs.problem import Problem
from tests.helpers.environment import ROOT
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64
ESTIMATORS = [pathwise, stl, dreg, gdreg, vimco, rws]


def close(a, b, atol=1e-10, rtol=1e-10):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=rtol, check_dtype=False)


@pytest.fixture
def vae(device):
    return small_vae(device=device, seed=0).double()


@pytest.fixture
def x(device):
    return binary(7, device, DOUBLE, seed=1)


def loss_and_grads(objective, pair, *args, seed=3, modules=None):
    """A loss and the gradients of all parameters, under one seed."""
    model, guide = pair if isinstance(pair, tuple) else (pair.model, pair.guide)
    parameters = list((modules or pair).parameters())
    for p in parameters:
        p.grad = None
    torch.manual_seed(seed)
    loss = objective.loss_and_grads(model, guide, *args)
    return torch.as_tensor(loss, dtype=DOUBLE), [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


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


def scaled(pair, scale):
    return tuple(poutine.scale(program, scale=scale) for program in pair)


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


def plated(vae, total):
    """The programs of a `VAE` whose plate says that the rows it is given are a subsample of `total`."""

    def model(x):
        register(vae)
        with pyro.plate("data", total, subsample=torch.arange(len(x))):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)

    def guide(x):
        register(vae)
        with pyro.plate("data", total, subsample=torch.arange(len(x))):
            pyro.sample("z", vae.posterior(x))

    return model, guide


# where Pyro's are wrong: a subsampled plate


class Subsampled:
    """The linear-Gaussian pair with a plate of N rows of which the batch is a part, in both of Pyro's styles."""

    def __init__(self, columns=5):
        self.lg = LinearGaussian(columns, rows=50)
        self.x = self.lg.x
        self.shift = torch.nn.Parameter(torch.zeros(2, dtype=DOUBLE))

    def programs(self, rows=None, size=None):
        plate = {"subsample": rows} if rows is not None else {"subsample_size": size}

        def model(x):
            with pyro.plate("data", 50, **plate) as i:
                z = pyro.sample("z", self.lg.prior())
                pyro.sample("x", self.lg.likelihood(z), obs=x[i])

        def guide(x):
            with pyro.plate("data", 50, **plate) as i:
                q = self.lg.mean_field(x[i])
                pyro.sample("z", dist.Normal(q.loc + self.shift, q.cov.diagonal().sqrt()).to_event(1))

        return model, guide


def mean_se(values):
    values = torch.stack(values)
    return values.mean(0), values.std(0) / len(values) ** 0.5


def test_under_a_subsampled_plate_the_bound_stays_below_log_px_and_pyros_does_not():
    """Plate of 50, batch of 5: exact log p, ours within its error of it and below, Pyro's many nats above."""
    sub, rows = Subsampled(), torch.tensor([3, 11, 20, 34, 49])
    exact = sub.lg.log_px(sub.x)[rows].sum()
    pair = sub.programs(rows=rows)
    ours, pyros = [], []
    for seed in range(10):
        torch.manual_seed(seed)
        bound = Bound(iwae, 1000)
        ours.append(bound.per_row(*pair, sub.x).sum())
        loss = bound.loss(*pair, sub.x)
        torch.manual_seed(seed)
        pyros.append(
            -torch.tensor(RenyiELBO(0, 1000, max_plate_nesting=1, vectorize_particles=True).loss(*pair, sub.x)) / 10
        )
        torch.manual_seed(seed)
        bound.per_row(*pair, sub.x)
        close(bound.loss(*pair, sub.x), loss)  # the second draw of that seed
    (mean, se), (wrong, wrong_se) = mean_se(ours), mean_se(pyros)
    assert exact - 0.1 < mean < exact + 4 * se
    assert wrong > exact + 4  # log w was multiplied by 10 before the logarithm of the mean
    assert wrong - mean > 20 * (se + wrong_se)


def test_a_random_subsample_is_unbiased_for_the_elbo_and_below_log_px_for_iwae():
    """subsample_size=5: the mean over draws of the rows is the loss on all rows."""
    sub = Subsampled()
    pair, full = sub.programs(size=5), sub.programs(rows=torch.arange(50))
    exact = sub.lg.log_px(sub.x).sum()
    torch.manual_seed(0)
    objective = Bound(elbo, 2)
    mean, se = mean_se([objective.loss(*pair, sub.x) for _ in range(400)])
    truth = -sub.lg.elbo(sub.x, sub.lg.mean_field(sub.x)).sum()
    assert abs(mean - truth) < 4 * se, (mean, truth, se)
    iw = Bound(iwae, 50)
    mean, se = mean_se([iw.loss(*pair, sub.x) for _ in range(100)])
    on_all, on_all_se = mean_se([iw.loss(*full, sub.x) for _ in range(20)])
    assert abs(mean - on_all) < 4 * (se**2 + on_all_se**2) ** 0.5
    assert -mean < exact + 4 * se


def test_all_subsets_average_to_the_full_loss():
    """Exactly, for a guide of points (no noise): the mean over all C(6, 2) batches, each times 6 / 2, is the loss on all 6."""
    lg = LinearGaussian()
    x = lg.x[:6]

    def scaled_to(rows):
        def wrap(points):
            def program(x):
                with pyro.plate("data", 6, subsample=rows) as i:
                    points(x[i])

            return program

        def model(x):
            z = pyro.sample("z", lg.prior())
            pyro.sample("x", lg.likelihood(z), obs=x)

        def guide(x):
            loc = lg.exact(x).loc
            pyro.sample("z", dist.Delta(loc, log_density=loc.sum(-1), event_dim=1))

        return wrap(model), wrap(guide)

    for bound in (elbo, iwae):
        losses = [
            Bound(bound, 3, estimator=stl).loss(*scaled_to(torch.tensor(rows)), x)
            for rows in itertools.combinations(range(6), 2)
        ]
        close(torch.stack(losses).mean(), Bound(bound, 3, estimator=stl).loss(*scaled_to(torch.arange(6)), x))


@pytest.mark.parametrize("bound", [elbo, iwae, renyi(0.3), tvo(3)])
def test_a_rows_bound_and_gradient_do_not_depend_on_the_size_of_the_plate(bound, vae, x):
    """N / B multiplies the loss and its gradient, and nothing inside."""
    (a, grads_a) = loss_and_grads(Bound(bound, 4), vae, x)
    pair = plated(vae, 70)
    (b, grads_b) = loss_and_grads(Bound(bound, 4), pair, x, modules=vae)
    close(10 * a, b)
    for one, other in zip(grads_a, grads_b, strict=True):
        close(10 * one, other)
    torch.manual_seed(3)
    per_row = Bound(bound, 4).per_row(vae.model, vae.guide, x)
    torch.manual_seed(3)
    close(per_row, Bound(bound, 4).per_row(*pair, x))


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

    class Fixed(dist.Normal):
        """Normal, with its noise from a list."""

        def rsample(self, sample_shape=()):
            if self.batch_shape[0] == 6:
                return self.loc + self.scale * noise.unsqueeze(1)
            return self.loc + self.scale * noise[next(count) % 6]

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(prior, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4):
            pyro.sample("z", Fixed((x.unsqueeze(-1) * weight).expand(4, 2), weight.exp().expand(4, 2)).to_event(1))

    x, results = torch.linspace(-1, 1, 4, dtype=DOUBLE), []
    for vectorized in (True, False):
        weight.grad = prior.grad = None
        objective = Bound(
            bound, 6 // (groups or 1), estimator=estimator, num_groups=groups, vectorize_particles=vectorized
        )
        objective.plates(model, guide, (x,), {})
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


def test_analytic_kl_has_the_mean_of_the_sampled_one_and_less_noise():
    vae, x = small_vae(seed=0).double(), binary(7, dtype=DOUBLE, seed=1)
    many, draws = x.repeat(400, 1), {}
    for name, objective in (("drawn", Bound()), ("closed", Bound(estimator=analytic_kl()))):
        torch.manual_seed(5)
        draws[name] = objective.per_row(vae.model, vae.guide, many).view(400, -1).sum(1)
    drawn, closed = draws["drawn"], draws["closed"]
    se = ((drawn.var() + closed.var()) / 400) ** 0.5
    assert abs(drawn.mean() - closed.mean()) < 4 * se
    assert closed.var() < drawn.var() / 2


# scales: what multiplies a loss, and what changes a bound


def test_a_scale_around_the_pair_multiplies_the_loss_alone(vae, x):
    objective = Bound(iwae, 4)
    loss, grads = loss_and_grads(objective, vae, x)
    other, other_grads = loss_and_grads(objective, scaled((vae.model, vae.guide), 1 / 7), x, modules=vae)
    close(other, loss / 7)
    for one, g in zip(other_grads, grads, strict=True):
        close(one, g / 7)


def test_rows_may_weigh_differently(vae, x):
    weights = torch.tensor([0.1, 1, 2, 0.5, 0.3, 1, 3], dtype=DOUBLE, device=x.device)
    for pair in (scaled((vae.model, vae.guide), weights), scaled(Beta(1.0).pair(vae), weights)):
        for bound in (elbo, iwae):
            objective = Bound(bound, 4)
            torch.manual_seed(3)
            rows = objective.per_row(vae.model, vae.guide, x)
            loss, _ = loss_and_grads(objective, pair, x, modules=vae)
            close(loss, -(weights * rows).sum())


def by_hand(vae, x, k, beta, seed=3):
    """log p(x | z) + β (log p(z) − log q(z | x)) at the draws of that seed, (K, N)."""
    torch.manual_seed(seed)
    q = vae.posterior(x)
    z = q.expand((k, len(x))).rsample()
    return vae.likelihood(z).log_prob(x) + beta * (vae.prior().log_prob(z) - q.log_prob(z))


@pytest.mark.parametrize("bound", [elbo, iwae, renyi(0.5)])
@pytest.mark.parametrize("whole", [1.0, 0.25, "rows"])
def test_beta_is_inside_the_bound_and_other_scales_outside(bound, whole, vae, x):
    """In whichever order the handlers stand, at β = 0 too; under a subsampled plate as well."""
    weights = torch.arange(1, 8, dtype=DOUBLE, device=x.device) if whole == "rows" else whole
    for beta in (0.0, 0.4, 3.0):
        wanted = -(weights * bound(by_hand(vae, x, 4, beta))).sum()
        inner, outer = scaled(Beta(beta).pair(vae), weights), Beta(beta).pair(scaled((vae.model, vae.guide), weights))
        for pair in (inner, outer):
            close(loss_and_grads(Bound(bound, 4), pair, x, modules=vae)[0], wanted)
        part = scaled(Beta(beta).pair(plated(vae, 21)), weights)
        close(loss_and_grads(Bound(bound, 4), part, x, modules=vae)[0], 3 * wanted)


def test_masked_rows_count_nothing(vae, x):
    mask = torch.tensor([True, False, True, True, False, True, True], device=x.device)
    pair = tuple(poutine.mask(program, mask=mask) for program in (vae.model, vae.guide))
    torch.manual_seed(3)
    rows = Bound(iwae, 4).per_row(vae.model, vae.guide, x)
    loss, _ = loss_and_grads(Bound(iwae, 4), pair, x, modules=vae)
    close(loss, -rows[mask].sum())


class Pixels:
    """A model whose pixels lie in a plate within the row, all of them or a subsample."""

    def __init__(self, size=None):
        self.vae, self.size = small_vae(seed=0).double(), size

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, 2, dtype=DOUBLE), 1.0).to_event(1))
            logits = self.vae.likelihood.net(z.squeeze(-2))
            with pyro.plate("pixels", 6, subsample_size=self.size, dim=-1) as i:
                pyro.sample("x", dist.Bernoulli(logits=logits[..., i]), obs=x[:, i])

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            q = self.vae.posterior(x).base_dist
            pyro.sample("z", dist.Normal(q.loc.unsqueeze(-2), q.scale.unsqueeze(-2)).to_event(1))


def test_inner_plates_are_summed():
    x = binary(7, dtype=DOUBLE, seed=1)
    pixels = Pixels()
    for bound in (elbo, iwae):
        torch.manual_seed(3)
        rows = Bound(bound, 4).per_row(pixels.model, pixels.guide, x)
        torch.manual_seed(3)
        close(rows, Bound(bound, 4).per_row(pixels.vae.model, pixels.vae.guide, x))


def test_subsampled_inner_plates_are_unbiased_under_the_elbo_and_refused_under_others():
    x = binary(7, dtype=DOUBLE, seed=1)
    pixels, whole = Pixels(size=2), Pixels()
    torch.manual_seed(0)
    objective = Bound(elbo, 8)
    mean, se = mean_se([objective.loss(pixels.model, pixels.guide, x) for _ in range(300)])
    truth, truth_se = mean_se([objective.loss(whole.model, whole.guide, x) for _ in range(60)])
    assert abs(mean - truth) < 4 * (se**2 + truth_se**2) ** 0.5
    with pytest.raises(
        ProgramError, match=r"site 'x' lies in the plate 'pixels', which subsamples 2 of 6.*Bound\(elbo\)"
    ):
        Bound(iwae, 4).loss(pixels.model, pixels.guide, x)


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
    own = runpy.run_path(str(ROOT / "examples" / "own_program.py"))
    x = own["curves"](64, 1)
    torch.manual_seed(0)
    run = fit((own["model"], own["guide"]), x, objective=Bound(iwae, 4, estimator=dreg), epochs=10, verbose=False)
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]


def test_automatic_guides():
    """AutoDelta keeps the plate, and is taken row by row; AutoNormal draws auxiliary sites, and is refused by their name."""
    lg = LinearGaussian(rows=20)
    point = pyro.infer.autoguide.AutoDelta(lg.model)
    rows = Bound().per_row(lg.model, point, lg.x)
    z = point.median(lg.x)["z"]
    close(rows, lg.prior().log_prob(z) + lg.likelihood(z).log_prob(lg.x))
    raises("'z_unconstrained'.*auxiliary", lg.model, pyro.infer.autoguide.AutoNormal(lg.model), lg.x)


# refusals


def raises(match, model, guide, *args, error=ProgramError, objective=None):
    with pytest.raises(error, match=match):
        (objective or Bound(iwae, 2)).loss_and_grads(model, guide, *args)


def test_a_latent_outside_the_plate(x):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    raises("site 'w' lies outside the plate 'data'", model, guide, x)


def test_no_plate(x):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(7), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[:, 0])

    raises("no data plate", model, lambda x: pyro.sample("z", dist.Normal(torch.zeros(7), 1.0).to_event(1)), x)


def test_enumerated_sites(x):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    raises("'z'.*TraceEnum_ELBO", model, guide, x)


@pytest.mark.parametrize("bound", [lambda w: w, lambda w: w.mean(), lambda w: w.mean(1)])
def test_a_bound_of_another_shape(bound, vae, x):
    raises(r"\(2, 7\).*wanted one number a row, \(7,\)", vae.model, vae.guide, x, objective=Bound(bound, 2))


def test_nan_weights_are_named(vae, x):
    bad = torch.where(torch.arange(7, device=x.device) == 4, math.nan, torch.zeros(7, dtype=DOUBLE, device=x.device))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.likelihood(pyro.sample("z", vae.prior())), obs=x)
            pyro.sample("bad", dist.Unit(bad, validate_args=False), obs=x[:, :0])

    raises(r"row 4 of the batch, particle 0 \(1 of 7 rows", model, vae.guide, x)
    with without_validation():
        assert Bound(iwae, 2).loss_and_grads(model, vae.guide, x).isnan()


def test_one_weight_for_each_particle_is_no_bound_even_where_there_are_as_many_rows(vae, x):
    raises(
        r"\(7, 8\).*wanted one number a row, \(8,\)", vae.model, vae.guide, x, objective=Bound(lambda w: w.mean(-1), 7)
    )


@pytest.mark.parametrize(("bound", "said"), [(lambda w: 3.0, "type float"), (lambda w: None, "type NoneType")])
@pytest.mark.parametrize("estimator", [pathwise, dreg])
def test_a_bound_that_is_no_tensor(bound, said, estimator, vae, x):
    raises(f"gave a bound of {said}; wanted", vae.model, vae.guide, x, objective=Bound(bound, 2, estimator=estimator))


def test_what_is_no_bound_or_no_estimator():
    with pytest.raises(UsageError, match=r"make one first, renyi\(\.\.\.\)"):
        Bound(renyi, 2)
    with pytest.raises(UsageError, match=r"an estimator is an object such as dreg.*got 'dreg'"):
        Bound(iwae, 2, estimator="dreg")
    with pytest.raises(UsageError, match="num_particles must be a whole number from 1, got None"):
        Bound(iwae, None)


def test_a_row_that_torch_would_refuse_is_named(vae, x):
    """torch says of a NaN parameter which tensor it is; `fit` says which rows of the data, and keeps the weights."""
    x = x.clone()
    x[4, 1] = math.nan
    raises(r"row 4 of the batch, particle 0 \(1 of 7 rows", vae.model, vae.guide, x, objective=Bound(iwae, 2))
    vae.likelihood.net[0].weight.data[0, 0] = math.nan
    with pytest.raises(
        DivergedError, match=r"step 1: log w is NaN for row . of the batch, .* on rows 0, 1, 2"
    ) as caught:
        fit(vae, torch.zeros_like(x), objective=Bound(iwae, 2), epochs=1, verbose=False)
    assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "8", True])
def test_wrong_numbers_of_particles(bad):
    with pytest.raises(UsageError, match="num_particles must be a whole number from 1"):
        Bound(iwae, bad)
    with pytest.raises(UsageError, match="num_groups must be a whole number from 1"):
        Bound(miwae, 2, num_groups=bad)


def test_groups_and_bounds_that_want_them(vae, x):
    raises("num_groups=M to Bound", vae.model, vae.guide, x, error=ValueError, objective=Bound(miwae, 4))
    raises("takes no groups", vae.model, vae.guide, x, error=ValueError, objective=Bound(iwae, 4, num_groups=2))
    with pytest.raises(UsageError, match="a bound is a function"):
        Bound("iwae")


def test_more_particles_than_memory_has_room_for(vae, x, monkeypatch):
    """The message's figure is what autograd saves; what does not grow with K is counted once."""
    needed, rows = objective_module.saved_bytes(Problem.on(vae.model, vae.guide, x), 512)
    assert rows == 7 and needed > 512 * 7 * 8 * 8
    monkeypatch.setattr(objective_module, "free_bytes", lambda args: int(needed * 1.02))
    Bound(iwae, 512).loss(vae.model, vae.guide, x)
    monkeypatch.setattr(objective_module, "free_bytes", lambda args: int(needed * 0.5))
    with pytest.raises(
        UsageError,
        match=r"512 particles of 7 rows need about .* GiB.*are free.*batch_size=3, --batch-size 3\), or 256 particles",
    ):
        Bound(iwae, 512).loss(vae.model, vae.guide, x)
    Bound(iwae, 512).loss(vae.model, vae.guide, x[:3])


def test_free_memory_is_a_plausible_number():
    free = objective_module.free_bytes(())
    assert free is None or 2**20 < free < 2**50


def test_a_kl_without_a_closed_form():
    x = binary(7, dtype=DOUBLE, seed=1)
    twin, zero = small_vae(seed=0).double(), torch.zeros(2, dtype=DOUBLE)
    vae = VAE(lambda: dist.StudentT(4.0, zero, 1.0).to_event(1), twin.likelihood, twin.posterior)
    raises(
        "site 'z': .*has no closed form.*exact=False",
        vae.model,
        vae.guide,
        x,
        objective=Bound(estimator=analytic_kl(exact=True)),
    )
    torch.manual_seed(0)
    rows = Bound(estimator=analytic_kl()).per_row(vae.model, vae.guide, x)
    torch.manual_seed(0)
    close(rows, Bound().per_row(vae.model, vae.guide, x))


def test_closed_forms_only_where_they_are_the_kl():
    """Latents drawn in another order, or weighed on one side alone: at the draws, as log w has them."""
    vae, x = small_vae(seed=0).double(), binary(7, dtype=DOUBLE, seed=1)
    one_sided = poutine.scale(vae.model, scale=0.5), vae.guide
    objective = Bound(estimator=analytic_kl())
    torch.manual_seed(0)
    rows = objective.per_row(*one_sided, x)
    torch.manual_seed(0)
    close(rows, Bound().per_row(*one_sided, x))
    raises("weigh or mask it differently", *one_sided, x, objective=Bound(estimator=analytic_kl(exact=True)))

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(x[:, 0] / 2, 1.0))
            pyro.sample("a", dist.Normal(b / 2, 0.5**0.5))

    raises("in different orders", model, guide, x, objective=Bound(estimator=analytic_kl(exact=True)))
    torch.manual_seed(0)
    rows = objective.per_row(model, guide, x)
    torch.manual_seed(0)
    close(rows, Bound().per_row(model, guide, x))


def test_analytic_kl_is_of_the_elbo_alone(vae, x):
    raises(
        "analytic_kl is of the ELBO alone",
        vae.model,
        vae.guide,
        x,
        error=UsageError,
        objective=Bound(iwae, 2, estimator=analytic_kl()),
    )


def test_a_guide_without_a_path():
    x = binary(7, dtype=DOUBLE, seed=1)
    vae = VAE(
        lambda: dist.OneHotCategorical(torch.ones(3, dtype=DOUBLE)),
        make_likelihood(),
        Conditional(MLP(6, 3).to(DOUBLE), one_hot_categorical),
    )
    raises("site 'z' is drawn from a LinearOneHot, which has no rsample: estimator pathwise", vae.model, vae.guide, x)
    for estimator in (vimco, rws):
        loss, grads = loss_and_grads(Bound(iwae, 3, estimator=estimator), vae, x)
        assert loss.isfinite() and all(g.abs().max() > 0 for g in grads)


def make_likelihood():
    return Conditional(MLP(3, 6).to(DOUBLE), bernoulli)


def test_a_weight_that_is_neither_one_number_nor_one_a_row(vae, x):
    scale = torch.rand(3, 7, dtype=DOUBLE, device=x.device)
    raises(r"tensor of shape \(3, 7\)", *scaled((vae.model, vae.guide), scale), x, objective=Bound(elbo, 3))


def test_says_what_it_is():
    assert repr(Bound(piwae, 4, num_groups=2)) == "Bound(piwae, num_particles=4, num_groups=2, estimator=pathwise)"
    assert repr(Bound(renyi(0.5), 8, estimator=dreg)) == "Bound(renyi(alpha=0.5), num_particles=8, estimator=dreg)"
