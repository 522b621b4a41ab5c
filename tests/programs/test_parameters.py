"""Parameters as the modules have them: frozen stay frozen, views are trained, eval mode reaches all, stores are not ignored."""

import copy
import gc
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn

from pyro_vae import VAE, Conditional, StandardNormal, ais, check, fit, log_likelihood, log_weights, normal
from pyro_vae.errors import ProgramError
from pyro_vae.programs.pair import evaluation_mode
from pyro_vae.programs.parameters import load_from_store, register
from tests.programs.test_undeclared import networks, pair, rows

D, L = 4, 2


def state(module):
    return copy.deepcopy(module.state_dict())


def moved(module, before):
    return {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}


def flags(module):
    return {name: p.requires_grad for name, p in module.named_parameters()}


# frozen


class Managed(PyroModule):
    def __init__(self):
        super().__init__()
        self.dec, self.enc = PyroModule[nn.Linear](L, D), nn.Linear(D, 2 * L)
        self.scale = PyroParam(torch.ones(D), constraint=constraints.positive)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z), self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x)):
            h = self.enc(x)
            pyro.sample("z", dist.Normal(h[..., :L], h[..., L:].exp()).to_event(1))


FROZEN = {
    "submodule": ["dec.weight", "dec.bias"],
    "one": ["dec.weight"],
    "constrained": ["scale_unconstrained"],
    "stock-submodule": ["enc.weight", "enc.bias"],
    "all-but-one": ["dec.weight", "dec.bias", "enc.weight", "scale_unconstrained"],
}
USES = {
    "check": lambda m, x: check(m.model, m.guide, x),
    "log_weights": lambda m, x: log_weights(m.model, m.guide, x),
    "log_likelihood": lambda m, x: log_likelihood(m.model, m.guide, x, num_samples=3, verbose=False),
    "ais": lambda m, x: ais(m.model, m.guide, x[:2], num_chains=2, num_temperatures=3, verbose=False),
    "fit": lambda m, x: fit(m, x, epochs=1, verbose=False),
    "traced": lambda m, x: fit(m, x, epochs=1, engine="trace", verbose=False),
}


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("which", FROZEN)
def test_frozen_parameters_stay_frozen(which, use):
    managed = Managed()
    for name in FROZEN[which]:
        managed.get_parameter(name).requires_grad_(False)
    before, frozen = state(managed), flags(managed)
    USES[use](managed, rows())
    assert flags(managed) == frozen
    assert moved(managed, before) == (set(before) - set(FROZEN[which]) if use in ("fit", "traced") else set())


def test_pyro_itself_thaws_a_frozen_parameter():
    """Broken: the programs run as Pyro runs them."""
    managed = Managed()
    managed.dec.requires_grad_(False)
    managed.model(rows())
    assert managed.dec.weight.requires_grad


# memory


def transposed(linear):
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    return linear


class Channels(nn.Module):
    """A convolution whose weights lie channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 2, 2).to(memory_format=torch.channels_last), nn.Linear(2, 2 * L)
        self.lift = nn.Linear(D, 12)

    def forward(self, x):
        h = self.lift(x).reshape(-1, 3, 2, 2)
        return self.out(self.conv(h).reshape(*x.shape[:-1], 2))


VIEWS = {
    "transposed": lambda: (transposed(nn.Linear(L, D)), transposed(nn.Linear(D, 2 * L))),
    "channels-last": lambda: (nn.Linear(L, D), Channels()),
    "tied": lambda: tied(),
    "every-other": lambda: (nn.Linear(L, D), strided(nn.Linear(D, 2 * L))),
}


def strided(linear):
    linear.weight = nn.Parameter((torch.randn(2 * L, 2 * D) / 10)[:, ::2])
    return linear


class Tied(nn.Module):
    """The encoder multiplies by the decoder's weight, transposed."""

    def __init__(self, dec):
        super().__init__()
        self.dec, self.log_scale = dec, nn.Parameter(torch.zeros(D, L).t())

    def forward(self, x):
        return torch.cat([x @ self.dec.weight / 4, x @ self.log_scale.t() / 4], -1)


def tied():
    dec = transposed(nn.Linear(L, D))
    return dec, Tied(dec)


@pytest.mark.parametrize("engine", ["eager", "trace"])
@pytest.mark.parametrize("how", VIEWS)
def test_parameters_that_are_not_contiguous_are_trained(how, engine):
    both = nn.ModuleList(VIEWS[how]())
    assert not all(p.is_contiguous() for p in both.parameters())
    before, made = state(both), pair(*both)
    assert check(*made, rows()).ok
    fit(made, rows(), epochs=1, engine=engine, verbose=False)
    assert moved(both, before) == set(before)


