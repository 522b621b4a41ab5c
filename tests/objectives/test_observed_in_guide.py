"""What the guide observes is trained as Trace_ELBO trains it, whatever the bound, and is no part of the bound."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import Bound, dreg, elbo, iwae, stl
from pyro_vae.common.random import seeded
from tests.helpers.gaussian import gaussian

X = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)


class Guide(torch.nn.Module):
    """q(z | x) and, by `kind`, a head or a factor with a parameter of its own."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.loc, self.weight = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, 0.7))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc * x, 0.8))
            if self.kind == "head":
                pyro.sample("head", dist.Normal(self.weight * z, 2.0), obs=x, infer={"is_auxiliary": True})
            if self.kind == "factor":
                pyro.factor("cost", self.weight * z.square(), has_rsample=True)
            if self.kind == "factor without a path":
                pyro.factor("cost", -self.weight * x, has_rsample=False)

    def log_q(self, x, z):
        if self.kind == "head":
            return dist.Normal(self.weight * z, 2.0).log_prob(x)
        return self.weight * z.square() if self.kind == "factor" else (-self.weight * x).expand(z.shape)


def run(objective, guide):
    guide.zero_grad()
    if isinstance(objective, Bound):
        objective.problem(gaussian, guide, (X,), {})
    with seeded(1):
        loss = objective.differentiable_loss(gaussian, guide, X)
    loss.backward()
    return loss.detach(), guide.loc.grad.clone(), guide.weight.grad.clone()


@pytest.mark.parametrize("kind", ["head", "factor"])
def test_the_elbo_trains_as_trace_elbo(kind):
    guide = Guide(kind)
    assert all(torch.allclose(a, b) for a, b in zip(run(Trace_ELBO(), guide), run(Bound(elbo), guide), strict=True))


@pytest.mark.parametrize("kind", ["head", "factor", "factor without a path"])
@pytest.mark.parametrize(
    "objective",
    [
        Bound(iwae, 5),
        Bound(elbo, 5, estimator=stl),
        Bound(iwae, 5, estimator=dreg),
        Bound(iwae, 3, vectorize_particles=False),
    ],
    ids=["iwae", "stl", "dreg", "one by one"],
)
def test_every_bound_has_its_mean_over_particles_beside_it(kind, objective):
    """loss = −Σ F + mean_k Σ log q(y); a factor of −α log q(y) in the guide trains q(y), with or without a path."""
    guide, bare = Guide(kind), Guide("none")
    loss, _, slope = run(objective, guide)
    objective.problem(gaussian, bare, (X,), {})
    with seeded(1), torch.no_grad():
        draw = objective.draw(gaussian, bare, (X,), {})
    z = torch.cat([r.q["z"]["value"] for r in draw.runs])
    with seeded(1):
        without = objective.differentiable_loss(gaussian, bare, X).detach()
    observed = guide.log_q(X, z).mean(0).sum()
    assert torch.allclose(loss, without + observed)
    assert torch.allclose(slope, torch.autograd.grad(observed, guide.weight)[0])
    with seeded(1):
        rows = objective.per_row(gaussian, guide, X)
    assert torch.allclose(rows.sum(), -without)
