"""What verbs on runs are given that is of another kind: refused by name, before a folder is looked at."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal, sample
from pyro_vae.common.device import resolve_device
from pyro_vae.errors import DeviceError, RunFolderError, UsageError
from pyro_vae.runs.bracket_run import bracket_run
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.evaluation_options import EvaluationOptions, check_used
from pyro_vae.runs.gaps_run import gaps_run
from pyro_vae.runs.list_runs import list_runs, summary_of
from pyro_vae.runs.registry import check_names


@pytest.mark.parametrize("device", [True, None, 2.5, [], float("nan"), "gpu"], ids=repr)
def test_a_device_is_a_name(device):
    with pytest.raises(DeviceError, match="is no device"):
        resolve_device(device)


@pytest.mark.parametrize("components", [None, [], "mine", 3], ids=repr)
def test_components_are_parts_by_name(components):
    with pytest.raises(UsageError, match="components are parts by name"):
        check_names(components)


@pytest.mark.parametrize("number", [True, 1.5, "3", float("nan"), float("inf"), []], ids=repr)
@pytest.mark.parametrize("name", ["rows", "steps", "num_temperatures", "num_chains", "chunk_size"])
def test_what_counts_is_a_whole_number(name, number):
    look = bracket_run if name.startswith("num") else gaps_run
    with pytest.raises(UsageError, match=f"{name} must be a whole number"):
        look("nowhere", **{name: number})
    if name == "rows":
        with pytest.raises(UsageError, match="rows must be a whole number"):
            bracket_run("nowhere", rows=number)


def test_folders_are_named_by_texts_too(tmp_path):
    assert list_runs(str(tmp_path)) == []
    with pytest.raises(RunFolderError, match="no run folder"):
        summary_of(str(tmp_path / "nowhere"))


WRONG = {
    "rows": [True, 1.5, "3", float("nan"), []],
    "num_samples": [None, True, 1.5, "3"],
    "seed": [None, True, 0.5, "0"],
    "num_chains": [None, 2.0],
    "max_samples": ["many"],
    "num_temperatures": [[3]],
    "chunk_size": [0, True, None, 2.5],
    "target_se": [True, "0.1", 0.0, -1, float("nan"), float("inf"), []],
    "method": [None, 3, ["exact"], "best"],
    "proposal": [None, {}, "prior"],
    "noise": [None, "rows"],
    "split": [None, 3],
    "resume": [None, "no"],
    "strict": ["yes", 2],
}


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, some in WRONG.items() for given in some], ids=repr)
def test_what_an_evaluation_is_given_is_refused_by_name(name, given):
    with pytest.raises(UsageError, match=name):
        evaluate_run("nowhere", **{name: given})


UNUSED = {
    "chains": ({"num_chains": 3}, "--num-chains is of --method annealing, and the method is importance"),
    "temperatures": ({"num_temperatures": 3, "method": "auto"}, "--num-temperatures is of --method annealing"),
    "chunks": ({"chunk_size": 3}, "--chunk-size is of --method annealing, and the method is importance"),
    "chunks of an oracle": ({"chunk_size": 3, "method": "exact"}, "--chunk-size is of --method annealing"),
    "most": ({"max_samples": 10}, "--max-samples is of --target-se, which is not asked for"),
    "exact target": ({"method": "exact", "target_se": 0.1}, "--target-se is of --method importance"),
    "exact proposal": ({"method": "exact", "proposal": "widened"}, "--proposal is of --method importance"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_an_option_that_nothing_would_look_at_is_refused(case):
    """Whoever says --target-se, and is given a number, takes it for one of that error."""
    given, words = UNUSED[case]
    with pytest.raises(UsageError, match=words):
        check_used(EvaluationOptions(**given))
    check_used(EvaluationOptions())
    check_used(EvaluationOptions(method="annealing", num_chains=3, num_temperatures=5))
    check_used(EvaluationOptions(target_se=0.1, max_samples=10))


def test_a_folder_of_runs_is_told_from_a_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(
        RunFolderError, match=r"a folder of runs: name one of them, such as .*a\. All of them: pyro-vae runs"
    ):
        summary_of(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(RunFolderError, match="no whole run"):
        summary_of(tmp_path / "b")


def test_a_seed_below_0_is_named_where_samples_are_drawn():
    """And not taken for a model that wants to see x."""
    vae = VAE(StandardNormal(1), Conditional(MLP(1, 2), bernoulli), Conditional(MLP(2, 2), normal))
    with pytest.raises(UsageError, match=r"^seed must be at least 0, got -1$"):
        sample(vae, 3, seed=-1)


def test_numbers_of_numpy_are_plain_ones_in_the_options_of_an_evaluation():
    options = EvaluationOptions(rows=np.int64(3), seed=np.int32(1), target_se=np.float32(0.5))
    assert json.loads(json.dumps(asdict(options))) == asdict(EvaluationOptions(rows=3, seed=1, target_se=0.5))
    assert type(options.rows) is int and type(options.target_se) is float
