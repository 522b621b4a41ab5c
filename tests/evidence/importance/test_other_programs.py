"""Evidence knows its programs and its data: more of another model, or of other rows, is not put together with it."""

import copy
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Conditional,
    Evidence,
    StandardNormal,
    defensive,
    gaps,
    load_evidence,
    normal,
    overfitting,
    save_evidence,
)
from pyro_vae.errors import DataError, UnknownProgramsWarning, UsageError
from pyro_vae.evidence.importance import result, storage
from pyro_vae.programs.program_ids import ProgramIds
from tests.helpers.bits import same
from tests.helpers.importance import log_likelihood

x = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
OTHER = "two pairs of programs cannot be put together"


@pytest.fixture
def vae():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    return VAE(StandardNormal(2), Conditional(MLP(2, 6, (4,)), normal), Conditional(encoder, normal)).eval()


def score(pair, given=x, **options):
    return log_likelihood(pair.model, pair.guide, given, **{"num_samples": 20} | options)


class Functions:
    """Programs without a module: a constant of the code, a tensor they close over, a parameter in Pyro's store."""

    def __init__(self, scale=1.0, shift=0.0, family=dist.Normal, site="z"):
        shift = torch.tensor(shift)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(site, dist.Normal(0.0, scale))
                pyro.sample("x", family(z + shift, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample(site, dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 0.8))

        self.model, self.guide = model, guide


def nudged(vae):
    """By the last bit of one weight."""
    weight = next(vae.parameters())
    weight.data.view(-1)[0] = torch.nextafter(weight.data.view(-1)[0], torch.tensor(torch.inf))


def running(vae):
    next(b for name, b in vae.named_buffers() if name.endswith("running_mean")).add_(1.0)


def swapped(vae):
    """Two rows of a layer: the same values at other places."""
    weight = next(vae.parameters()).data
    weight[[0, 1]] = weight[[1, 0]].clone()


@pytest.mark.parametrize("change", [nudged, running, swapped], ids=lambda change: change.__name__)
@pytest.mark.parametrize("how", ["resume", "merge"])
def test_another_state_of_the_model_is_refused(vae, change, how):
    first, other = score(vae, particles=range(10)), copy.deepcopy(vae)
    change(other)
    with pytest.raises(UsageError, match=f"{OTHER}: their parameters and buffers have digest"):
        if how == "resume":
            score(other, resume=first)
        else:
            Evidence.merge([first, score(other, particles=range(10, 20))])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": 1.01}, r"log p\(z\) is"),
        ({"shift": 0.3}, r"log p\(x\) is"),
        ({"family": dist.Laplace}, r"log p\(x\) is"),
        ({"site": "w"}, r"one of them has no log"),
    ],
    ids=["constant", "closure", "family", "site"],
)
def test_programs_that_differ_in_their_code_are_refused_by_site(changes, said):
    rows = x[:, 0]
    first = score(Functions(), rows)
    assert len(score(Functions(), rows, num_samples=40, resume=first)) == 70  # the same, written again
    with pytest.raises(UsageError, match=f"{OTHER}: .*{said}"):
        score(Functions(**changes), rows, num_samples=40, resume=first)


def with_table(table):
    """Programs of a label, and a number for each in a tensor that they close over."""
    means = torch.tensor(table)

    def model(x, label):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + means[label], 1.0), obs=x)

    def guide(x, label):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * (x - means[label]), 0.8))

    return model, guide


def test_a_constant_that_the_first_row_does_not_read_counts():
    rows, label = x[:, 0], torch.arange(70) % 4
    first = log_likelihood(*with_table([0.0, 1.0, 2.0, 3.0]), rows, label, num_samples=20)
    with pytest.raises(UsageError, match=f"{OTHER}: at one draw for row 3 log p"):
        log_likelihood(*with_table([0.0, 1.0, 2.0, 8.0]), rows, label, num_samples=40, resume=first)


def test_a_parameter_of_the_store_counts_and_one_that_is_not_read_does_not():
    rows = x[:, 0]
    pyro.clear_param_store()
    first = score(Functions(), rows)
    pyro.param("of somebody else", torch.ones(2))
    score(Functions(), rows, num_samples=40, resume=first)
    pyro.get_param_store()["slope"] = torch.tensor(0.4)
    with pytest.raises(UsageError, match=f"{OTHER}: their parameters"):
        score(Functions(), rows, num_samples=40, resume=first)
    pyro.clear_param_store()


def test_a_handler_that_scales_a_site_is_the_same_program(vae):
    """Beta scales a site in training, and no weight."""
    first, beta = score(vae), Beta(2.0)
    model, guide = beta.pair((vae.model, vae.guide))
    assert same(log_likelihood(model, guide, x, num_samples=40, resume=first), score(vae, num_samples=40))


