"""Gaps of guides whose draws have no path to their parameters (discrete sites, angles, mixtures), and of flows."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_vae import MLP, gaps, overfitting, sum_out
from pyro_vae.diagnostics import per_row_optimum
from pyro_vae.errors import ProgramError
from pyro_vae.posteriors import FlowPosterior

X = torch.tensor([-1.0, 0.3, 2.0]).double()
WEIGHTS, CENTRES = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([-2.0, 0.0, 2.0]).double()
QUIET = {"verbose": False, "seed": 2}


def above(found, exact):
    """Whether an ELBO of every row lies above log p(x), by more than its noise."""
    return (found.best_elbo - exact - 4 * found.approximation_se > 1e-3).any()


# the family holds the posterior, so that q* is exact


def classes(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(CENTRES[y], 1.0), obs=x)


def even(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(torch.ones(len(x), 3).double()))


def bits(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.3, 0.6]).double()).to_event(1))
        pyro.sample("x", dist.Normal(1.5 * b[..., 0], 1.0), obs=x)


def coins(x):
    with pyro.plate("data", len(x)):
        pyro.sample("b", dist.Bernoulli(logits=0.2 * x.unsqueeze(-1).expand(-1, 2)).to_event(1))


def hours(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.VonMises(torch.tensor(0.5).double(), 1.0))
        pyro.sample("x", dist.VonMises(a, 2.0), obs=x)


def early(x):
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.VonMises(0 * x, 0.8))


def of_classes(x):
    return (WEIGHTS.log() + dist.Normal(CENTRES, 1.0).log_prob(x.unsqueeze(-1))).logsumexp(-1)


def of_bits(x):
    each = torch.stack([dist.Normal(1.5 * b, 1.0).log_prob(x) + math.log(p) for b, p in ((0.0, 0.7), (1.0, 0.3))])
    return each.logsumexp(0)


def of_hours(x):
    angle = (torch.arange(2000).double() + 0.5) / 2000 * 2 * math.pi - math.pi
    each = dist.VonMises(0.5, 1.0).log_prob(angle) + dist.VonMises(angle, 2.0).log_prob(x.unsqueeze(-1))
    return each.logsumexp(-1) + math.log(2 * math.pi / 2000)


HELD = {
    "categorical": (classes, even, of_classes),
    "bits": (bits, coins, of_bits),
    "angle": (hours, early, of_hours),
}


@pytest.mark.parametrize("name", HELD)
def test_the_best_of_a_family_that_holds_the_posterior_is_exact(name):
    model, guide, exact = HELD[name]
    found = gaps(model, guide, X, log_px=exact(X), steps=100, lr=0.2, num_particles=32, **QUIET)
    assert (found.approximation.abs() < 0.02).all() and not above(found, exact(X))
    assert (found.amortisation > 0.02).any()


def test_without_the_score_nothing_is_found(monkeypatch):
    monkeypatch.setattr(per_row_optimum, "scored", lambda log_w, log_q: 0 * log_q)
    found = gaps(classes, even, X, log_px=of_classes(X), steps=20, lr=0.2, **QUIET)
    assert (found.approximation > 0.2).any()


def test_the_scores_gradient_is_that_of_the_elbo():
    """Against the sum over classes: 4 standard errors of 200 gradients."""
    logits, log_p = torch.tensor([0.3, -0.2, 0.1]).double(), torch.tensor([0.1, -1.0, -2.0]).double()

    def gradient(seed):
        torch.manual_seed(seed)
        free = logits.clone().requires_grad_()
        q = dist.Categorical(logits=free)
        y = q.sample((4, 1))
        log_w = log_p[y] - q.log_prob(y).detach()
        return torch.autograd.grad(per_row_optimum.scored(log_w, q.log_prob(y)).mean(), free)[0]

    drawn = torch.stack([gradient(seed) for seed in range(200)])
    free = logits.clone().requires_grad_()
    log_q = free.log_softmax(-1)
    (exact,) = torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), free)
    assert ((drawn.mean(0) - exact).abs() < 4 * drawn.std(0) / 200**0.5).all()


# beside continuous sites


def mixed(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(CENTRES[y], 0.7))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def both(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(len(x), 3).double()))
        pyro.sample("z", dist.Normal(0.3 * CENTRES[y] + 0.7 * x, 0.5))


def test_a_discrete_site_beside_a_continuous_one():
    """As the guide draws both, and with the discrete one summed out: the ELBO by a sum over classes, and no bound above."""
    exact = (WEIGHTS.log() + dist.Normal(CENTRES, 0.74**0.5).log_prob(X.unsqueeze(-1))).logsumexp(-1)
    found = gaps(mixed, both, X, log_px=exact, steps=80, **QUIET)
    given = dist.Normal(0.3 * CENTRES + 0.7 * X.unsqueeze(-1), 0.5)
    mean, var = given.mean, 0.25
    log_p = WEIGHTS.log() + dist.Normal(CENTRES, 0.7).log_prob(mean) - var / 2 / 0.49
    log_p = log_p + dist.Normal(mean, 0.5).log_prob(X.unsqueeze(-1)) - var / 2 / 0.25
    elbo = (log_p + given.entropy() + math.log(3)).mean(-1)
    assert ((found.elbo - elbo).abs() < 4 * found.gap_se).all()
    assert (found.amortisation > -4 * found.amortisation_se).all() and found.amortisation.mean() > 0.2
    assert found.moved == ("z",) and not above(found, exact)
    collapsed = gaps(*sum_out(mixed, both, X), X, log_px=exact, steps=60, **QUIET)
    assert (collapsed.elbo > found.elbo - 4 * found.gap_se).all() and not above(collapsed, exact)
    assert (collapsed.amortisation > -4 * collapsed.amortisation_se).all() and collapsed.amortisation.mean() > 0.05


# flows


def linear(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def autoregressive():
    flow = T.affine_autoregressive(2, [4])
    return lambda x: dist.TransformedDistribution(
        dist.Normal(0.2 * x.unsqueeze(-1).expand(-1, 2), 1.0).to_event(1), [flow]
    )


def conditional():
    flow = T.conditional_affine_coupling(2, 1, [4])
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return lambda x: dist.TransformedDistribution(base, [flow.condition(x.unsqueeze(-1))])


def of_zuko():
    posterior = FlowPosterior(MLP(1, 3), 2, context_features=3)
    return lambda x: posterior(x.unsqueeze(-1))


FLOWS = {"autoregressive": autoregressive, "conditional": conditional, "zuko": of_zuko}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flows_base_is_moved(name):
    """No ELBO of q* above log p(x), none below the guide's; the same for rows apart, whose offsets are their own."""
    torch.manual_seed(0)
    posterior = FLOWS[name]()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    x = X.float()
    exact = dist.Normal(0.0, 3**0.5).log_prob(x).double()
    found = gaps(linear, guide, x, log_px=exact, steps=60, **QUIET)
    assert found.moved == ("z",) and not above(found, exact)
    assert (found.amortisation > -4 * found.amortisation_se).all() and found.amortisation.mean() > 0.05


