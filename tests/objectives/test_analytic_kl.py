"""The KL in closed form: the mean of the sampled one, with less noise, only where there is one."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_vae import VAE, Bound, analytic_kl, iwae
from pyro_vae.errors import UsageError
from tests.helpers.objectives import close, raises
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64


# training


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


# refusals


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
