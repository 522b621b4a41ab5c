"""Faults that a trainer and an evaluator should survive, and which test has each."""

import errno
import io
import locale
import math
import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import fit, log_likelihood
from pyro_vae.cli.main import main
from pyro_vae.data import as_rows
from pyro_vae.errors import DataError, DeviceMemoryError, RunFolderError, StorageError, UsageError
from pyro_vae.runs import train_run as train_run_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.load import load_run
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from tests.helpers.environment import ENV, ROOT, SOURCE
from tests.helpers.small import small_vae

pytestmark = pytest.mark.usefixtures("one_thread")

FAULTS = {
    "killed at any moment": "killed_at_any_moment_a_run_ends_as_it_would_have",
    "killed after any step": "a_run_killed_after_any_step_goes_on_to_the_same_bits",
    "signal": "a_signal_finishes_the_step_saves_and_goes_on_exactly",
    "second signal": "a_second_signal_ends_the_process_at_once",
    "full disk while saving": "a_full_disk_loses_nothing_in_any_writing_step",
    "full disk in a run": "a_run_on_a_disk_that_fills_up_stops_and_goes_on_exactly_once_there_is_room",
    "read-only or vanished folder": "a_read_only_or_vanished_folder_is_a_storage_error",
    "folder that vanishes in a run": "a_folder_that_vanishes_is_a_storage_error",
    "checkpoint cut short": "a_file_cut_at_any_length_is_detected_and_the_generation_before_is_taken",
    "file of a run cut short": "a_file_of_a_run_cut_anywhere_is_detected",
    "bits flipped in a checkpoint": "bits_flipped_anywhere_in_a_generation_are_detected_or_change_nothing",
    "bits flipped in a run": "bits_flipped_over_every_file_of_a_run_are_detected_or_change_nothing_that_is_told",
    "bit flipped in the metrics": "a_bit_flipped_in_the_metrics_is_detected_or_costs_the_last_epoch",
    "pipe, directory or link in place of a file": "what_is_no_regular_file_is_refused_at_once",
    "pickle, code in a config, header bomb": "a_hostile_run_is_refused_and_nothing_of_it_runs",
    "tensors of a stranger": "tensors_of_a_stranger_are_refused",
    "manifest that climbs out, another schema": "a_manifest_that_names_anything_else_is_refused_though_sealed",
    "weights of another model": "another_models_state_is_refused_by_name_and_shape",
    "weights of NaN": "a_state_of_nan_is_refused",
    "weights of NaN, asked for": "nan_weights_are_handed_out_only_where_asked_for",
    "options changed on resume": "changed_options_are_refused_with_a_table_unless_forked",
    "another run on resume": "another_run_is_refused_with_a_table_and_forks",
    "data changed": "changed_data_is_refused",
    "particles of other weights or data": "particles_of_other_weights_or_data_are_not_gone_on_from",
    "another version of torch": "another_version_of_torch_goes_on",
    "other versions": "other_versions_go_on_and_say_so",
    "writers that race": "of_eight_processes_one_writes_and_seven_are_told_who",
    "second writer": "a_second_writer_exits_75_and_changes_no_byte",
    "stale lock": "the_lock_of_a_killed_process_is_free_at_once",
    "reader beside a writer": "a_reader_beside_a_writer_never_sees_a_torn_state",
    "NaN in the data": "non_finite_rows_are_named",
    "data outside of a support": "rows_outside_a_support_come_with_words_and_a_way_out",
    "no rows, no columns": "data_that_cannot_be_used_is_refused_before_training",
    "one row": "one_row_trains",
    "uneven last batch": "the_loss_is_per_datum_with_an_uneven_last_batch",
    "other dtypes": "other_dtypes_are_copied_with_a_warning",
    "no numbers": "what_is_no_data_is_refused",
    "item that raises": "an_item_that_cannot_be_read_is_named_with_its_error",
    "items of other shapes": "items_of_other_shapes_and_of_several_parts_are_named",
    "stream": "streams_and_loaders_are_refused_with_the_way_to_an_array",
    "worker process of a loader dies": None,  # there are none: a DataLoader is refused with the way to make one array of it
    "model and guide that do not match": "a_broken_pair_is_named",
    "loss of NaN": "a_step_that_diverges_is_skipped_with_the_weights_and_buffers_untouched",
    "loss of NaN in a row": "after_some_in_a_row_training_stops_with_the_first_bad_site_and_a_capsule",
    "divergence replayed": "a_run_that_diverges_is_replayed_by_one_command",
    "extreme features": "extreme_features_stay_finite_in_float32",
    "posterior collapse": "latents_that_carry_nothing_are_warned_of_once",
    "memory of the device, training": "a_device_that_does_not_hold_a_batch_is_said_with_a_batch_that_may_fit",
    "memory of the device, evaluation": "too_little_memory_takes_smaller_chunks",
    "memory of the device, nothing fits": "what_does_not_fit_at_all_is_not_hidden",
    "memory, many particles": "a_million_particles_take_no_more_memory_than_a_chunk",
    "overflow, many particles": "more_particles_than_fit_a_word_do_not_overflow",
    "no CUDA": "cuda_without_cuda_is_an_error",
    "no such device": "devices_that_are_not_there_are_refused",
    "degenerate weights": "flags_are_where_the_shape_is_above_the_threshold",
    "degenerate weights, strict": "an_unreliable_number_is_written_with_its_flag_and_exits_5_under_strict",
    "damaged download": "a_damaged_gz_is_named",
    "failed download": "a_failed_download_says_so",
    "bytes of any kind as data": "fuzzed_arrays_are_read_or_data_errors",
    "names of any kind": "any_name_that_the_system_takes_is_a_runs",
    "name that is too long": "a_name_that_is_too_long_is_a_storage_error",
    "no seed": "a_seed_that_is_none_is_refused",
    "huge seed": "a_huge_seed_is_a_seed",
    "one seed twice": "the_same_seed_gives_the_same_run_whatever_ran_before",
    "global random state": "the_global_random_state_and_modes_are_unchanged",
    "two VAEs in a process, deep copies": "two_vaes_and_a_deep_copy_train_in_one_process",
    "clock that jumps": "no_duration_is_taken_from_a_clock_that_may_jump",
    "decimal comma": "a_decimal_comma_changes_no_number",
    "output that nobody reads": "output_that_nobody_reads_ends_the_command_quietly",
    "output that is closed": "output_that_is_closed_is_no_crash",
    "terminal of ASCII": "a_terminal_that_knows_only_ascii_gets_question_marks",
    "no terminal": "no_terminal_is_needed",
    "optional import that is missing": None,  # every import is a dependency of the package: extras are for tests and benchmarks
}


