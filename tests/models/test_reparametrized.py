"""A latent that is computed of another one (``poutine.reparam``) has its value in samples, though a mask hides its score."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from torch.distributions.transforms import AffineTransform, ExpTransform

from pyro_vae import sample

X = torch.zeros(4, 2)
PRIORS = {
    "transform": (
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [AffineTransform(0.2, 0.5), ExpTransform()]),
        TransformReparam(),
        lambda sites: (0.2 + 0.5 * sites["z_base"]).exp(),
    ),
    "loc and scale": (dist.Normal(1.0, 2.0), LocScaleReparam(0.0), lambda sites: 1 + 2 * sites["z_decentered"]),
    "event": (
        dist.Normal(torch.ones(2), 2.0).to_event(1),
        LocScaleReparam(0.0),
        lambda sites: 1 + 2 * sites["z_decentered"],
    ),
}


def model_of(prior, config, mask=None):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.reparam(config={"z": config}):
                z = pyro.sample("z", prior)
            mean = z if prior.event_dim else z[..., None].expand(*z.shape, 2)
            with poutine.mask(mask=torch.ones(len(x)).bool() if mask is None else mask):
                pyro.sample("x", dist.Normal(mean, 1e-4).to_event(1), obs=x)

    return model


@pytest.mark.parametrize("name", PRIORS)
def test_samples_hold_what_is_computed(name):
    prior, config, computed = PRIORS[name]
    sites = sample(model_of(prior, config), 4, like=X)
    torch.testing.assert_close(sites["z"], computed(sites))
    torch.testing.assert_close(sites["x"], sites["z"].reshape(4, -1).expand(4, 2), atol=1e-3, rtol=0)
    means = sample(model_of(prior, config), 4, like=X, mean=True)
    torch.testing.assert_close(means["z"], computed(means))


def test_a_mask_around_still_leaves_out_what_it_did():
    prior, config, _ = PRIORS["transform"]
    sites = sample(model_of(prior, config, torch.tensor([True, False, True, True])), 4, like=X)
    assert sites["x"].isnan().any(1).tolist() == [False, True, False, False]
    assert sites["z"].isfinite().all()
