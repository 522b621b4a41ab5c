"""Kinds of models by name: built, trained, scored and asked as a VAE is; what is not had is refused by name."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Config, MultimodalVAE, compare_runs, evaluate_run, load_run, log_likelihood, resume_run, train_run
from pyro_vae.cli.main import main
from pyro_vae.data import Split, load
from pyro_vae.errors import DataError, DivergedError, ShapeError, UsageError
from pyro_vae.runs import train_run as train_run_module
from pyro_vae.runs.data_choices import choices_told, decided
from pyro_vae.runs.evaluate_ensemble import load_ensemble
from pyro_vae.runs.kinds.hierarchical import GUIDES, widths_of
from pyro_vae.runs.kinds.multimodal import GUIDES as MODALITIES
from pyro_vae.runs.kinds.semi_supervised import KIND, decide, keep_labels, train_rows
from pyro_vae.runs.kinds.sequence import sequences, steps_of
from pyro_vae.runs.kinds.sequence import train_rows as sequences_to_train_on
from pyro_vae.runs.kinds.table import MODELS
from pyro_vae.runs.load import open_data
from pyro_vae.runs.registry import build, kind_of, objective_of, resolved
from pyro_vae.runs.train_ensemble import train_ensemble
from tests.helpers.environment import HEAVY

pytestmark = pytest.mark.usefixtures("one_thread")
NAN = float("nan")


def heavy(*names):
    """These too, where there is time."""
    return names if HEAVY else ()


SMALL = {"hidden": (4,), "latent_dim": 2, "epochs": 1, "batch_size": 20}
OPTIONS = {
    "sequence": {"recurrent": "4"},
    "gmvae": {"classes": "3"},
    "semi_supervised": {"labelled": "20"},
    "multimodal": {"sizes": "1,3"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A table with labels, and ragged sequences of as many rows: with NaN after their ends, and with lengths beside them."""
    path, g = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    y = g.integers(0, 3, 60)
    np.savez(path / "table.npz", x=(g.normal(size=(60, 4)) + y[:, None]).astype("float32"), y=y)
    x, lengths = g.normal(size=(60, 4, 2)).cumsum(1).astype("float32"), g.integers(1, 5, 60)
    np.savez(path / "lengths.npz", x=x, lengths=lengths)
    np.savez(path / "ends.npz", x=np.where((np.arange(4) >= lengths[:, None])[..., None], np.nan, x).astype("float32"))
    return path


def config(files, model, **more):
    data = str(files / ("ends.npz" if model == "sequence" else "table.npz"))
    return Config(data=data, model=model, model_options=OPTIONS.get(model, {}), **{**SMALL, **more})


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A small run of each kind, without pictures."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run_module, "draw_figures", lambda *_: None)
        for model in MODELS:
            train_run(config(files, model), path / model, device="cpu", num_samples=20)
    return path


