"""Parts of one's own in saved runs: passed as objects, named in the config, nothing of theirs in the folder or the registry."""

import functools
import json
import shutil
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from pyro_vae import MLP, Conditional, encode, load_run, log_likelihood, normal
from pyro_vae.cli.main import main
from pyro_vae.common.spec import REQUIRED, Spec
from pyro_vae.data import load
from pyro_vae.errors import RunFolderError, ShapeError, UsageError
from pyro_vae.likelihoods import FAMILIES
from pyro_vae.posteriors import POSTERIORS
from pyro_vae.priors import PRIORS
from pyro_vae.runs.config import Config
from pyro_vae.runs.custom_components import adopt, features_of
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.registry import build, resolved
from pyro_vae.runs.train_run import train_run
from tests.helpers.data import few_digits


class Shifted(nn.Module):
    """N(loc, width²), loc learned: three options, of which one has no default and one is None."""

    def __init__(self, dim, start, width=1.0, note=None):
        super().__init__()
        self.loc, self.width, self.note = nn.Parameter(torch.full((dim,), float(start))), width, note

    def forward(self):
        return dist.Normal(self.loc, self.width).to_event(1)


def my_posterior(encoder, dim, temper=1.0):
    """A normal whose scale is tempered."""

    def family(h):
        d = normal(h)
        return dist.Normal(d.loc, temper * d.scale)

    return Conditional(encoder(2 * dim), family)


def counted(h):
    """Counts 0..16 whose total odds are a sum of two features."""
    a, b = h.chunk(2, -1)
    return dist.Binomial(16, logits=a - softplus(b))


MINE = {"shifted": Shifted, "tempered": my_posterior, "counted": counted}
CONFIG = Config(
    prior="shifted",
    prior_options={"start": 0.5, "width": 2},
    posterior="tempered",
    posterior_options={"temper": 0.5},
    likelihood="counted",
    hidden=(8,),
    latent_dim=2,
    epochs=1,
    batch_size=100,
)


@pytest.fixture(scope="module", autouse=True)
def fewer():
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fewer):
    path = tmp_path_factory.mktemp("own") / "run"
    before = [dict(PRIORS), dict(POSTERIORS), dict(FAMILIES)]
    train_run(CONFIG, str(path), components=MINE, device="cpu", num_samples=5)
    assert before == [PRIORS, POSTERIORS, FAMILIES]
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_of_own_parts_comes_back_to_the_last_bit(run):
    opened = load_run(run, components=MINE)
    assert type(opened.vae.prior) is Shifted and opened.vae.prior.width == 2.0 and opened.vae.prior.note is None
    assert not torch.equal(opened.vae.prior.loc, torch.full((2,), 0.5))  # as trained, not as made
    x = load("digits").test.x
    again = log_likelihood(opened.vae.model, opened.vae.guide, x, num_samples=5, verbose=False).summary()
    assert opened.evidence["log_px"] == again["log_px"]
    by_data = {"standardize": False, "normalize": True}
    assert opened.config == replace(resolved(CONFIG, MINE), **by_data) and encode(opened.vae, x[:3]).shape == (3, 2)
    assert evaluate_run(run, components=MINE, num_samples=5, device="cpu")["floor"] == opened.evidence["floor"]


def test_the_folder_holds_names_and_numbers_only(run):
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["prior"] == "shifted" and config["prior_options"] == {"start": 0.5, "width": 2.0}
    held = "".join(p.read_bytes().decode("latin1") for p in run.iterdir() if p.is_file())
    assert "Shifted" not in held and "my_posterior" not in held and __name__ not in held


def test_what_a_run_needs_is_said_by_name(run, capsys):
    said = r"the run uses the prior 'shifted', which is no registered part. Pass load_run\(path, components=\{'shifted': \.\.\."
    with pytest.raises(RunFolderError, match=said):
        load_run(run, components={k: v for k, v in MINE.items() if k != "shifted"})
    with pytest.raises(
        RunFolderError, match="the prior 'shifted' and the likelihood 'counted' and the posterior 'tempered'"
    ):
        load_run(run)
    assert main(["evaluate", str(run)]) == 4
    assert "in Python" in capsys.readouterr().err


def test_another_part_under_the_name_is_refused_by_its_tensors(run):
    with pytest.raises(RunFolderError, match=r"not of the model in config.json: 'prior.loc'"):
        load_run(run, components=MINE | {"shifted": lambda dim, start, width: Other(dim)})
    with pytest.raises(RunFolderError, match="has no option 'start'"):
        load_run(run, components=MINE | {"shifted": lambda dim: Other(dim)})


class Other(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self):
        return dist.Normal(0.0, self.scale).to_event(1)


@pytest.mark.parametrize("name", ["flow", "poisson", "auto"])
def test_a_registered_name_is_refused(name, run):
    with pytest.raises(UsageError, match=f"component '{name}': a registered part is called so"):
        resolved(Config(), {name: Shifted})
    with pytest.raises(UsageError, match="Take another name"):
        load_run(run, components=MINE | {name: Shifted})