@pytest.mark.parametrize("proposal", [None, defensive()], ids=["guide", "defensive"])
def test_a_copy_and_saved_evidence_are_gone_on_from(vae, proposal, tmp_path):
    options = {} if proposal is None else {"proposal": proposal}
    save_evidence(score(vae, **options), tmp_path / "e.safetensors")
    saved = load_evidence(tmp_path / "e.safetensors")
    assert saved.program_ids == score(vae, **options).program_ids and saved.data_digest == saved.row_ids.digest
    more = score(copy.deepcopy(vae), num_samples=40, resume=saved, **options)
    assert same(more, score(vae, num_samples=40, **options)) and more.program_ids == saved.program_ids


def test_parts_of_two_data_sets_are_refused_though_they_share_no_row(vae):
    longer = torch.cat([x, x[:1] + 1])
    parts = [score(vae, rows=range(64)), score(vae, longer, rows=range(64, 71))]
    with pytest.raises(UsageError, match="parts of two data sets"):
        Evidence.merge(parts)


def test_files_of_older_versions_are_gone_on_from_with_a_warning_and_stay_unknown(vae, tmp_path, monkeypatch):
    with monkeypatch.context() as former:
        former.setattr(ProgramIds, "to_dict", lambda self: None)
        former.setattr(storage, "LATER", {"vectorizing": "plate", "engine": "eager"})
        save_evidence(score(vae, particles=range(10)), tmp_path / "old.safetensors")
    old = load_evidence(tmp_path / "old.safetensors")
    assert old.program_ids is None and old.data_digest is None
    with pytest.warns(UnknownProgramsWarning, match="does not say of which model and guide"):
        more = score(vae, resume=old)
    assert more.program_ids is None and same(more, score(vae))
    with pytest.warns(UnknownProgramsWarning):
        assert Evidence.merge([old, score(vae, particles=range(10, 20))]).program_ids is None
    other = copy.deepcopy(vae)
    nudged(other)
    known = [score(vae, particles=range(10, 15)), score(other, particles=range(15, 20))]
    with pytest.raises(UsageError, match=OTHER):  # those that know are compared all the same
        Evidence.merge([old, *known])


def test_a_file_whose_programs_are_none_is_refused(vae, tmp_path):
    evidence = score(vae)
    for bad in ({"tensors": 1}, [1], {"tensors": "a", "device": "cpu", "terms": {"z": "no number"}}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProgramIds, "to_dict", lambda self, bad=bad: bad)
            save_evidence(evidence, tmp_path / "e.safetensors")
        with pytest.raises(DataError, match="holds no evidence that can be gone on from"):
            load_evidence(tmp_path / "e.safetensors")


def test_without_the_digest_another_model_would_be_merged(vae, monkeypatch):
    """The broken variant: a number of no model."""
    other = copy.deepcopy(vae)
    next(other.parameters()).data.add_(1.0)
    parts = [score(vae, particles=range(10)), score(other, particles=range(10, 20))]
    monkeypatch.setattr(result, "programs_of", lambda *_: None)
    assert not torch.equal(Evidence.merge(parts).log_px, score(vae).log_px)


# gaps


SPLITS = {
    "gaps": lambda pair, rows, evidence: gaps(
        pair.model, pair.guide, rows, log_px=evidence, steps=1, num_samples=5, verbose=False
    ),
    "overfitting": lambda pair, rows, evidence: overfitting(
        pair.model, pair.guide, rows, rows, log_px=(evidence, evidence), steps=1, num_samples=5, verbose=False
    ),
}


CHANGES = {"scale": {"scale": 1.01}, "shift": {"shift": 0.3}, "family": {"family": dist.Laplace}}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_gaps_refuse_evidence_of_another_model(split, changes):
    rows = x[:, 0]
    SPLITS[split](Functions(), rows, score(Functions(), rows))
    with pytest.raises(UsageError, match=r"log_px is evidence of another model: at one draw for row \d+ log p"):
        SPLITS[split](Functions(), rows, score(Functions(**changes), rows))


def test_gaps_take_evidence_by_another_guide_and_refuse_that_of_other_weights(vae, tmp_path):
    evidence, better, other = score(vae), copy.deepcopy(vae), copy.deepcopy(vae)
    with torch.no_grad():
        for p in better.posterior.parameters():
            p.mul_(0.9)
        for p in other.likelihood.parameters():
            p.mul_(1.1)
    for given in (evidence, score(better)):
        save_evidence(given, tmp_path / "e.safetensors")
        for again in (given, load_evidence(tmp_path / "e.safetensors")):
            assert torch.equal(SPLITS["gaps"](vae, x, again).log_px, given.log_px)
    with pytest.raises(UsageError, match="evidence of another model"):
        SPLITS["gaps"](vae, x, score(other))
    older = replace(evidence, program_ids=replace(evidence.program_ids, model_terms={}))
    SPLITS["gaps"](vae, x, older)  # it says of the pair alone which it is
    with pytest.raises(UsageError, match=r"pass the numbers: log_px=evidence\.log_px"):
        SPLITS["gaps"](better, x, older)
    with pytest.warns(UnknownProgramsWarning):
        SPLITS["gaps"](vae, x, replace(evidence, program_ids=None))
