"""Small pairs for tests of ensembles, one kind of step each; `make(seed)` draws its weights from the stream around."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal, posteriors, priors

D, Z = 6, 2


def vae(hidden=4, **roles):
    parts = {
        "prior": StandardNormal(Z),
        "likelihood": Conditional(MLP(Z, D, (hidden,)), bernoulli),
        "posterior": Conditional(MLP(D, 2 * Z, (hidden,)), normal),
    }
    return VAE(**(parts | roles))


def with_network(make_layers):
    """A VAE whose encoder has further layers; no bias before them, whose gradient batch norm makes 0 but for rounding."""

    def make():
        net = nn.Sequential(nn.Linear(D, 4, bias=False), *make_layers(), nn.Linear(4, 2 * Z))
        return vae(posterior=Conditional(net, normal))

    return make


def vamp():
    encoder = Conditional(MLP(D, 2 * Z, (4,)), normal)
    return vae(prior=priors.VampPrior(encoder, 3, D, bounds=(0, 1)), posterior=encoder)


def flow():
    return vae(posterior=posteriors.FlowPosterior(MLP(D, 8, (4,)), Z, transforms=2, context_features=8, hidden=(4,)))


def frozen():
    made = vae()
    made.posterior.net[0].weight.requires_grad_(False)
    return made


class Gammas(nn.Module):
    """A latent whose noise depends on parameters of its distribution."""

    def __init__(self):
        super().__init__()
        self.net, self.dec = nn.Linear(D, 2), nn.Linear(1, D)

    def model(self, x):
        pyro.module(f"dec{id(self)}", self.dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((1,), 2.0), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.dec(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(f"net{id(self)}", self.net)
        with pyro.plate("data", len(x)):
            a, b = (self.net(x).tanh() + 2.0).split(1, -1)
            pyro.sample("z", dist.Gamma(a, b).to_event(1))


MAKERS = {
    "vae": vae,
    "dropout": with_network(lambda: [nn.ReLU(), nn.Dropout(0.5)]),
    "batch_norm": with_network(lambda: [nn.BatchNorm1d(4), nn.ReLU()]),
    "vamp": vamp,
    "flow": flow,
    "frozen": frozen,
    "gamma": Gammas,
}
