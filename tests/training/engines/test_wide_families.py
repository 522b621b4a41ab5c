"""Families that are scored in float64 are traced as all others are, to the bits of eager training."""

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

from pyro_vae import MLP, VAE, Bound, Conditional, StandardNormal, elbo, fit, normal
from pyro_vae.likelihoods import FAMILIES
from tests.helpers.environment import HEAVY

pytestmark = pytest.mark.usefixtures("examined")
X = torch.poisson(torch.full((64, 6), 3.0), generator=torch.Generator().manual_seed(0)).clamp(max=15)


def users_own(h):
    return dist.Poisson(softplus(h) + 1e-4)


CASES = {
    "poisson": (FAMILIES["poisson"].make(), 1, X),
    "gamma": (FAMILIES["gamma"].make(), 2, X + 0.5),
    "student_t": (FAMILIES["student_t"].make(df=1e6), 2, X),
    "discretized_logistic_mixture": (FAMILIES["discretized_logistic_mixture"].make(levels=16, components=2), 6, X),
    "categorical": (FAMILIES["categorical"].make(num_classes=16), 16, X),
    "users_own": (users_own, 1, X),
}


def trained(name, engine):
    torch.manual_seed(0)
    family, features, x = CASES[name]
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6 * features, (8,)), family), Conditional(MLP(6, 4, (8,)), normal))
    run = fit(vae, x, objective=Bound(elbo), epochs=2, batch_size=16, engine=engine, verbose=False)
    return [p.detach() for p in vae.parameters()], run.engine


@pytest.mark.parametrize("name", CASES if HEAVY else ["poisson", "discretized_logistic_mixture", "users_own"])
def test_a_traced_run_ends_at_the_bits_of_eager(name):
    (eager, _), (traced, engine) = (trained(name, engine) for engine in ("eager", "trace"))
    assert engine.startswith("engine trace") and all(p.dtype == torch.float32 for p in traced)
    assert all(map(torch.equal, eager, traced))
