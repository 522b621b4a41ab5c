"""Networks behind functions as roles: trained, moved, saved, evaluated and refused as those of other roles are."""

import copy
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, check, fit, log_likelihood, normal
from pyro_vae.errors import ProgramError
from pyro_vae.models.missing import SkipMissing
from pyro_vae.programs.pair import evaluation_mode, owners

D, L = 4, 2


def decoder():
    return MLP(L, 2 * D, (8,))


def encoder():
    return MLP(D, 2 * L, (8,))


def rows():
    return torch.randn(40, D, generator=torch.Generator().manual_seed(0))


def family(features):
    return normal(features).to_event(1)


def decode(z, net):
    return family(net(z))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = decoder()

    def decode(self, z):
        return family(self.net(z))


def by_lambda():
    net = decoder()
    return lambda z: family(net(z))


def by_list():
    nets = [decoder()]
    return lambda z: family(nets[0](z))


def by_default():
    def likelihood(z, net=decoder()):  # noqa: B008
        return family(net(z))

    return likelihood


GLOBAL = decoder()


def by_global():
    return lambda z: family(GLOBAL(z))


LIKELIHOODS = {
    "lambda": (by_lambda, "likelihood_net"),
    "list": (by_list, "likelihood_nets_0"),
    "default": (by_default, "likelihood_net"),
    "global": (by_global, "likelihood_GLOBAL"),
    "partial": (lambda: functools.partial(decode, net=decoder()), "likelihood_net"),
    "positional-partial": (lambda: functools.partial(lambda net, z: family(net(z)), decoder()), "likelihood_net"),
    "method": (lambda: Decoder().decode, "likelihood_self"),
}


def vae_of(likelihood):
    net = encoder()
    return VAE(StandardNormal(L), likelihood, lambda x: family(net(x)))


def moved(module, before):
    return {name for name, t in module.state_dict().items() if not torch.equal(t.cpu(), before[name].cpu())}


@pytest.mark.parametrize("how", LIKELIHOODS)
def test_the_network_is_the_vaes(how, device):
    make, name = LIKELIHOODS[how]
    vae = vae_of(make()).to(device)
    before = copy.deepcopy(vae.state_dict())
    assert {key.split(".")[1] for key in before} == {name, "posterior_net"} and len(before) == 8
    assert all(t.device.type == torch.device(device).type for t in before.values())
    x = rows().to(device)
    assert check(vae.model, vae.guide, x).ok
    fit(vae, x, epochs=1, verbose=False)
    assert moved(vae, before) == set(before)
    before = copy.deepcopy(vae.state_dict())
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    assert moved(vae, before) == set(before)
    with evaluation_mode(vae.model):
        assert not any(m.training for m in vae.modules())


def test_without_the_search_the_encoder_is_trained_by_nobody():
    """Broken: a VAE that knows only the modules that torch finds."""
    vae = vae_of(by_lambda())
    del vae.enclosed
    net = nn.Linear(D, 2 * L)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(net(x)))

    with pytest.raises(
        ProgramError, match=r"module 'net': the guide gives a gradient to its 2 parameters \(weight, bias\)"
    ):
        fit((vae.model, guide), rows(), epochs=1, verbose=False)


def test_saved_weights_are_the_ones_used_after_loading():
    x, first, second = rows(), vae_of(by_lambda()), vae_of(by_lambda())
    fit(first, x, epochs=2, verbose=False)
    second.load_state_dict(first.state_dict())
    scores = [log_likelihood(v.model, v.guide, x, num_samples=5, verbose=False).log_px for v in (first, second)]
    torch.testing.assert_close(*scores, rtol=0, atol=0)


def test_one_network_in_two_roles_and_elsewhere_is_registered_once():
    net = MLP(D, 2 * D, (8,))
    both = VAE(StandardNormal(D), lambda z: family(net(z)), lambda x: family(net(x)))
    assert [name for name, _ in both.enclosed.named_children()] == ["likelihood_net"]
    there = VAE(StandardNormal(D), lambda z: family(net(z)), Conditional(net, normal))
    assert not hasattr(there, "enclosed") and len(there.state_dict()) == 4
    whole = nn.Sequential(net)
    part = VAE(StandardNormal(D), lambda z: family(net(z)), lambda x: family(whole(x)))
    assert [name for name, _ in part.enclosed.named_children()] == ["posterior_whole"]


def test_a_role_that_is_set_anew_brings_its_network_and_takes_the_old_one_away():
    vae = vae_of(by_lambda())
    other = decoder()
    vae.likelihood = lambda z: family(other(z))
    assert {name for name, _ in vae.enclosed.named_children()} == {"likelihood_other", "posterior_net"}
    vae.likelihood, vae.posterior = Conditional(other, normal), Conditional(encoder(), normal)
    assert not hasattr(vae, "enclosed")


def test_parts_of_parts_register_what_their_functions_hold():
    net, inner = decoder(), nn.Linear(2 * D, 2 * D)
    part = Conditional(lambda z: net(z), lambda features: normal(inner(features)))
    assert {key.split(".")[1] for key in part.state_dict()} == {"net_net", "family_inner"}
    assert len(SkipMissing(lambda z: part(z)).state_dict()) == 6


class Around(nn.Module):
    """Holds the networks, and a VAE whose roles are its methods and lambdas over itself."""

    def __init__(self):
        super().__init__()
        self.dec, self.enc, self.log_scale = decoder(), encoder(), nn.Parameter(torch.zeros(()))
        self.vae = VAE(StandardNormal(L), self.decode, lambda x: family(self.enc(x)))

    def decode(self, z):
        return family(self.dec(z) * self.log_scale.exp())


def test_a_module_around_the_vae_keeps_its_networks_and_they_are_trained():
    around = Around()
    assert len(around.state_dict()) == 9 and not list(around.vae.children())[1:]
    assert owners(around.vae) == [around]
    before = copy.deepcopy(around.state_dict())
    fit(around.vae, rows(), epochs=1, verbose=False)
    assert moved(around, before) == set(before)
    before = copy.deepcopy(around.state_dict())
    SVI(around.vae.model, around.vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(rows())
    assert moved(around, before) == set(before)


@pytest.mark.parametrize("make", [lambda: vae_of(by_lambda()), Around], ids=["lambda", "around"])
def test_a_deep_copy_that_would_share_the_network_is_refused(make):
    with pytest.raises(ProgramError, match=r"copy.deepcopy copies no function, so the copy of this VAE would share '"):
        copy.deepcopy(make())


@pytest.mark.parametrize("likelihood", [LIKELIHOODS["partial"][0], LIKELIHOODS["method"][0]], ids=["partial", "method"])
def test_a_deep_copy_with_a_network_of_its_own_trains_alone(likelihood):
    first = VAE(StandardNormal(L), likelihood(), Conditional(encoder(), normal))
    second, before = copy.deepcopy(first), copy.deepcopy(first.state_dict())
    fit(second, rows(), epochs=1, verbose=False)
    assert moved(first, before) == set() and moved(second, before) == set(before)


def test_roles_without_networks_bring_nothing():
    vae = VAE(
        lambda: dist.Laplace(torch.zeros(L), 1.0).to_event(1),
        Conditional(decoder(), normal),
        Conditional(encoder(), normal),
    )
    assert not hasattr(vae, "enclosed")
    assert copy.deepcopy(vae).state_dict().keys() == vae.state_dict().keys()
