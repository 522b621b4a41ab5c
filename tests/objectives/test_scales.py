"""What multiplies a loss, and what changes a bound: scales, masks, beta, inner plates."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import Beta, Bound, elbo, iwae, renyi
from pyro_vae.errors import ProgramError
from pyro_vae.programs.vectorize_probe import ProbedOnce
from tests.helpers.objectives import close, loss_and_grads, mean_se, plated, scaled
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64


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


@pytest.mark.parametrize("whole", [1.0, 0.25, "rows"])
def test_beta_is_inside_the_bound_and_other_scales_outside(whole, vae, x):
    """In whichever order the handlers stand, at β = 0 too; under a subsampled plate as well."""
    weights = torch.arange(1, 8, dtype=DOUBLE, device=x.device) if whole == "rows" else whole
    for beta in (0.0, 0.4, 3.0):
        log_w = by_hand(vae, x, 4, beta)
        inner, outer = scaled(Beta(beta).pair(vae), weights), Beta(beta).pair(scaled((vae.model, vae.guide), weights))
        part = scaled(Beta(beta).pair(plated(vae, 21)), weights)
        for pair, rows in ((inner, 1), (outer, 1), (part, 3)):
            with ProbedOnce():
                for bound in (elbo, iwae, renyi(0.5)):
                    loss, _ = loss_and_grads(Bound(bound, 4), pair, x, modules=vae)
                    close(loss, -rows * (weights * bound(log_w)).sum())


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
