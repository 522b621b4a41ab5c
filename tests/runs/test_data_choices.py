"""What a config leaves to the data: likelihoods of bytes and of zeros and ones, and the units that networks see."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_vae import log_likelihood
from pyro_vae.common.random import seeded
from pyro_vae.common.safe_read import SEAL, seal
from pyro_vae.data import Column, load
from pyro_vae.data.table_layout import TableOptions
from pyro_vae.data.value_kinds import kind_of
from pyro_vae.errors import DataError
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.models.standardize import OfStandardized, units_by_shape
from pyro_vae.posteriors.registry import POSTERIORS
from pyro_vae.priors.registry import PRIORS
from pyro_vae.runs.config import BEFORE, Config
from pyro_vae.runs.data_choices import columns_told, decided
from pyro_vae.runs.load import load_data, load_run, open_data
from pyro_vae.runs.registry import build, names
from pyro_vae.runs.train_run import train_run
from tests.helpers.environment import HEAVY

draw = np.random.default_rng(0)
TABLE = (draw.normal(size=(60, 4)) * [1e3, 1.0, 1e-3, 1.0] + [1e4, 0.0, 1.0, 5.0]).astype(np.float32)
ARRAYS = {
    "table": TABLE,
    "bytes": draw.integers(0, 256, (60, 4, 4), np.uint8),
    "dark bytes": draw.integers(0, 9, (60, 4, 4), np.uint8),
    "bytes as floats": draw.integers(0, 256, (60, 16)).astype(np.float64),
    "zeros and ones": draw.integers(0, 2, (60, 5), np.uint8),
    "counts": draw.integers(0, 90, (60, 5)),
    "grey": draw.random((60, 4, 4), np.float32),
}
CHOSEN = {  # likelihood, standardize, normalize
    "table": ("normal", True, False),
    "bytes": ("discretized_logistic", False, True),
    "dark bytes": ("discretized_logistic", False, True),
    "bytes as floats": ("discretized_logistic", False, True),
    "zeros and ones": ("bernoulli", False, True),
    "counts": ("normal", True, False),
    "grey": ("normal", True, False),
}
SMALL = {"hidden": (6,), "latent_dim": 2, "epochs": 1, "batch_size": 20}


@pytest.fixture
def data(tmp_path):
    """Saves one of the arrays, and loads it: its path and its data."""

    def loading(kind):
        np.save(tmp_path / "x.npy", ARRAYS[kind])
        return str(tmp_path / "x.npy"), load(tmp_path / "x.npy")

    return loading


@pytest.mark.parametrize("kind", CHOSEN)
def test_auto_is_chosen_by_the_data(data, kind):
    path, loaded = data(kind)
    config = decided(Config(data=path, **SMALL), loaded)
    assert (config.likelihood, config.standardize, config.normalize) == CHOSEN[kind]
    asked = decided(Config(data=path, likelihood="normal", standardize=False, normalize=False, **SMALL), loaded)
    assert (asked.likelihood, asked.standardize, asked.normalize) == ("normal", False, False)


def test_values_alone_say_what_they_are():
    assert kind_of([np.array([[0, 300]])]) == kind_of([np.array([[-1, 200]])]) == kind_of([np.array([[3, 90]])]) == ""
    assert kind_of([np.array([[np.nan, 200.0]])]) == "bytes" and kind_of([np.array([[np.nan]])]) == ""
    assert kind_of([np.zeros((2, 2)), np.full((2, 2), 0.5)]) == ""


OWN = [("normal_fixed", {"scale": 0.1}), ("poisson", {}), ("gamma", {})]


@pytest.mark.parametrize("name, options", OWN, ids=[name for name, _ in OWN])
def test_densities_in_units_of_their_own_stay_and_the_encoder_is_normalized(data, name, options):
    path, loaded = data("counts")
    config = decided(Config(data=path, likelihood=name, likelihood_options=options, **SMALL), loaded)
    assert (config.standardize, config.normalize) == (False, True)
    blocks = {"likelihood": "columns", "likelihood_options": {"blocks": "normal:2,normal_fixed:2:scale=0.1,poisson:1"}}
    assert not decided(Config(data=path, **blocks, **SMALL), loaded).standardize
    mixed = {"likelihood": "columns", "likelihood_options": {"blocks": "normal:3,poisson:2"}}
    config = decided(Config(data=path, **mixed, **SMALL), loaded)
    assert (config.standardize, config.normalize) == (True, True)


def test_images_within_0_and_1_stay(data):
    path, loaded = data("grey")
    config = decided(Config(data=path, likelihood="continuous_bernoulli", **SMALL), loaded)
    assert (config.standardize, config.normalize) == (False, False)
    dark = replace(loaded, train=replace(loaded.train, x=loaded.train.x / 100))
    assert decided(Config(data=path, likelihood="continuous_bernoulli", **SMALL), dark).normalize


UNLIKE = ("normal", "flow", "one_hot_categorical", "semi_amortized")  # the others' encoders are wrapped as the first's


@pytest.mark.parametrize("posterior", names("posterior") if HEAVY else UNLIKE)
def test_the_density_is_the_same_whatever_units_the_encoder_sees(data, posterior):
    """log p(x, z) / q(z | x) of normalized networks at x is that of plain ones at normalized x, but for p(x | z)."""
    path, loaded = data("counts")
    q = POSTERIORS[posterior]
    prior = next(n for n, p in PRIORS.items() if p.support in (q.support, "any") and not p.needs)
    options = {"gradient": "vimco", "objective": "iwae", "objective_options": {"particles": 2}}
    config = decided(
        Config(data=path, likelihood="poisson", posterior=posterior, prior=prior, **options, **SMALL), loaded
    )
    x = loaded.train.x
    with seeded(3):
        vae = build(config, loaded.shape, x)
    with seeded(3):
        plain = build(replace(config, normalize=False), loaded.shape, x)
    encoders = [m for m in vae.posterior.modules() if isinstance(m, OfStandardized)]
    assert len(encoders) >= 1
    loc, scale = units_by_shape(x, torch.tensor(True), loaded.shape)
    assert all(torch.allclose(e.units.loc, loc) and torch.allclose(e.units.scale, scale) for e in encoders)
    plain_net = next(m for m in encoders)
    with torch.no_grad():
        assert torch.allclose(plain_net(x), plain_net.base((x - loc) / scale))
    assert sum(p.numel() for p in vae.parameters()) == sum(p.numel() for p in plain.parameters())


def test_log_px_is_that_of_x_in_any_units_of_the_encoder(data):
    """The encoder's units move no density: by quadrature, the same model with and without them."""
    path, loaded = data("counts")
    config = decided(Config(data=path, likelihood="poisson", **SMALL), loaded)
    with seeded(0):
        vae = build(config, loaded.shape, loaded.train.x)
    with seeded(0):
        plain = build(replace(config, normalize=False), loaded.shape, loaded.train.x)
    for param, other in zip(vae.likelihood.parameters(), plain.likelihood.parameters(), strict=True):
        other.data.copy_(param.data)
    x = loaded.test.x
    with_units, without = (quadrature(v.model, None, x) for v in (vae, plain))
    assert torch.equal(with_units.log_px, without.log_px)


