"""A VAE in standard units: its networks see (x − mean) / std, its log p(x) is that of x."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import MLP, VAE, Beta, Bound, Conditional, StandardNormal, adam, bernoulli, iwae, log_likelihood, normal
from pyro_vae import fit as noisy_fit
from pyro_vae.errors import UsageError
from pyro_vae.likelihoods import categorical, columns, normal_fixed, poisson, student_t
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.models.standardize import column_units, give_units
from pyro_vae.programs.parameters import register
from tests.helpers.small import binary, small_vae

fit = partial(noisy_fit, verbose=False)
score = partial(log_likelihood, num_samples=200, seed=3, verbose=False)


def data(rows=60, device="cpu", scales=(1e3, 1.0, 1e-3, 50.0, 1.0, 1e5)):
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(2))
    x[:, 1] += x[:, 0]
    return (x * torch.tensor(scales) + torch.tensor([1e4, 0.0, 1.0, -50.0, 3.0, 0.0])).to(device)


def both(device="cpu", family=normal, x=None, features=2):
    """A VAE in units of x, and the same weights as they are: they see x and standardized x."""
    plain = small_vae(likelihood=family, features=features, device=device, seed=1)
    vae = copy.deepcopy(plain)
    vae.standardize(data(device=device) if x is None else x)
    return vae, plain


FAMILIES = {"normal": (normal, 2), "student-t": (student_t(3.0), 2), "fixed": (normal_fixed(0.7), 1)}


@pytest.mark.parametrize("kind", FAMILIES)
def test_log_px_is_that_of_standardized_rows_less_the_jacobian(kind, device):
    """The same draws of the same networks, so equal but for rounding; the broken variant lacks Σ log std."""
    x = data(device=device)
    family, features = FAMILIES[kind]
    vae, plain = both(device, family, features=features)
    mean, std = x.double().mean(0), x.double().std(0, unbiased=False)
    raw, u = score(vae.model, vae.guide, x), score(plain.model, plain.guide, ((x.double() - mean) / std).float())
    jacobian = std.log().sum().item()
    assert torch.allclose(raw.log_px, u.log_px - jacobian, atol=2e-3) and abs(jacobian) > 5
    assert not torch.allclose(raw.log_px, u.log_px, atol=1.0)


def test_of_rows_with_missing_values_only_observed_elements_count(device):
    x = data(device=device)
    x[::3, 0], x[1::4, 5], x[7] = torch.nan, torch.nan, torch.nan
    posterior = Conditional(WithMask(MLP(12, 4, (8,))), normal)
    likelihood = SkipMissing(Conditional(MLP(2, 12, (8,)), normal))
    plain = VAE(StandardNormal(2), likelihood, posterior).to(device)
    vae = copy.deepcopy(plain)
    fit(vae, x, epochs=1, standardize=True, optimizer=partial(torch.optim.SGD, lr=0.0))
    loc, scale = x.double().nanmean(0), (x.double() - x.double().nanmean(0)).square().nanmean(0).sqrt()
    raw = score(vae.model, vae.guide, x)
    u = score(plain.model, plain.guide, ((x.double() - loc) / scale).float())
    jacobian = torch.where(x.isnan(), 0.0, scale.log()).sum(1).cpu()
    assert torch.allclose(raw.log_px, u.log_px - jacobian, atol=2e-3) and raw.log_px[7].abs().item() < 0.2


def test_discrete_columns_and_constants_stay(device):
    family = columns([(normal, 2 * 3, 3), (categorical(4), 4, 1), (poisson, 1, 1)])
    plain = VAE(StandardNormal(2), Conditional(MLP(2, 11, (8,)), family), Conditional(MLP(5, 4, (8,)), normal)).to(
        device
    )
    vae = copy.deepcopy(plain)
    x = torch.cat([data(device=device)[:, [0, 4]], torch.full((60, 1), 7.0, device=device)], 1)
    x = torch.cat([x, torch.randint(4, (60, 1), device=device), torch.randint(9, (60, 1), device=device)], 1)
    vae.standardize(x)
    units = vae.likelihood.units
    assert units.loc[3:].tolist() == [0, 0] and units.scale[2:].tolist() == [1, 1, 1] and units.loc[2].item() == 7
    u = (x - units.loc) / units.scale
    jacobian = units.scale[:2].log().sum().item()
    raw, other = score(vae.model, vae.guide, x), score(plain.model, plain.guide, u)
    assert torch.allclose(raw.log_px, other.log_px - jacobian, atol=2e-3)


def test_images_have_units_by_pixel(device):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2 * 12)

        def forward(self, z):
            return self.layer(z).reshape(*z.shape[:-1], 2, 3, 4)

    def family(h):
        return pyro.distributions.Normal(h[..., :1, :, :], 1.0)

    encoder = Conditional(nn.Sequential(nn.Flatten(-3), nn.Linear(12, 4)), normal)
    plain = VAE(StandardNormal(2), Conditional(Net(), family, event_dim=3), encoder).to(device)
    vae, x = copy.deepcopy(plain), 100 * torch.randn(30, 1, 3, 4, device=device) + 40
    vae.standardize(x)
    units = vae.likelihood.units
    raw, u = score(vae.model, vae.guide, x), score(plain.model, plain.guide, (x - units.loc) / units.scale)
    assert units.scale.shape == (1, 3, 4)
    assert torch.allclose(raw.log_px, u.log_px - units.scale.log().sum().item(), atol=2e-3)


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_training_in_standard_units_is_training_on_standardized_rows(engine, device):
    """Same steps: the loss differs by the Jacobian alone, and the weights not at all, but for rounding."""
    x = data(device=device)
    mean, std = x.double().mean(0), x.double().std(0, unbiased=False)
    vae, plain = (
        small_vae(likelihood=normal, features=2, device=device, seed=1),
        small_vae(likelihood=normal, features=2, device=device, seed=1),
    )
    options = {"epochs": 3, "batch_size": 20, "engine": engine, "optimizer": partial(torch.optim.SGD, lr=1e-3)}
    raw = fit(vae, x, standardize=True, **options)
    u = fit(plain, ((x.double() - mean) / std).float(), **options)
    jacobian = std.log().sum().item()
    for a, b in zip(raw.history, u.history, strict=True):
        assert a["elbo"] == pytest.approx(b["elbo"] - jacobian, abs=1e-2)
        assert a["loss"] == pytest.approx(b["loss"] + jacobian, abs=1e-2) and a["kl"] == pytest.approx(
            b["kl"], abs=1e-3
        )
    pairs = zip(vae.parameters(), plain.parameters(), strict=True)
    assert all(torch.allclose(p, q, atol=1e-4) for p, q in pairs)
    assert ("eager from here on" in raw.engine) is False


def test_rows_of_any_scale_train_alike(device):
    bests = []
    for scale in (1.0, 1e3, 1e6):
        x = scale * torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).to(device)
        vae = small_vae(likelihood=normal, features=2, device=device, seed=1)
        run = fit(vae, x, epochs=20, standardize=True, optimizer=adam(1e-2))
        bests.append(run.history[-1]["elbo"] + 6 * torch.tensor(scale).log().item())
    assert max(bests) - min(bests) < 0.02


def test_units_travel_with_the_weights(device):
    x = data(device=device)
    vae, _ = both(device)
    other = small_vae(likelihood=normal, features=2, device=device, seed=5)
    other.standardize(x * 3 + 1)  # other units, which the state replaces
    other.load_state_dict(vae.state_dict())
    for again in (copy.deepcopy(vae), other):
        assert torch.equal(score(again.model, again.guide, x).log_px, score(vae.model, vae.guide, x).log_px)
    assert {"likelihood.units.scale", "posterior.units.loc"} <= vae.state_dict().keys()


def test_samples_and_reconstructions_are_in_the_units_of_x(device):
    x = data(400, device)
    vae = small_vae(likelihood=normal, features=2, device=device, seed=1)
    fit(vae, x, epochs=60, standardize=True, optimizer=adam(1e-2))
    with torch.no_grad():
        mean = vae.likelihood(vae.posterior(x).mean).mean
        draws = vae.likelihood(vae.prior().sample((4000,))).sample()
    spread = x.std(0)
    assert ((mean - x).abs().mean(0) < 3 * spread).all() and ((draws.mean(0) - x.mean(0)).abs() < 0.5 * spread).all()
    assert (draws.std(0) / spread - 1).abs().max() < 0.6


def test_a_second_fit_keeps_the_units_and_standardize_sets_them_anew():
    vae, x = small_vae(likelihood=normal, features=2), data()
    fit(vae, x, epochs=1, standardize=True)
    units = vae.likelihood.units.scale.clone()
    fit(vae, 2 * x, epochs=1, standardize=True)
    assert vae.standardized and torch.equal(vae.likelihood.units.scale, units)
    vae.standardize(2 * x)
    assert torch.allclose(vae.likelihood.units.scale, 2 * units) and not hasattr(vae.likelihood.base, "units")


def test_under_handlers_and_other_objectives():
    vae, x = small_vae(likelihood=normal, features=2), data()
    beta = Beta(0.5)
    assert fit(beta.pair(vae), x, epochs=1, standardize=True, scheduled=[beta]).history and vae.standardized
    assert fit(vae, x, epochs=1, objective=Bound(iwae, num_particles=3), standardize=True).history


def test_contexts_condition_and_stay_as_they_are(device):
    class Net(nn.Module):
        def __init__(self, inputs, features):
            super().__init__()
            self.layer = nn.Linear(inputs, features)

        def forward(self, y, c):
            return self.layer(torch.cat([y, c.expand(*y.shape[:-1], 1)], -1))

    prior = StandardNormal(2)
    plain = VAE(lambda c: prior(), Conditional(Net(3, 12), normal), Conditional(Net(7, 4), normal)).to(device)
    vae, x, c = copy.deepcopy(plain), data(device=device), torch.randn(60, 1, device=device)
    vae.standardize(x, c)
    units = vae.likelihood.units
    raw, u = score(vae.model, vae.guide, x, c), score(plain.model, plain.guide, (x - units.loc) / units.scale, c)
    assert torch.allclose(raw.log_px, u.log_px - units.scale.log().sum().item(), atol=2e-3)


# refused by name


def test_a_likelihood_of_no_real_numbers_has_no_other_units():
    vae = small_vae()
    with pytest.raises(UsageError, match="no density of real numbers"):
        fit(vae, binary(), epochs=1, standardize=True)
    assert not vae.standardized


def test_programs_by_hand_do_it_themselves():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(UsageError, match=r"standardize=True takes a VAE.*AffineTransform\(loc, scale\)"):
        fit((model, guide), data(), epochs=1, standardize=True)


class Skipping(VAE):
    """Its programs pass the roles by."""

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            h = (self.likelihood.base if hasattr(self.likelihood, "base") else self.likelihood)(z)
            pyro.sample("x", h, obs=x)


class Peeking(VAE):
    """Its guide looks at x beside its posterior."""

    def guide(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(self.posterior(x).mean + x[:, :2], 1.0).to_event(1))


@pytest.mark.parametrize("kind", [Skipping, Peeking])
def test_a_model_that_does_not_follow_its_roles_is_refused(kind):
    vae = small_vae(likelihood=normal, features=2, kind=kind)
    with pytest.raises(UsageError, match=f"{kind.__name__} does not draw x from self.likelihood"):
        vae.standardize(data())
    assert not vae.standardized


def test_units_of_columns_that_hold_nothing_are_0_and_1():
    x = torch.tensor([[torch.nan, 1e8, 1.0], [torch.nan, 1e8, 3.0]])
    loc, scale = column_units(x, torch.tensor([True, True, False]))
    assert loc.tolist() == [0.0, 1e8, 0.0] and scale.tolist() == [1.0, 1.0, 1.0]


def test_the_function_is_what_the_method_calls():
    vae, other = small_vae(likelihood=normal, features=2), small_vae(likelihood=bernoulli)
    give_units(vae, data())
    assert vae.standardized and not other.standardized