def test_stock_pyro_trains_a_vae_whose_parameters_are_not_contiguous():
    vae = VAE(
        StandardNormal(L),
        Conditional(transposed(nn.Linear(L, 2 * D)), normal),
        Conditional(nn.Linear(D, 2 * L), normal),
    )
    before = state(vae)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(rows())
    assert moved(vae, before) == set(before)


def test_pyro_itself_trains_a_copy():
    """Broken: pyro.module as Pyro runs it."""
    dec, enc = VIEWS["transposed"]()
    before, (model, guide) = state(dec), pair(dec, enc)
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(rows())
    assert moved(dec, before) == {"bias"}


def test_entries_that_share_their_memory_are_refused_by_name():
    dec, enc = networks()
    enc.bias = nn.Parameter(torch.zeros(1).expand(2 * L))
    with pytest.raises(ProgramError, match=r"'bias'.*share their memory \(expand\).*p.detach\(\).clone\(\)"):
        fit(pair(dec, enc), rows(), epochs=1, verbose=False)
    with pytest.raises(ProgramError, match=r"for 'bias' of Linear\.\d+. Its entries share their memory"):
        register(enc)


# eval mode


def noisy_networks():
    """An encoder with batch norm, a decoder with dropout."""
    dec = nn.Sequential(nn.Linear(L, 8), nn.Dropout(0.5), nn.Linear(8, D))
    return dec, nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Linear(8, 2 * L))


HIDDEN = {}


def found_on_the_way(module):
    """The network stands nowhere that a function of the programs names."""
    HIDDEN["net"] = module
    return lambda x: vars(__import__("tests.programs.test_parameters", fromlist=["HIDDEN"]))["HIDDEN"]["net"](x)


@pytest.mark.parametrize(
    "wrap", [lambda m: m, found_on_the_way, lambda m: [m][0].forward], ids=["closure", "hidden", "method"]
)
def test_functions_over_networks_are_scored_in_eval_mode(wrap):
    dec, enc = noisy_networks()
    model, guide = pair(wrap(dec), wrap_encoder(enc, wrap), None, None)
    before = state(enc)
    score = log_likelihood(model, guide, rows(), num_samples=5, seed=1, verbose=False).log_px
    assert moved(enc, before) == set() and all(m.training for net in (dec, enc) for m in net.modules())
    dec.eval(), enc.eval()
    by_hand = log_likelihood(model, guide, rows(), num_samples=5, seed=1, verbose=False).log_px
    torch.testing.assert_close(score, by_hand, rtol=0, atol=0)
    assert not any(m.training for net in (dec, enc) for m in net.modules())


def wrap_encoder(enc, wrap):
    return enc if wrap is found_on_the_way else wrap(enc)


def test_another_thread_that_trains_meanwhile_is_left_alone():
    net, other = nn.Dropout(0.5), nn.Dropout(0.5)
    seen = []
    with evaluation_mode():
        net(torch.ones(1))
        thread = threading.Thread(target=lambda: (other(torch.ones(1)), seen.append(other.training)))
        thread.start(), thread.join()
        assert not net.training
    assert seen == [True] and net.training


def test_training_keeps_statistics_and_dropout_of_functions_programs():
    dec, enc = noisy_networks()
    before = state(enc)
    fit(pair(dec, enc), rows(), epochs=1, verbose=False)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= moved(enc, before)
    assert dec.training and enc.training


# stores


def new_vae():
    return VAE(StandardNormal(L), Conditional(nn.Linear(L, 2 * D), normal), Conditional(nn.Linear(D, 2 * L), normal))


def loaded(entries):
    """Put copies of tensors into the store, as a file of another process would."""
    named = {name: t.detach().clone().requires_grad_() for name, t in entries.items()}
    pyro.get_param_store().set_state({"params": named, "constraints": dict.fromkeys(named, constraints.real)})


USED_BY = {
    "fit": lambda m, g: fit((m, g), rows(), epochs=1, verbose=False),
    "log_likelihood": lambda m, g: log_likelihood(m, g, rows(), num_samples=2, verbose=False),
    "log_weights": lambda m, g: log_weights(m, g, rows()),
    "check": lambda m, g: check(m, g, rows()).raise_if_bad(),
}


