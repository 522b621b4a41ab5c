"""linear_gaussian refuses means that bend on either side of an axis, near or far, askew, or where a posterior lies."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import ProgramError
from pyro_vae.evidence.exact import linear_gaussian as closed_form
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian

D = torch.float64
W = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=D)
W /= W.norm()


def program(mean, loc=0.0, scale=1.0, dims=1):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_full((dims,), loc), scale).to_event(1))
            pyro.sample("x", dist.Normal(mean(z), 0.5), obs=x)

    return model


HINGES = {
    "at_3": program(lambda z: z[..., 0] + 10 * torch.relu(z[..., 0] - 3)),
    "at_minus_3": program(lambda z: z[..., 0] + 10 * torch.relu(-3 - z[..., 0])),
    "about_a_prior_far_away": program(lambda z: z[..., 0] + torch.relu(z[..., 0] - 103), loc=100.0),
    "of_a_tight_prior": program(lambda z: z[..., 0] + torch.relu(z[..., 0] - 0.3), scale=0.1),
    "askew_in_50_dimensions": program(lambda z: z.sum(-1) + torch.relu(z @ W - 3), dims=50),
    "far_out": program(lambda z: z[..., 0] + torch.relu(z[..., 0] - 20)),
}


@pytest.mark.parametrize("model", HINGES.values(), ids=HINGES)
def test_a_hinge_is_seen(model):
    with pytest.raises(ProgramError, match="'x': its mean is not affine"):
        linear_gaussian(model, None, torch.tensor([0.0, 10.0], dtype=D))


def test_a_bend_where_only_one_rows_posterior_lies_is_seen(monkeypatch):
    """Between 200 and 300 standard deviations of the prior, which a row of x = 250 needs."""
    model = program(lambda z: z[..., 0] + torch.where((z[..., 0] - 250).abs() < 50, 1.0, 0.0))
    with pytest.raises(ProgramError, match="not that of their means"):
        linear_gaussian(model, None, torch.tensor([0.0, 300.0], dtype=D))


def test_probes_that_stay_near_see_no_hinge(monkeypatch):
    monkeypatch.setattr(closed_form, "RADII", (0.1, 1.0))
    found = linear_gaussian(HINGES["at_minus_3"], None, torch.tensor([0.5], dtype=D))
    assert found.method == "linear-Gaussian closed form"
