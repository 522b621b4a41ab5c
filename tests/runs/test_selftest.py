"""The self-test finds what is wrong: each check passes here, and fails where the thing that it is of is broken."""

import torch

from pyro_vae.cli.main import main
from pyro_vae.errors import StorageError
from pyro_vae.runs import selftest as selftest_module
from pyro_vae.runs.checkpoint import Checkpoints


def outcome(patch, name, of_all="validation and random state"):
    """What comes of one of the checks, alone; and of the look after it."""
    patch.setattr(selftest_module, "CHECKS", {name: selftest_module.CHECKS[name]})
    found = {name: (result, said) for name, result, said, _ in selftest_module.outcomes()}
    assert found.keys() == {name, of_all}
    return found[name], found[of_all]


def test_the_whole_selftest_passes_and_prints_a_table(capsys):
    assert main(["selftest"]) == 0
    said = capsys.readouterr().out
    assert all(name.split()[0] in said for name in selftest_module.CHECKS) and "FAILED" not in said
    assert "to the" in said and "nats" in said


def test_a_wrong_estimate_is_found(monkeypatch):
    real = selftest_module.log_likelihood

    def biased(*args, **options):
        evidence = real(*args, **options)
        evidence.log_px.add_(0.001)
        return evidence

    monkeypatch.setattr(selftest_module, "log_likelihood", biased)
    assert outcome(monkeypatch, "log p(x) against closed form")[0][0] == "FAILED"


def test_a_reader_without_digests_is_found(monkeypatch):
    unchecked = lambda path, entry, limit: path.read_bytes().ljust(entry["bytes"])  # noqa: E731
    monkeypatch.setattr("pyro_vae.runs.checkpoint.read_listed", unchecked)
    monkeypatch.setattr("pyro_vae.runs.checkpoint.check_seal", lambda *_: None)
    monkeypatch.setattr("pyro_vae.common.safe_read.tensor_digest", lambda tensors: "same")
    assert outcome(monkeypatch, "damaged files")[0][0] == "FAILED"


def test_a_save_that_leaves_half_a_generation_is_found(monkeypatch):
    real = Checkpoints.save

    def save(self, head, groups, **where):
        try:
            return real(self, head, groups, **where)
        except StorageError:
            (self.folder / "000002").mkdir()
            raise

    monkeypatch.setattr(Checkpoints, "save", save)
    assert outcome(monkeypatch, "full disk")[0][0] == "FAILED"


def test_a_check_that_moves_the_random_state_is_found(monkeypatch, capsys):
    monkeypatch.setitem(selftest_module.CHECKS, "full disk", lambda here: str(torch.rand(1)))
    assert outcome(monkeypatch, "full disk")[1][0] == "FAILED"
    assert main(["selftest"]) == 1
    assert "1 of 2 checks failed" in capsys.readouterr().err


def test_without_cuda_the_comparison_is_skipped_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert outcome(monkeypatch, "GPU against CPU")[0] == ("skipped", "no CUDA here")
