"""Networks that Pyro was not told of are named before they are trained by nobody; what is meant to stand still is not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import check, fit
from pyro_vae.errors import ProgramError
from pyro_vae.programs.undeclared import leaves

D, L = 4, 2


def rows():
    return torch.randn(30, D, generator=torch.Generator().manual_seed(0))


def pair(dec, enc, declare_dec="dec", declare_enc="enc", change=lambda h: h):
    """A pair over two networks; each is declared under its name, or not where that is None."""

    def model(x):
        if declare_dec:
            pyro.module(declare_dec, dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(dec(z), 1.0).to_event(1), obs=x)

    def guide(x):
        if declare_enc:
            pyro.module(declare_enc, enc)
        with pyro.plate("data", len(x)):
            h = change(enc(x))
            pyro.sample("z", dist.Normal(h[..., :L], h[..., L:].exp()).to_event(1))

    return model, guide


def networks():
    return nn.Linear(L, D), nn.Linear(D, 2 * L)


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.dec, self.enc = networks()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module("dec", self.dec)
        pair(self.dec, self.enc, None)[0](x)

    def guide(self, x):
        pair(self.dec, self.enc, None, None, lambda h: h * self.log_scale.exp())[1](x)


class Listed(nn.Module):
    """Its layers stand in a list, where neither torch nor Pyro finds them."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2 * L)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


TABLE = {"enc": nn.Linear(D, 2 * L)}
FORGOTTEN = {
    "encoder": (lambda: pair(*networks(), declare_enc=None), ['pyro.module("enc", enc) in the guide']),
    "decoder": (lambda: pair(*networks(), declare_dec=None), ['pyro.module("dec", dec) in the model']),
    "both": (lambda: pair(*networks(), None, None), ["module 'enc'", "module 'dec'"]),
    "attribute": (
        lambda: Methods(),
        ['pyro.module("enc", self.enc) in the guide', "pyro.param('log_scale', self.log_scale) in the guide"],
    ),
    "list": (
        lambda: pair(networks()[0], Listed()),
        ['pyro.module("enc_layers_0", enc.layers[0])', 'pyro.module("enc_layers_2", enc.layers[2])'],
    ),
    "global": (
        lambda: pair(networks()[0], lambda x: TABLE["enc"](x), declare_enc=None),
        ["TABLE['enc']) in the guide"],
    ),
    "loose": (lambda: pair(*networks(), change=scaled(nn.Parameter(torch.zeros(1)))), ["a parameter of shape (1,)"]),
}


def scaled(log_scale):
    return lambda h: h * log_scale.exp()


def programs_of(made):
    return made if isinstance(made, tuple) else (made.model, made.guide)


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_forgotten_network_is_named_with_its_fix(what):
    make, texts = FORGOTTEN[what]
    made = make()
    report = check(*programs_of(made), rows())
    found = [str(f) for f in report.errors if f.kind == "undeclared"]
    assert len(found) == len(texts) and all(any(text in line for line in found) for text in texts), found
    with pytest.raises(ProgramError, match="Pyro was not told of it, so nobody trains it"):
        fit(made, rows(), epochs=1, verbose=False)


def frozen(module):
    return module.requires_grad_(False)


def declared_by_param(h):
    return h * pyro.param("log_scale", torch.zeros(1)).exp()


def declared_positive(h):
    return h * pyro.param("scale", torch.ones(1), constraint=dist.constraints.positive)


def without_gradient(module):
    def run(x):
        with torch.no_grad():
            return module(x)

    return run


FINE = {
    "declared": lambda: pair(*networks()),
    "frozen": lambda: pair(networks()[0], frozen(networks()[1]), declare_enc=None),
    "no-grad": lambda: pair(networks()[0], without_gradient(networks()[1]), declare_enc=None),
    "param": lambda: pair(*networks(), change=declared_by_param),
    "constrained": lambda: pair(*networks(), change=declared_positive),
    "part-of-declared": lambda: pair(networks()[0], nn.Sequential(networks()[1])),
}


@pytest.mark.parametrize("what", FINE)
def test_what_is_declared_or_meant_to_stand_still_is_not_named(what):
    made = FINE[what]()
    assert [f for f in check(*made, rows()).findings if f.kind == "undeclared"] == []
    fit(made, rows(), epochs=1, verbose=False)


def test_inputs_that_require_a_gradient_are_no_parameters_and_other_tensors_are_a_warning():
    made = pair(*networks())
    assert check(*made, rows().requires_grad_()).ok
    (finding,) = check(*pair(*networks(), change=scaled(torch.zeros(3, 1, 1, requires_grad=True)[0])), rows()).findings
    assert finding.level == "warning" and finding.where == "a tensor of shape (3, 1, 1)"


def test_the_leaves_are_those_that_a_backward_pass_reaches():
    a, b, c, d = (torch.ones(2, requires_grad=True) for _ in range(4))
    out = [(a * b).sum() + c.detach().sum(), torch.zeros(1), d]
    assert {id(leaf) for leaf in leaves(out)} == {id(a), id(b), id(d)}
    deep = a
    for _ in range(5000):
        deep = deep + 1
    assert [leaf is a for leaf in leaves([deep])] == [True]
