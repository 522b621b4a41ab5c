"""Runs and files of strangers: every entry of the corpus is refused, fast, in little memory, and nothing of it is executed."""

import json
import pickle
import resource
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_vae.cli.main import read_keys
from pyro_vae.common import safe_read as safe
from pyro_vae.data import mnist
from pyro_vae.data.user_files import read_file
from pyro_vae.errors import DataError, PyroVAEError, UsageError
from pyro_vae.evidence.importance.storage import load_evidence
from pyro_vae.runs import folder
from pyro_vae.runs.config import Config
from pyro_vae.runs.load import load_run
from tests.helpers import hostile
from tests.helpers.children import printed_by
from tests.helpers.environment import HEAVY
from tests.helpers.run_folders import train_small

EXAMPLES = 2000 if HEAVY else 60
fuzz = settings(  # the same examples every time; as many as take seconds
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return train_small(tmp_path_factory.mktemp("good"), "run", num_samples=20)


@pytest.fixture(scope="module")
def refused(good, tmp_path_factory):
    """What became of every entry, in a process with 1 GiB to spare and every import, call and unpickling on record."""
    here = tmp_path_factory.mktemp("corpus")
    said = printed_by(hostile.main, good, here)
    return {made["name"]: made for made in map(json.loads, said.splitlines())}


@pytest.mark.parametrize("name", hostile.CORPUS)
def test_a_hostile_run_is_refused_and_nothing_of_it_runs(refused, name):
    made = refused[name]
    assert made["said"] and made["said"].startswith(("RunFolderError", "CheckpointError", "UsageError")), made
    assert made["events"] == [] and made["seconds"] < 2


def test_no_canary_was_left(refused):
    assert refused[hostile.CANARY]["said"] is False


def unpickle(canary):
    """Run in a child."""
    sys.addaudithook(hostile.hook)
    pickle.loads(hostile.pickled(canary))
    print(hostile.BAD)


def test_the_hook_sees_what_it_watches_for(tmp_path):
    """A pickle that is loaded leaves its canary, and its events."""
    said = printed_by(unpickle, str(tmp_path / "canary"))
    assert (tmp_path / "canary").exists() and "pickle.find_class" in said and "os.mkdir" in said


# fuzzing: any bytes and any JSON, a good file with bytes changed


def changed(content, edits, cut):
    """A file with some bytes replaced, and perhaps cut."""
    spoiled = bytearray(content)
    for place, value in edits:
        spoiled[place % len(spoiled)] = value
    return bytes(spoiled[: cut % (len(spoiled) + 1)] if cut else spoiled)


EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)
CUT = st.one_of(st.just(0), st.integers(0, 2**16))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@fuzz
@given(edits=EDITS, cut=CUT)
def test_fuzzed_files_of_a_run_are_refused_or_read_as_they_were(good, name, edits, cut):
    file = good / name
    whole = file.read_bytes()
    before = load_run(good)
    file.write_bytes(changed(whole, edits, cut))
    try:
        assert load_run(good).config == before.config
    except PyroVAEError:
        pass
    finally:
        file.write_bytes(whole)


@fuzz
@given(key=st.sampled_from(list(Config().to_dict())), value=JSON)
def test_fuzzed_configs_of_a_run_are_refused_or_used(good, key, value):
    """Sealed, as an attacker would seal them."""
    whole = (good / "config.json").read_bytes()
    record = folder.read_config(good)
    record["config"][key] = value
    try:
        (good / "config.json").write_text(json.dumps(safe.seal(record)))
        load_run(good)
    except PyroVAEError:
        pass
    finally:
        (good / "config.json").write_bytes(whole)


@fuzz
@given(content=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_fuzzed_config_files_are_usage_errors_or_configs(tmp_path, content):
    file = tmp_path / "c.json"
    file.write_bytes(content)
    with suppress(UsageError):
        assert isinstance(read_keys(file), dict)


@pytest.mark.parametrize("ending", ["npy", "npz", "csv"])
@fuzz
@given(edits=EDITS, cut=CUT)
def test_fuzzed_arrays_are_read_or_data_errors(tmp_path, ending, edits, cut):
    x, file = np.arange(12.0).reshape(4, 3), tmp_path / f"x.{ending}"
    {"npy": np.save, "npz": np.savez, "csv": lambda f, a: np.savetxt(f, a, delimiter=",")}[ending](file, x)
    file.write_bytes(changed(file.read_bytes(), edits, cut))
    with suppress(DataError):
        read_file(file, 0)


@fuzz
@given(content=st.binary(max_size=64), packed=st.booleans())
def test_fuzzed_images_are_data_errors(tmp_path, content, packed):
    name = "t10k-labels-idx1-ubyte"
    for ending in ("", ".gz"):
        (tmp_path / f"{name}{ending}").unlink(missing_ok=True)
    (tmp_path / f"{name}{'.gz' if packed else ''}").write_bytes((b"\x1f\x8b\x08\x00" if packed else b"") + content)
    with pytest.raises(DataError):
        mnist.read_idx(tmp_path, name)


@fuzz
@given(content=st.binary(max_size=200), edits=EDITS, cut=CUT)
def test_fuzzed_evidence_is_a_data_error_or_evidence(tmp_path, content, edits, cut):
    import torch

    from pyro_vae.evidence.importance.accumulator import RowBlock
    from pyro_vae.evidence.importance.result import Evidence
    from pyro_vae.evidence.importance.storage import evidence_bytes

    block_sums = RowBlock(range(0, 2), 3)
    block_sums.add(0, 0, torch.randn(3, 2))
    whole = evidence_bytes(Evidence.of([block_sums], seed=0))
    for bad in (content, changed(whole, edits, cut)):
        file = tmp_path / "e.safetensors"
        file.write_bytes(bad)
        with suppress(DataError):
            load_evidence(file)


def test_a_zip_bomb_takes_no_more_memory_than_its_array_may_hold(tmp_path):
    """An .npz whose header asks for 10^12 numbers."""
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=np.zeros(10))
    import zipfile

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
        head += b" " * (128 - 10 - len(head) - 1) + b"\n"
        bomb.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError):
        read_file(file, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20 and time.process_time() - start < 2