@pytest.mark.parametrize("kind", ["bytes", "table"])
def test_runs_come_back_in_their_units(data, tmp_path, kind):
    path, loaded = data(kind)
    train_run(Config(data=path, **SMALL), tmp_path / "run", num_samples=10)
    run = load_run(tmp_path / "run")
    assert (run.config.likelihood, run.config.standardize, run.config.normalize) == CHOSEN[kind]
    again = load_run(tmp_path / "run")
    x = loaded.test.x
    scores = [log_likelihood(r.vae.model, r.vae.guide, x, num_samples=10, verbose=False).log_px for r in (run, again)]
    assert torch.equal(*scores)
    moved = next((m for m in run.vae.posterior.modules() if isinstance(m, OfStandardized)), None)
    assert moved is not None and not torch.equal(moved.units.scale, torch.ones_like(moved.units.scale))


def before(run):
    """Make a run's config.json that of a version which had none of the options that came later."""
    record = json.loads((run / "config.json").read_text())
    record.pop(SEAL, None)
    for key in ("standardize", "normalize", "header", "index", "label"):
        record["config"].pop(key)
    (run / "config.json").write_text(json.dumps(seal(record)))


def test_a_run_of_an_older_version_loads_as_it_was(data, tmp_path):
    path, loaded = data("counts")
    config = Config(data=path, likelihood="poisson", **BEFORE, **SMALL)
    train_run(config, tmp_path / "run", num_samples=10)
    run, x = load_run(tmp_path / "run"), loaded.test.x
    was = log_likelihood(run.vae.model, run.vae.guide, x, num_samples=10, verbose=False).log_px
    before(tmp_path / "run")
    old = load_run(tmp_path / "run")
    assert not old.config.normalize and not old.config.standardize
    assert torch.equal(log_likelihood(old.vae.model, old.vae.guide, x, num_samples=10, verbose=False).log_px, was)


def test_a_table_of_an_older_run_is_read_as_it_was_then(tmp_path):
    """Its y was the label, whatever it was called today; a header of numbers was a row."""
    lines = [f"{i % 3},{a},{b}" for i, (a, b) in enumerate(draw.normal(size=(40, 2)))]
    (tmp_path / "x.csv").write_text("\n".join(["y,a,b", *lines]))
    config = Config(data=str(tmp_path / "x.csv"), label="y", likelihood="normal", **BEFORE, **SMALL).resolved()
    train_run(config, tmp_path / "run", num_samples=10)
    before(tmp_path / "run")
    run = load_run(tmp_path / "run")
    data = open_data(run)
    assert data.shape == (2,) and data.train.y is not None
    assert load_data(run.config, None).shape == (3,)
    (tmp_path / "x.csv").write_text("\n".join(["0,1,2", *lines]))
    assert len(load_data(replace(config, label=None), None).train) == 32
    digest = load(tmp_path / "x.csv", table=TableOptions(former=True)).digest
    former = load_data(replace(config, label=None), None, digest=digest)
    assert former.digest == digest and sum(map(len, (former.train, former.validation, former.test))) == 41


def test_units_of_images_are_one_and_of_tables_one_a_column():
    x = torch.tensor(draw.normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6], dtype=torch.float32)
    _, scale = units_by_shape(x, torch.tensor(True), (1, 2, 3))
    assert len(scale.unique()) == 1 and torch.allclose(scale[0], (x - x.mean()).square().mean().sqrt())
    assert len(units_by_shape(x, torch.tensor(True), (6,))[1].unique()) == 6


def test_columns_that_a_run_has_no_room_for():
    """Names of numbers are forgotten; labels, without which codes mean nothing, are refused before anything is trained."""
    many = [Column(f"gene {i}") for i in range(20_000)]
    assert columns_told(many) == [] and columns_told(many[:3])[1] == {"name": "gene 1", "kind": "number"}
    labels = tuple(f"{i:0>400}" for i in range(900))
    with pytest.raises(DataError, match="'long' has the most, 900 labels"):
        columns_told([*many[:3], Column("long", "category", labels)])