def test_auto_guides_of_their_rows_are_split():
    """AutoNormal's rows have parameters of their own: moved from where they start, to those of the posterior's logit."""

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(2.0 * torch.ones(()).double(), 3.0))
            pyro.sample("x", dist.Binomial(4, p), obs=x)

    x = torch.tensor([0.0, 3.0]).double()
    guide = AutoNormal(model, init_scale=0.3)
    guide(x)
    exact = dist.BetaBinomial(torch.tensor(2.0).double(), torch.tensor(3.0).double(), 4).log_prob(x)
    found = gaps(model, guide, x, log_px=exact, steps=150, **QUIET)
    assert not above(found, exact) and found.amortisation.mean() > 0.1 and (found.approximation < 0.05).all()


def test_overfitting_takes_them_too():
    found = overfitting(classes, even, X[:2], X[1:], log_px=(of_classes(X[:2]), of_classes(X[1:])), steps=20, **QUIET)
    assert found.decoder["value"] == pytest.approx((of_classes(X[:2]).mean() - of_classes(X[1:]).mean()).item())


def test_a_mask_by_another_sites_draw_is_refused_still():
    def absent(x):
        with pyro.plate("data", len(x)):
            here = pyro.sample("here", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("z", dist.Normal(0 * x, 1.0).mask(here.bool()))
            if absent.observes:
                pyro.sample("x", dist.Normal(here, 1.0), obs=x)

    def model(x):
        absent.observes = True
        absent(x)

    def guide(x):
        absent.observes = False
        absent(x)

    with pytest.raises(ProgramError, match=r"site 'z'.*its mask depends on the draws of other sites"):
        gaps(model, guide, X, steps=1, **QUIET)