@pytest.mark.parametrize("fault", [fault for fault, test in FAULTS.items() if test])
def test_every_fault_has_a_test(fault, sources):
    assert f"def test_{FAULTS[fault]}(" in sources


@pytest.fixture(scope="module")
def sources():
    return "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


# 27: data sets that are no arrays


class Items:
    """A map-style data set, one of whose items may be a fault."""

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i == 17 and isinstance(self.fault, Exception):
            raise self.fault
        if i == 17 and self.fault is not None:
            return self.fault
        return torch.full((3,), float(i))


def test_a_data_set_of_items_is_read():
    assert as_rows(Items()).tolist() == [[float(i)] * 3 for i in range(20)]
    assert len(fit(small_vae(seed=0), torch.utils.data.Subset(Bits(), range(8)), epochs=1, verbose=False).history) == 1


class Bits(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.tensor([float(i >> bit & 1) for bit in range(6)])


@pytest.mark.parametrize("fault", [KeyError("k"), OSError("no such picture"), ValueError("bad"), IndexError("i")])
def test_an_item_that_cannot_be_read_is_named_with_its_error(fault):
    with pytest.raises(DataError, match=rf"x\[17\] cannot be read: {type(fault).__name__}") as caught:
        as_rows(Items(fault))
    assert caught.value.__cause__ is fault


def test_items_of_other_shapes_and_of_several_parts_are_named():
    with pytest.raises(DataError, match=r"x\[17\] has shape \(4,\), and x\[0\] has \(3,\)"):
        as_rows(Items(torch.zeros(4)))
    with pytest.raises(DataError, match=r"x\[0\] is a tuple.*torch\.stack"):
        as_rows(torch.utils.data.TensorDataset(torch.zeros(4, 3), torch.zeros(4)))


@pytest.mark.parametrize(
    "stream", [(row for row in torch.zeros(3, 2)), iter([[1.0]]), torch.utils.data.DataLoader(Bits(), 4)]
)
def test_streams_and_loaders_are_refused_with_the_way_to_an_array(stream):
    with pytest.raises(DataError, match=r"is a stream.*torch\.stack.*torch\.cat"):
        as_rows(stream)


# 33, 34: memory


def test_an_evaluation_in_training_that_does_not_fit_says_so(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr("pyro_vae.training.metrics.true_elbo", full)
    with pytest.raises(DeviceMemoryError, match=r"the ELBO of 8 rows on cpu does not fit.*fewer rows") as caught:
        fit(small_vae(seed=0), torch.ones(8, 6), epochs=1, verbose=False)
    assert caught.value.exit_code == 7


def test_whatever_else_does_not_fit_exits_7(monkeypatch, capsys):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("pyro_vae.cli.run_commands.draw_samples", full)
    monkeypatch.setattr("pyro_vae.cli.run_commands.load_run", lambda *_: argument)
    argument = type("Run", (), {"vae": None})()
    assert main(["sample", "run"]) == 7
    assert "does not fit into memory" in capsys.readouterr().err


def in_child(work):
    """The work in a forked child; its exit code."""
    child = os.fork()
    if not child:
        code = 1
        with suppress(BaseException):
            code = work()
        os._exit(code or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_a_million_particles_take_no_more_memory_than_a_chunk():
    """All at once they would take 8 MB a row and site; 64 rows of them 1.5 GB."""
    x = torch.linspace(-1, 1, 64)

    def many():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            torch.zeros(2**27)  # 512 MiB: the limit is one
        except RuntimeError:
            evidence = log_likelihood(model, guide, x[:2], num_samples=10**6, verbose=False)
            exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x[:2])
            return 0 if ((evidence.log_px - exact).abs() < 5 * evidence.mc_se + 1e-6).all() else 3
        return 2

    assert in_child(many) == 0


@pytest.mark.parametrize("number", [2**63, 10**30])
def test_more_particles_than_fit_a_word_do_not_overflow(number):
    """Some blocks of them, and then Ctrl-C."""
    from pyro_vae.errors import Interrupted
    from pyro_vae.evidence.importance.sampler import Sampler

    weigh, left = Sampler.weigh, [3]

    def some(self, draws, problem):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return weigh(self, draws, problem)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(Sampler, "weigh", some)
        log_likelihood(model, guide, torch.zeros(64), num_samples=number, verbose=False)
    assert caught.value.result.samples.max() > 0


# 39, 42: names, surroundings, outputs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    here = tmp_path_factory.mktemp("faults")
    np.save(here / "x.npy", np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    config = Config(data=str(here / "x.npy"), hidden=(4,), latent_dim=2, epochs=1, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run_module, "draw_figures", lambda *_: None)
        train_run(config, here / "run", num_samples=5, device="cpu")
    return here / "run"


@pytest.mark.parametrize(
    "name", ["with spaces", "two\nlines", "🐑 ü", "<script>alert(1)</script>", "-x", "CON", "[bold]"]
)
def test_any_name_that_the_system_takes_is_a_runs(run, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(train_run_module, "draw_figures", lambda *_: None)
    path = tmp_path / name
    path.mkdir(parents=True)
    config = Config(**(load_run(run).config.__dict__ | {"epochs": 1}))
    train_run(config, path, num_samples=3, device="cpu")
    assert main(["evaluate", str(path), "--num-samples", "3", "--device", "cpu"]) == 0
    assert name in capsys.readouterr().out and load_run(path).evidence["num_samples"] == 3


def test_a_name_that_is_too_long_is_a_storage_error(run, tmp_path):
    with pytest.raises(StorageError, match="cannot create"):
        train_run(load_run(run).config, tmp_path / ("x" * 300), device="cpu")


def test_a_link_in_a_run_is_not_written_through(run, tmp_path):
    """A stranger's folder cannot send what is written to elsewhere."""
    import shutil

    for name in ("figures", "checkpoints", "metrics.jsonl", ".lock"):
        copy = Path(shutil.copytree(run, tmp_path / f"copy of {name}"))
        victim = tmp_path / f"victim of {name}"
        entry = copy / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        victim.mkdir() if "." not in name else victim.write_text("mine")
        entry.symlink_to(victim)
        for work in (evaluate_run, resume_run):
            with pytest.raises(RunFolderError, match=f"{re.escape(name)} is a link"):
                work(copy, device="cpu", num_samples=3)
        assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "mine"


def told(arguments, output, encoding="utf-8"):
    """The command line in a child whose standard output is a file descriptor."""

    def work():
        os.dup2(output, 1)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), encoding=encoding)
        return main(arguments)

    return in_child(work)


def test_output_that_nobody_reads_ends_the_command_quietly():
    """`pyro-vae parts | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    assert told(["parts"], writer) == 0
    os.close(writer)


def test_output_that_is_closed_is_no_crash():
    def work():
        sys.stdout = sys.stderr = None  # what Python makes of `>&- 2>&-`
        code = main(["parts"])
        return code if sys.stdout is None else 9

    assert in_child(work) == 0


def test_a_terminal_that_knows_only_ascii_gets_question_marks(run, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        arguments = ["evaluate", str(run), "--num-samples", "3", "--device", "cpu"]
        assert told(arguments, out.fileno(), "ascii") == 0
    said = (tmp_path / "out").read_bytes()
    assert b"log p(x)" in said and b" ? " in said


@pytest.mark.parametrize("surroundings", [{"TERM": "dumb"}, {"TERM": ""}, {"COLUMNS": "1"}, {"NO_COLOR": "1"}])
def test_no_terminal_is_needed(surroundings, monkeypatch, capsys):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert main(["parts"]) == 0 and "standard_normal" in capsys.readouterr().out.replace("\n", "")


def test_a_decimal_comma_changes_no_number(run):
    """Numbers that are written and read are Python's, whatever the locale is."""
    wanted = (run / "evidence.csv").read_text()
    before = locale.setlocale(locale.LC_ALL)
    found = None
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "nl_NL.UTF-8"):
        with suppress(locale.Error):
            found = locale.setlocale(locale.LC_ALL, name)
            break
    if found is None:
        pytest.skip("no locale with a decimal comma is installed here")
    try:
        assert locale.localeconv()["decimal_point"] == ","
        evaluate_run(run, num_samples=5, device="cpu")
        assert (run / "evidence.csv").read_text() == wanted
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_no_duration_is_taken_from_a_clock_that_may_jump():
    """Only monotonic clocks are asked; the wall clock says when, and nothing is computed from it."""
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"\btime\.time\(", text), file
        assert text.count("datetime.now(") == (file.name == "lock.py"), file


