"""Subsampled plates: the bound stays below log p(x), where Pyro's does not."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO

from pyro_vae import Bound, elbo, iwae, renyi, stl, tvo
from tests.helpers.exact import LinearGaussian, Pinned
from tests.helpers.objectives import close, loss_and_grads, mean_se, plated

DOUBLE = torch.float64


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
            pyro.sample("z", Pinned(loc, loc.sum(-1)))

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