@pytest.mark.parametrize("use", USED_BY)
def test_a_store_of_another_process_is_refused_and_its_weights_can_be_loaded(use):
    trained, vae = new_vae(), new_vae()
    loaded({f"VAE.100000$$${name}": p for name, p in trained.named_parameters()})
    with pytest.raises(ProgramError, match=r"parameters of VAE.100000 \(.*load_from_store\(module, 'VAE.100000'\)"):
        USED_BY[use](vae.model, vae.guide)
    load_from_store(vae, "VAE.100000")
    assert not any(name.startswith("VAE.100000") for name in pyro.get_param_store())
    torch.testing.assert_close(state(vae), state(trained), rtol=0, atol=0)
    USED_BY[use](vae.model, vae.guide)


@pytest.mark.parametrize("use", USED_BY)
def test_a_store_that_stock_modules_would_ignore_is_refused(use):
    (dec, enc), (trained, _) = networks(), networks()
    loaded({f"dec$$${name}": p for name, p in trained.named_parameters()})
    with pytest.raises(ProgramError, match=r"than the module for 'weight' of dec: .*load_from_store\(module, 'dec'\)"):
        USED_BY[use](*pair(dec, enc))
    load_from_store(dec, "dec")
    torch.testing.assert_close(state(dec), state(trained), rtol=0, atol=0)
    USED_BY[use](*pair(dec, enc))


def test_a_store_that_a_pyro_module_would_ignore_is_refused():
    managed, trained = Managed(), Managed()
    names = {"dec.weight": "dec.weight", "dec.bias": "dec.bias", "enc$$$weight": "enc.weight", "enc$$$bias": "enc.bias"}
    entries = {name: trained.get_parameter(key) for name, key in names.items()}
    loaded(entries | {"scale": trained.scale_unconstrained + 1.0})
    with pytest.raises(ProgramError, match="another tensor than the module for 'weight' of enc"):
        log_likelihood(managed.model, managed.guide, rows(), num_samples=2, verbose=False)
    load_from_store(managed)
    assert torch.equal(managed.dec.weight, trained.dec.weight) and len(pyro.get_param_store()) == 0
    assert torch.equal(managed.scale, trained.scale_unconstrained.exp() * torch.ones(()).exp())
    log_likelihood(managed.model, managed.guide, rows(), num_samples=2, verbose=False)


def test_what_does_not_fit_the_module_is_not_loaded():
    dec, _ = networks()
    loaded({"dec$$$weight": torch.zeros(3, 3)})
    with pytest.raises(ProgramError, match=r"wanted weight \(4, 2\), bias \(4,\); got weight \(3, 3\)"):
        load_from_store(dec, "dec")
    with pytest.raises(ProgramError, match=r"got none; in the store: dec\$\$\$weight"):
        load_from_store(dec, "enc")


def test_two_live_models_of_one_name_are_scored_each_by_its_own_weights():
    """What check calls ghost training says nothing against evaluating: each runs on its own weights."""
    first, second = pair(*networks()), pair(*networks())
    fit(first, rows(), epochs=1, verbose=False)
    with_ghost = log_likelihood(*second, rows(), num_samples=3, seed=2, verbose=False).log_px
    assert any(f.kind == "ghost" for f in check(*second, rows()).errors)
    with pytest.raises(ProgramError, match="ghost training"):
        fit(second, rows(), epochs=1, verbose=False)
    pyro.clear_param_store()
    alone = log_likelihood(*second, rows(), num_samples=3, seed=2, verbose=False).log_px
    torch.testing.assert_close(with_ghost, alone, rtol=0, atol=0)


def test_a_second_pyro_module_of_the_same_names_is_a_ghost():
    first, second = Managed(), Managed()
    fit(first, rows(), epochs=1, verbose=False)
    assert {f.where for f in check(second.model, second.guide, rows()).errors} >= {
        "parameter 'dec.weight'",
        "parameter 'weight'",
    }


def test_parameters_that_a_program_makes_anew_at_each_run_are_the_stores():
    dec, enc = networks()
    model, guide = pair(dec, enc, change=lambda h: h + pyro.param("shift", nn.Parameter(torch.zeros(2 * L))))
    fit((model, guide), rows(), epochs=1, verbose=False)
    assert pyro.param("shift").any() and check(model, guide, rows()).ok
    log_likelihood(model, guide, rows(), num_samples=2, verbose=False)


def test_entries_of_a_module_that_died_in_a_scope_are_dropped():
    dead, store = nn.Linear(1, 1), pyro.get_param_store()
    register(dead)
    with store.scope():
        del dead
        gc.collect()
    assert len(store) == 2  # the scope came back with them
    register(kept := nn.Linear(1, 1))
    assert len(store) == 2 and all(any(t is p for p in kept.parameters()) for _, t in store.named_parameters())