def built(components, **said):
    config = resolved(Config(data="x.csv", latent_dim=3, hidden=(4,), **said), components)
    return build(config, (6,), components=components)


def test_a_spec_says_more():
    vae = built({"mine": PRIORS["vamp"]}, prior="mine", prior_options={"components": 4})
    assert vae.prior().batch_shape == ()
    spec = Spec(make=Shifted, support="simplex", formula="", options={"start": 1.0})
    with pytest.raises(UsageError, match="prior 'mine' lives on simplex latents"):
        built({"mine": spec}, prior="mine")
    binomial = Spec(
        make=FAMILIES["binomial"].make, features=1, options={"total_count": REQUIRED}, support="", formula=""
    )
    counts = built({"mine": binomial}, likelihood="mine", likelihood_options={"total_count": 3})
    assert (counts.likelihood(torch.zeros(5, 3)).base_dist.total_count == 3).all()
    for role, spec in (("prior", binomial), ("likelihood", PRIORS["vamp"])):
        with pytest.raises(UsageError, match=f"as a {role} it has to be"):
            adopt(role, "mine", spec)


def test_parts_that_are_made_of_others_get_them():
    class Vamp(nn.Module):
        def __init__(self, dim, posterior, shape, components=2):
            super().__init__()
            self.posterior, self.u = posterior, nn.Parameter(torch.zeros(components, shape))

        def forward(self):
            mix = dist.Categorical(torch.ones(len(self.u)))
            return dist.MixtureSameFamily(mix, self.posterior(self.u))

    vae = built({"mine": Vamp}, prior="mine", prior_options={"components": 3})
    assert vae.prior.posterior is vae.posterior and vae.prior.u.shape == (3, 6)
    with pytest.raises(UsageError, match="take another"):
        built({"mine": Vamp}, prior="mine", posterior="semi_amortized")


def test_support_is_any_unless_a_spec_says():
    for posterior in ("normal", "logistic_normal", "power_spherical"):
        assert built({"mine": Shifted}, prior="mine", prior_options={"start": 0}, posterior=posterior)
    assert built({"mine": my_posterior}, prior="dirichlet", posterior="mine")


@pytest.mark.parametrize(
    ("role", "part", "message"),
    [
        ("prior", 3, "is a int; as a prior it has to be a class or function"),
        ("prior", Other(3), "is a Other; as a prior"),
        ("likelihood", Other, "is the class Other; as a likelihood it has to be a function features -> distribution"),
    ],
)
def test_what_a_role_cannot_call_is_refused(role, part, message):
    with pytest.raises(UsageError, match=message):
        adopt(role, "mine", part)


def test_options_are_checked_as_those_of_registered_parts():
    with pytest.raises(UsageError, match="prior 'mine' needs 'start'"):
        built({"mine": Shifted}, prior="mine")
    with pytest.raises(UsageError, match="no option 'stort'; did you mean 'start'"):
        built({"mine": Shifted}, prior="mine", prior_options={"stort": 1})
    with pytest.raises(UsageError, match=r"no plain value .*functools.partial"):
        built({"mine": Shifted}, prior="mine", prior_options={"start": nn.ReLU()})
    held = functools.partial(Shifted, start=2.0)
    assert built({"mine": held}, prior="mine").prior.loc[0] == 2.0


@pytest.mark.parametrize(
    ("family", "count"), [(counted, 2), (lambda h: dist.Poisson(h.exp()), 1), (FAMILIES["categorical"].make(5), 5)]
)
def test_the_features_of_a_family_are_found(family, count):
    assert features_of("mine", family) == count


def test_features_that_cannot_be_found_are_asked_for():
    def odd(h):
        return dist.Normal(h[..., :11], 1.0)

    with pytest.raises(UsageError, match=r"of 2520 zeros it makes 11 elements. Give it an attribute: odd.features = 2"):
        features_of("mine", odd)
    odd.features = 3
    assert features_of("mine", odd) == 3
    with pytest.raises(UsageError, match="fed 2520 zeros, it says"):
        features_of("mine", MLP(4, 2))


def test_the_callers_own_module_is_never_trained(tmp_path):
    class Scaled(nn.Module):
        features = 1

        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(()))

        def forward(self, h):
            return dist.Normal(h, softplus(self.raw) + 0.1)

    mine = {"scaled": Scaled()}
    config = Config(likelihood="scaled", hidden=(4,), latent_dim=2, epochs=1)
    train_run(config, tmp_path / "r", components=mine, device="cpu", num_samples=2)
    opened = load_run(tmp_path / "r", components=mine)
    assert opened.vae.likelihood.family.raw.item() != 0 == mine["scaled"].raw.item()


def test_own_parts_at_odds_are_refused_before_a_folder_is_made(tmp_path):
    too_wide = functools.partial(Shifted, start=0.0)
    config = Config(prior="mine", hidden=(4,), latent_dim=2, epochs=1)
    with pytest.raises(ShapeError, match=r"the prior draws values of shape \(3,\), the posterior \(2,\)"):
        train_run(config, tmp_path / "r", components={"mine": lambda dim: too_wide(dim + 1)}, device="cpu")
    assert not (tmp_path / "r").exists()