# 40: seeds


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(UsageError, match="a seed is a whole number from 0"):
        fit(small_vae(seed=0), torch.ones(8, 6), epochs=1, seed=seed, verbose=False)
    with pytest.raises(UsageError, match="a seed is a whole number from 0"):
        log_likelihood(model, guide, torch.zeros(3), num_samples=5, seed=seed)


def test_a_huge_seed_is_a_seed():
    made = [
        log_likelihood(model, guide, torch.zeros(3), num_samples=5, seed=s).log_px.tolist() for s in (2**80, 2**80, 1)
    ]
    assert made[0] == made[1] != made[2]


# 36: numbers that are not to be believed


def test_an_unreliable_number_is_written_with_its_flag_and_exits_5_under_strict(run, capsys):
    """Five particles say nothing of their own tail: every row is flagged."""
    arguments = ["evaluate", str(run), "--num-samples", "5", "--seed", "3", "--device", "cpu"]
    assert main(arguments) == 0 and "flagged, not to be believed" in capsys.readouterr().out
    (run / "evidence.csv").unlink()
    assert main([*arguments, "--strict"]) == 5
    assert "rows" in capsys.readouterr().err and load_run(run).evidence["rows_flagged"] == 5
    assert (run / "evidence.csv").exists()


# the system refuses


def test_whatever_the_system_refuses_to_write_exits_6(run, monkeypatch, capsys):
    """A picture, say, for which no other file has a word."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "figures/samples.png")

    monkeypatch.setattr("pyro_vae.plots.figures.save", full)
    assert main(["sample", str(run)]) == 6
    said = capsys.readouterr().err
    assert "figures/samples.png" in said and "Free some space" in said


def test_without_a_network_everything_runs(run):
    """Opening and scoring a run in a network namespace of its own, which has none."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces here (unshare -rn)")
    code = "import sys; from pyro_vae.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [
        "unshare",
        "-rn",
        sys.executable,
        "-c",
        code,
        "evaluate",
        str(run),
        "--num-samples",
        "3",
        "--device",
        "cpu",
    ]
    subprocess.run(command, env=ENV, check=True, capture_output=True)
