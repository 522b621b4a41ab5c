"""Many particles in bounded memory, and what does not fit."""

import math
import resource
import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import fit, log_likelihood
from pyro_vae.cli.main import main
from pyro_vae.errors import DeviceLostError, DeviceMemoryError, Interrupted
from pyro_vae.evidence.importance.sampler import Sampler
from tests.helpers.faults import guide, in_child
from tests.helpers.gaussian import gaussian
from tests.helpers.small import small_vae

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_evaluation_in_training_that_does_not_fit_says_so(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr("pyro_vae.training.metrics.pass_over", full)
    with pytest.raises(DeviceMemoryError, match=r"the ELBO of 8 rows on cpu does not fit.*fewer rows") as caught:
        fit(small_vae(seed=0), torch.ones(8, 6), epochs=1, verbose=False)
    assert caught.value.exit_code == 7


def test_whatever_else_does_not_fit_exits_7(monkeypatch, capsys):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("pyro_vae.cli.array_commands.samples", full)
    monkeypatch.setattr("pyro_vae.cli.array_commands.load_run", lambda *_: argument)
    argument = type("Run", (), {"vae": None})()
    assert main(["sample", "run"]) == 7
    assert "does not fit into memory" in capsys.readouterr().err


def test_a_device_that_fails_leaves_the_evidence_so_far(monkeypatch):
    weigh, left = Sampler.weigh, [4]

    def some(self, draws, problem):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
        return weigh(self, draws, problem)

    x = torch.linspace(-1, 1, 256)
    with (
        monkeypatch.context() as patch,
        pytest.raises(DeviceLostError, match="CUDA error: an illegal memory") as caught,
    ):
        patch.setattr(Sampler, "weigh", some)
        log_likelihood(gaussian, guide, x, num_samples=64, engine="eager", verbose=False)
    begun = caught.value.result
    assert 0 < len(begun) < len(x) and caught.value.exit_code == 9
    whole = log_likelihood(gaussian, guide, x, num_samples=64, engine="eager", verbose=False)
    rest = log_likelihood(gaussian, guide, x, num_samples=64, engine="eager", resume=begun, verbose=False)
    assert torch.equal(rest.log_px, whole.log_px)


@pytest.mark.parametrize(
    "kind", [RuntimeError, *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else [])]
)
def test_a_device_that_fails_elsewhere_exits_9_and_other_errors_stay_what_they_are(kind, monkeypatch, capsys):
    def failing(*_, **__):
        raise kind(*said)

    monkeypatch.setattr("pyro_vae.cli.array_commands.samples", failing)
    monkeypatch.setattr("pyro_vae.cli.array_commands.load_run", lambda *_: type("Run", (), {"vae": None})())
    said = ["CUDA error: device-side assert triggered"]
    assert main(["sample", "run"]) == 9
    assert "error: what was asked for: the device failed" in capsys.readouterr().err
    for other in ("out of memory", "invalid device ordinal", "CUBLAS_STATUS_NOT_SUPPORTED when calling cublasGemmEx"):
        said = [f"CUDA error: {other}"]  # after which the device answers
        with pytest.raises(kind, match=other):
            main(["sample", "run"])


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
            evidence = log_likelihood(gaussian, guide, x[:2], num_samples=10**6, verbose=False)
            exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x[:2])
            return 0 if ((evidence.log_px - exact).abs() < 5 * evidence.mc_se + 1e-6).all() else 3
        return 2

    assert in_child(many) == 0


@pytest.mark.parametrize("number", [2**63, 10**30])
def test_more_particles_than_fit_a_word_do_not_overflow(number):
    """Some blocks of them, and then Ctrl-C."""
    weigh, left = Sampler.weigh, [3]

    def some(self, draws, problem):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return weigh(self, draws, problem)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(Sampler, "weigh", some)
        log_likelihood(gaussian, guide, torch.zeros(64), num_samples=number, engine="eager", verbose=False)
    assert caught.value.result.samples.max() > 0