# --- all alike ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_scored_as_its_programs_are(runs, model):
    """The folder alone gives the model again; its evidence is that of the programs on the rows that its kind takes."""
    run = load_run(runs / model)
    rows = run.rows(open_data(run).test)
    plain = log_likelihood(run.vae.model, run.vae.guide, *rows, num_samples=20, verbose=False)
    assert run.evidence["log_px"] == pytest.approx(plain.log_px.mean().item(), abs=1e-6)
    again = evaluate_run(runs / model, rows=3, num_samples=20, device="cpu")
    assert again["rows"] == 3 and np.isfinite(again["log_px"]) and np.isfinite(again["floor"]["log_px"])
    assert (
        run.config.model == model and json.loads((runs / model / "config.json").read_text())["config"]["model"] == model
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_run_is_asked_by_the_command_line(runs, model, capsys):
    """Arrays of whole rows; what is not of a model is refused with a word, and writes nothing."""
    run = load_run(runs / model)
    for command, out in (("sample", "samples"), ("encode", "encoded"), ("reconstruct", "reconstructed")):
        assert main([command, str(runs / model), "--out", str(runs / model / f"{out}.npy")]) == 0
        array = np.load(runs / model / f"{out}.npy")
        assert out == "encoded" or array.shape[1] == np.prod(run.shape)
    refused = isinstance(run.kind.interpolate, str)
    capsys.readouterr()
    assert main(["interpolate", str(runs / model)]) == (2 if refused else 0)
    said = capsys.readouterr().err
    assert not refused or f"interpolate is not of model {model!r}" in said
    assert (runs / model / "interpolated.npy").exists() != refused


@pytest.mark.parametrize("model", MODELS)
def test_gaps_are_filled_in_and_the_rest_is_left(model):
    """Rows as a data set has them, of each draw; what is beyond the end of a sequence is no gap."""
    options = OPTIONS.get(model, {}) | ({"classes": "3"} if model == "semi_supervised" else {})
    c = Config(data="x.csv", model=model, model_options=options, missing=True, hidden=(4,), latent_dim=2)
    torch.manual_seed(0)
    kind, vae = kind_of(c), build(resolved(c), (4,))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    x[0, 1], x[1, 0], x[2, 3] = NAN, NAN, NAN
    filled = kind.ask("impute", model)(vae, *kind.rows(Split(x), (4,)), num_samples=20, draws=3, seed=0)
    end = x.isnan() & torch.tensor([[model == "sequence" and t == 3 for t in range(4)]])
    assert filled.shape == (3, 5, 4) and torch.equal(filled.isnan(), end.expand(3, -1, -1))
    assert (
        torch.equal(filled[:, ~x.isnan()], x[~x.isnan()].expand(3, -1)) and (filled[0, 0, 1] != filled[1:, 0, 1]).all()
    )


def test_runs_of_two_kinds_are_compared_and_another_kind_of_data_is_not(runs):
    comparison = compare_runs([runs / m for m in ("vae", "hierarchical", "gmvae", "semi_supervised")])
    assert {m.name for m in comparison.models} == {"vae", "hierarchical", "gmvae", "semi_supervised"}
    with pytest.raises(DataError, match="their data differ"):
        compare_runs([runs / "vae", runs / "sequence"])


@pytest.mark.parametrize("model", ["semi_supervised", *heavy("hierarchical", "sequence")])
def test_a_run_goes_on(runs, files, model, tmp_path, monkeypatch):
    """Two epochs in one go, and one after the other, come to the same weights."""
    monkeypatch.setattr(train_run_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(train_run_module, "evaluate_opened", lambda *_, **__: {"floor": {"log_px": 0.0}})
    one = config(files, model, schedule="constant", warmup=0.0)
    train_run(one, tmp_path / "one", device="cpu")
    resume_run(tmp_path / "one", replace(one, epochs=2), fork=tmp_path / "two", device="cpu")
    train_run(replace(one, epochs=2), tmp_path / "whole", device="cpu")
    two, whole = (load_run(tmp_path / name).vae.state_dict() for name in ("two", "whole"))
    assert all(torch.equal(two[name], whole[name]) for name in whole)


def test_a_training_that_diverges_says_so(files, tmp_path):
    """Classes of NaN cannot be drawn, an error of torch's own, while the rows that did it are looked for."""
    steep = config(files, "semi_supervised", learning_rate=1e30, batch_size=4)
    with pytest.raises(DivergedError, match=r"step \d+: the loss is nan on rows \d+"):
        train_run(steep, tmp_path / "run", device="cpu")
    assert load_run(tmp_path / "run").config == decided(steep, open_data(load_run(tmp_path / "run")))


@pytest.mark.parametrize("model", ["hierarchical", *heavy("gmvae", "semi_supervised", "sequence")])
def test_several_seeds_are_trained_and_loaded(files, model, tmp_path):
    made = train_ensemble(config(files, model), [0, 1], tmp_path / "e", device="cpu", num_samples=10)
    ensemble = load_ensemble(tmp_path / "e")
    assert len(ensemble) == 2 and np.isfinite(made["log_px"]) and type(ensemble[0]).__name__ != "VAE"


def test_no_name_of_a_model_is_asked_for_outside_its_table():
    """No string that names a kind but "vae", the default, stands in the code of runs and command line."""
    package, names = Path(train_run_module.__file__).parents[1], set(MODELS) - {"vae"}
    for path in [*(package / "runs").rglob("*.py"), *(package / "cli").rglob("*.py")]:
        if path.name in ("table.py",):
            continue
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not names & strings, path


def test_configs_from_before_are_of_a_vae():
    old = {k: v for k, v in Config().to_dict().items() if not k.startswith("model")}
    assert Config.of_run(old) == replace(Config(), standardize=None, normalize=None)
    assert Config.of_run(old).model == "vae"


# --- hierarchies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_hierarchies_are_built_and_score(guide, network):
    options = {"levels": "3", "guide": guide}
    c = resolved(Config(model="hierarchical", model_options=options, latent_dim=4, hidden=(5,), network=network))
    vae = build(c, (1, 8, 8))
    x = vae.likelihood(torch.zeros(3, 4)).sample()
    assert log_likelihood(vae.model, vae.guide, x, num_samples=5, verbose=False).log_px.isfinite().all()
    assert [p.event_shape[0] for p in (vae.priors.z3(),)] == [1] and widths_of(4, 3, ()) == (4, 2, 1)


@pytest.mark.parametrize("model", ["hierarchical", "gmvae", "semi_supervised"])
def test_units_move_no_density(model):
    """A model in standard units of x, its output bias at their marginal, is as good at 100 + 10 x as at x, less log 10."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    more = {"model_options": {"classes": 3} if model != "hierarchical" else {}, "standardize": True, "data": "x.csv"}
    c, found = resolved(Config(model=model, hidden=(4,), latent_dim=2, **more)), []
    for rows in (x, 100 + 10 * x):
        torch.manual_seed(0)
        vae = build(c, (3,), rows)
        found.append(log_likelihood(vae.model, vae.guide, rows[:20], num_samples=50, verbose=False).log_px)
    torch.testing.assert_close(found[0] - 3 * torch.tensor(10.0).log().double(), found[1], rtol=0, atol=2e-3)


# --- labels ---------------------------------------------------------------------------------------------------------------


def labels(y, n=None):
    y = torch.as_tensor(y)
    return Split(torch.zeros(len(y), 2), y)


class Labels:
    """Data of these training labels."""

    def __init__(self, y, other=(0, 1)):
        self.train, self.validation, self.test = labels(y), labels(other), labels(other)


def test_labels_are_kept_class_by_class():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 4 + [-1] * 10)
    kept = keep_labels(y, 15, seed=1)
    assert torch.equal((kept[:, None] == torch.arange(3)).sum(0).sort().values, torch.tensor([4, 5, 6]))
    assert ((kept == y) | (kept == -1)).all() and torch.equal(kept, keep_labels(y, 15, seed=1))
    assert not torch.equal(kept, keep_labels(y, 15, seed=2)) and torch.equal(keep_labels(y, 84, seed=1), y)


def test_what_labels_leave_open_is_said_by_them_and_the_term_counts_them(files):
    """α = 0.1 N / (number of labels); rows that it is trained with have as many labels as asked for."""
    data = load(files / "table.npz", verbose=False)
    c = decided(config(files, "semi_supervised"), data)
    assert c.model_options == {"classes": 3, "labelled": 20, "weight": 0.1}
    (term,) = objective_of(c, len(data.train)).elbo.terms
    assert term.weight == pytest.approx(0.1 * 48 / 20)
    x, y = train_rows(data.train, data.shape, c)
    assert x is data.train.x and int((y >= 0).sum()) == 20
    assert kind_of(c).rows(data.test, data.shape) == (data.test.x,)  # log p(x), whatever the labels


def test_accuracy_stands_beside_the_evidence(runs):
    run = load_run(runs / "semi_supervised")
    told, test = run.evidence["classification"], open_data(run).test
    right = (run.vae.classify(test.x).argmax(-1) == test.y).double()
    assert told["accuracy"] == pytest.approx(right.mean().item()) and told["rows"] == len(test)


def test_labels_and_classes_that_a_config_leaves_out_are_told():
    """As a fork on data of more labels, which has its parent's config."""
    more = Labels([0, 1, 1, 0, -1])
    parents = decide(DEFAULTS, Labels([0, 1, -1, -1, -1]))
    assert parents["labelled"] == 2 and KIND.passed_over(decide(parents, more), more) == [
        "2 of the 4 labels of training rows are known, 2 are left out (--model.labelled 4, or 0, for all)"
    ]
    assert (
        KIND.passed_over(decide(DEFAULTS, more), more)
        == []
        == KIND.passed_over(decide(parents | {"labelled": 0}, more), more)
    )
    (note,) = KIND.passed_over(decide(parents | {"labelled": 0, "classes": 3}, more), more)
    assert note.startswith("3 classes, and the labels are of 2:")
    given, digits = Config(data="digits", model="semi_supervised", model_options={"labelled": 50}), load("digits")
    told = choices_told(given, decided(given, digits), digits)
    assert any(line.startswith("50 of the 1437 labels of training rows are known") for line in told)


DEFAULTS = {"classes": 0, "labelled": 0, "weight": 0.1}
UNFIT = {
    "none": (Labels([0, 1]), {}, DataError, "has none: name their column"),
    "fractions": (Labels([0.5, 1.0]), {}, DataError, "train labels are no classes"),
    "negative": (Labels([0, -2]), {}, DataError, "train labels are no classes.*from -2 to 0"),
    "other-split": (Labels([0, 1], [1.5, 2.0]), {}, DataError, "validation labels are no classes"),
    "all-missing": (Labels([-1, -1]), {}, DataError, "all labels of the training rows are missing"),
    "too-few-classes": (Labels([0, 3]), {"classes": 2}, UsageError, "--model.classes 2, but the labels go up to 3"),
    "too-many": (Labels([0, 1, -1]), {"labelled": 3}, UsageError, "--model.labelled 3: 2 of 3 training rows"),
}
UNFIT["none"][0].train.__dict__["y"] = None


@pytest.mark.parametrize(("data", "options", "error", "words"), UNFIT.values(), ids=UNFIT)
def test_labels_that_are_none_are_refused(data, options, error, words):
    with pytest.raises(error, match=words):
        decide(DEFAULTS | options, data)


# --- sequences ------------------------------------------------------------------------------------------------------------


def test_ends_by_nan_and_by_lengths_are_the_same_rows(files):
    one, other = (load(files / name, sequences=True, verbose=False) for name in ("ends.npz", "lengths.npz"))
    assert torch.equal(one.test.x.nan_to_num(9.0), other.test.x.nan_to_num(9.0)) and one.digest == other.digest
    x, lengths = sequences(one.test, one.shape)
    assert x.shape[1:] == (4, 2) and x.isfinite().all()
    assert "shape (60, 4, 2) read as (rows, steps, elements)" in one.notes
    assert torch.equal(lengths, (~one.test.x.isnan()).sum(1) // 2)


def test_one_plane_of_steps_is_no_sequence_of_one_step(tmp_path):
    """(N, 1, a, b) was read as a steps of b."""
    x = np.random.default_rng(0).normal(size=(20, 1, 3, 2)).astype("float32")
    shapes = {"one": x.reshape(20, 1, -1), "three": x[:, 0], "flat": x.reshape(20, -1), "planes": x.repeat(2, 1)}
    read = {}
    for name, of in shapes.items():
        np.save(tmp_path / f"{name}.npy", of)
        read[name] = steps_of(load(tmp_path / f"{name}.npy", sequences=True, verbose=False).shape)
    assert read == {"one": (1, 6), "three": (3, 2), "flat": (6, 1), "planes": (2, 6)}
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(
        ShapeError, match=r"sequences of one step, or of 3 steps\?.*x.reshape\(.*, 1, -1\) has one step"
    ):
        load(tmp_path / "x.npy", sequences=True, verbose=False)
    assert load(tmp_path / "x.npy", verbose=False).shape == (1, 3, 2)  # an image


def test_lengths_are_read_for_sequences_alone(files):
    data = load(files / "lengths.npz", verbose=False)
    assert not data.train.x.isnan().any() and any("not read: lengths" in note for note in data.notes)
    with pytest.raises(DataError, match="x has NaN"):
        load(files / "ends.npz", verbose=False)


@pytest.mark.parametrize("missing", [False, True], ids=["refused", "allowed"])
def test_a_gap_within_a_sequence_is_missing_or_refused_by_row(missing):
    x = torch.tensor([[1.0, NAN, 2.0, NAN], [1.0, 2.0, NAN, NAN]])
    c = resolved(Config(data="x.csv", model="sequence", missing=missing))
    if not missing:
        with pytest.raises(DataError, match=r"NaN before the end of a sequence in 1 of 2 rows: 0 .*--missing"):
            sequences_to_train_on(Split(x), (4,), c)
        return
    rows, lengths = sequences_to_train_on(Split(x), (4,), c)
    assert lengths.tolist() == [3, 2] and rows[0, 1].isnan().all() and rows[1].isfinite().all()
    kind, model = kind_of(c), build(c, (4,))
    d = c.latent_dim  # a gap within has a code, what is beyond the end none
    assert kind.encode(model, rows, lengths).isnan().sum(1).tolist() == [d, 2 * d]
    assert kind.reconstruct(model, rows, lengths).isnan().sum((1, 2)).tolist() == [1, 2]


def test_a_row_without_a_step_is_refused():
    with pytest.raises(DataError, match=r"no step at all \(only NaN\) in 1 of 2 rows: 1"):
        sequences(Split(torch.tensor([[1.0, 2.0], [NAN, NAN]])), (2,))


def test_lengths_that_x_has_not_are_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.zeros((5, 3)), lengths=np.array([1, 2, 3, 4, 0]))
    with pytest.raises(DataError, match=r"lengths are outside 1..3 in 2 of 5 rows: \[3, 4\]"):
        load(tmp_path / "bad.npz", sequences=True)


def test_the_floor_of_sequences_is_of_independent_steps(runs):
    """One normal for every step, fitted to all steps of the training rows; what is beyond an end counts for nothing."""
    run = load_run(runs / "sequence")
    data = open_data(run)
    steps = data.train.x.reshape(-1, 2).double()
    steps = steps[~steps.isnan().any(1)]
    fitted = dist.Normal(steps.mean(0), steps.std(0, correction=0), validate_args=False)
    at = fitted.log_prob(data.test.x.reshape(-1, 4, 2).double())
    exact = at.nan_to_num(0.0).sum((1, 2)).mean().item()
    assert run.evidence["floor"]["log_px"] == pytest.approx(exact, abs=0.05)
    assert run.evidence["elements"] == pytest.approx((~data.test.x.isnan()).sum().item() / len(data.test))
    nats = run.evidence["bits_per_dim"] * run.evidence["elements"] * np.log(2)
    assert nats == pytest.approx(-run.evidence["log_px"])


def test_rows_are_steps_in_any_layout():
    assert steps_of((5,)) == (5, 1) and steps_of((1, 5, 2)) == (5, 2) and steps_of((5, 2)) == (5, 2)


# --- modalities -----------------------------------------------------------------------------------------------------------


def modalities(guide="product", x=None, **more):
    """A model of three columns, one of them a modality by itself, and the others another."""
    options = {"sizes": "1,2", "guide": guide}
    c = Config(data="x.csv", model="multimodal", model_options=options, hidden=(4,), latent_dim=2, missing=True, **more)
    torch.manual_seed(0)
    return build(resolved(c), (3,), x)


@pytest.mark.parametrize("guide", MODALITIES)
def test_blocks_of_a_row_are_modalities(guide):
    """Blocks side by side are the arrays of a MultimodalVAE with the same parts, gaps and absent blocks included."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    x[1, 2], x[2, 1:], x[3, 0], x[4] = NAN, NAN, NAN, NAN
    rows = modalities(guide)
    apart = MultimodalVAE(rows.prior, dict(rows.likelihoods.roles()), rows.posterior)
    one = log_likelihood(rows.model, rows.guide, x, num_samples=30, verbose=False).log_px
    two = log_likelihood(apart.model, apart.guide, x[:, :1], x[:, 1:], num_samples=30, verbose=False).log_px
    torch.testing.assert_close(one, two)
    assert one[4] == 0  # nothing is there, of probability 1


def test_modalities_of_one_row_come_from_one_code():
    """Draws and imputations of one block go with the other's: both follow z."""
    vae = modalities()
    for name, role in vae.likelihoods.roles():
        net = role.likelihood.net = torch.nn.Linear(2, 2 * (1 if name == "x1" else 2))
        with torch.no_grad():
            net.weight.zero_()
            net.bias.fill_(-4.0)  # of scales
            net.weight[: len(net.weight) // 2, 0], net.bias[: len(net.weight) // 2] = 3.0, 0.0
    kind = MODELS["multimodal"]
    x = kind.sample(vae, (3,), 400, 0, False)
    assert x.T.corrcoef().min() > 0.99
    gone = torch.full((1, 3), NAN)
    drawn = kind.impute(vae, gone, num_samples=400, draws=200)[:, 0]
    assert drawn.T.corrcoef().min() > 0.99
    seen = kind.impute(vae, torch.tensor([[2.0, NAN, NAN]]), num_samples=4000, draws=50)[:, 0]
    assert (seen[:, 0] == 2).all() and (seen[:, 1:].mean(0) - 2).abs().max() < 0.15


def test_blocks_keep_the_units_and_families_of_their_columns():
    """Blocks start at the marginal of their columns in their units; families of several blocks are cut where they end."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1]) + 5
    vae = modalities(x=x, standardize=True, likelihood="normal")
    units = MODELS["multimodal"].units(vae)
    torch.testing.assert_close(units.loc, x.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(units.scale, x.std(0, correction=0), atol=1e-4, rtol=0)
    mixed = {"likelihood": "columns", "likelihood_options": {"blocks": "poisson:1,normal:1,bernoulli:1"}}
    parts = [role.likelihood(torch.zeros(1, 2)) for _, role in modalities(**mixed).likelihoods.roles()]
    assert [[type(b.base_dist).__name__ for b in p.blocks] for p in parts] == [["Poisson"], ["Normal", "Bernoulli"]]
    with pytest.raises(UsageError, match=r"its blocks end at columns \[2, 3\], not at 0 and 1"):
        modalities(likelihood="columns", likelihood_options={"blocks": "normal:2,bernoulli:1"})


# --- refused by name ------------------------------------------------------------------------------------------------------

WRONG = {
    "typo": ({"model": "hierarchial"}, "no model 'hierarchial'; did you mean 'hierarchical'"),
    "elsewhere": ({"model": "bayesian"}, "model 'bayesian' is not had by a config.*Bayesian"),
    "prior": (
        {"model": "hierarchical", "prior": "vamp"},
        "--prior vamp is of model 'vae': model 'hierarchical' has a prior",
    ),
    "prior-option": ({"model": "gmvae", "prior_options": {"df": 3}}, "--prior standard_normal is of model 'vae'"),
    "posterior": ({"model": "sequence", "posterior": "flow"}, "--posterior flow is of model 'vae'"),
    "objective": (
        {"model": "semi_supervised", "objective": "iwae"},
        "objective 'iwae' is none that model 'semi_supervised'",
    ),
    "enumerated": ({"model": "gmvae", "objective": "trace_enum"}, "objective 'trace_enum' is none that model 'gmvae'"),
    "option": ({"model": "gmvae", "model_options": {"levels": "2"}}, "model 'gmvae' has no option 'levels'"),
    "option-of-vae": ({"model_options": {"levels": "2"}}, "model 'vae' has no option 'levels'"),
    "no-number": (
        {"model": "hierarchical", "model_options": {"levels": "two"}},
        "model 'hierarchical': option 'levels'",
    ),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_configs_that_are_of_no_model_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        resolved(Config(data="x.csv", **given))


BUILT = {
    "no-levels": ("hierarchical", {"levels": "0"}, {}, r"--model.levels 0"),
    "too-many-levels": ("hierarchical", {"levels": "1000000000000"}, {}, "wanted 1 to 32 levels"),
    "other-dims": ("hierarchical", {"levels": "2", "dims": "3"}, {}, r"--model.levels 2 with --model.dims 3"),
    "guide": ("hierarchical", {"guide": "ladder"}, {}, "--model.guide is one of top_down"),
    "one-class": ("semi_supervised", {"classes": "1"}, {}, "--model.classes: wanted 2 or more"),
    "no-classes": ("gmvae", {"classes": "0"}, {}, "num_classes must be 1 or more"),
    "conv": ("sequence", {}, {"network": "conv"}, "--network conv is of images"),
    "sizes": ("multimodal", {"sizes": "1,2"}, {}, "--model.sizes 1,2: .*add up to the 4 of a row"),
    "no-size": ("multimodal", {"sizes": "4,0"}, {}, "--model.sizes 4,0: "),
    "experts": ("multimodal", {"guide": "sum"}, {}, "--model.guide is one of product, mixture"),
    "conv-part": ("multimodal", {}, {"network": "conv"}, "--network conv is of whole images"),
}


@pytest.mark.parametrize(("model", "options", "more", "words"), BUILT.values(), ids=BUILT)
def test_options_that_make_no_model_are_refused(model, options, more, words):
    with pytest.raises(UsageError, match=words):
        build(resolved(Config(data="x.csv", model=model, model_options=options, **more)), (4,))


@pytest.mark.rendered
def test_the_command_line_takes_options_of_a_model(tmp_path, files, capsys):
    words = ["--model", "hierarchical", "--model.levels", "2", "--model.dims", "3,2", "--hidden", "4", "--epochs", "1"]
    data = ["--data", str(files / "table.npz"), "--num-samples", "10", "--device", "cpu"]
    assert main(["train", "--run", str(tmp_path / "r"), *words, *data]) == 0
    assert "no picture" not in capsys.readouterr().err
    run = load_run(tmp_path / "r")
    assert run.config.model_options == {"levels": 2, "guide": "top_down", "dims": (3, 2)}
    again = ["--config", str(tmp_path / "r" / "config.json"), "--data", str(files / "table.npz"), "--epochs", "0"]
    assert main(["train", "--run", str(tmp_path / "again"), *again]) == 2  # its options were read, and then the epochs
    assert "epochs must be" in capsys.readouterr().err
