"""`pyro-vae selftest`: checks on this very machine, within a minute, that numbers are right and runs survive."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from rich.console import Console
from rich.table import Table

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.environment import machine
from pyro_vae.common.random import seeded
from pyro_vae.common.safe_read import dump, parse
from pyro_vae.data.binarize import binarize
from pyro_vae.errors import PyroVAEError, RunFolderError, StorageError
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.training.fit import fit

from .checkpoint import GROUPS, Checkpoints
from .checkpointer import Checkpointer
from .config import Config
from .registry import build, resolved

CRASH = "unpublished:3"  # the third save, when all is written and nothing published


class Skipped(Exception):
    """A check that this machine does not let one make."""


class Wrong(Exception):
    """A check that came out wrong."""


def expect(right: bool, otherwise: str) -> None:
    """Raise where a check came out wrong."""
    if not right:
        raise Wrong(otherwise)


class Linear:
    """x = W z + noise, with its exact posterior as guide: every importance weight is p(x)."""

    def __init__(self, device: str) -> None:
        draw = torch.Generator().manual_seed(0)
        self.w, self.x = (torch.randn(*shape, generator=draw).to(device) for shape in ((4, 2), (100, 4)))
        self.cov = torch.linalg.inv(torch.eye(2, device=device) + self.w.T @ self.w)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.w.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, 1.0).to_event(1), obs=x)

    def exact_guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ self.w @ self.cov, self.cov))

    def prior_guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.w.new_zeros(2), 1.0).to_event(1))


def oracle(here: Path, device: str = "cpu") -> str:
    """Compare log p(x) of a linear-Gaussian model by importance sampling with the closed form."""
    linear = Linear(device)
    cov = linear.w @ linear.w.T + torch.eye(4, device=device)
    log_px = dist.MultivariateNormal(linear.x.new_zeros(4), cov).log_prob(linear.x).double().cpu()  # N(0, W Wᵀ + I)
    exact = log_likelihood(linear.model, linear.exact_guide, linear.x, num_samples=50, verbose=False)
    worst = (exact.log_px - log_px).abs().max().item()
    expect(worst < 1e-4, f"an exact posterior misses log p(x) by {worst:.2g} nats")
    sampled = log_likelihood(linear.model, linear.prior_guide, linear.x, num_samples=20_000, verbose=False)
    off = ((sampled.log_px - log_px).mean() / sampled.mc_se.square().sum().sqrt() * len(linear.x)).item()
    expect(abs(off) < 5, f"the mean log p(x) under the prior is {off:.1f} standard errors off")
    return f"exact posterior: within {worst:.0e} nats; prior as proposal: {abs(off):.1f} standard errors off"


def small_fit(path: str) -> Any:
    """Train a small model with binarization, saved after every epoch; go on where a killed one was."""
    config = resolved(Config(data="x.csv", likelihood="bernoulli", hidden=(8,), latent_dim=2))
    grey = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        vae = build(config, (6,))
    checkpointer = Checkpointer(path, epochs=1)
    state: dict[str, Any] = {"callbacks": [checkpointer], "resume": checkpointer.newest()}
    run = fit(vae, grey, transform=binarize, epochs=4, batch_size=16, verbose=False, **state)
    return run, checkpointer.newest()


def kill_and_resume(here: Path) -> str:
    """Kill a process inside a save, and go on to the same bits."""
    source = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYRO_VAE_CRASH_AT": CRASH, "PYTHONPATH": paths}
    code = "import sys; from pyro_vae.runs.selftest import small_fit; small_fit(sys.argv[1])"
    child = subprocess.run([sys.executable, "-c", code, str(here / "cut")], env=env, capture_output=True)
    ended = f"the child was to be killed, and ended with {child.returncode}: {child.stderr[-300:]!r}"
    expect(child.returncode == -9, ended)
    step = Checkpointer(here / "cut").newest().manifest["step"]  # type: ignore[union-attr]
    (again, resumed), (whole, untouched) = small_fit(str(here / "cut")), small_fit(str(here / "whole"))
    for group in ("model", "best", "optimizer"):
        expect(tensor_digest(resumed.groups[group]) == tensor_digest(untouched.groups[group]), f"other bits: {group}")
    without_clock = [[{k: v for k, v in r.items() if k != "seconds"} for r in run.history] for run in (again, whole)]
    expect(without_clock[0] == without_clock[1], "other metrics")
    return f"killed inside a save, went on at step {step}: same weights, optimizer and metrics to the bit"


def full_disk(here: Path) -> str:
    """Have the system refuse a save half-way."""
    try:
        import resource
    except ImportError:
        raise Skipped("no limits on file sizes on this system") from None
    saved = Checkpoints(here)
    saved.save({"step": 1}, groups(8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))  # Python ignores the signal; writes fail
    try:
        saved.save({"step": 2}, groups(2**16))
    except StorageError:
        newest = saved.newest()
        left = [p.name for p in saved.folder.iterdir()]
        expect(newest is not None and newest.head["step"] == 1 and left == ["000001"], f"left {left}")
        return "refused as a StorageError; the generation before is whole, nothing half-written is left"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    raise Wrong("a file beyond the limit was written")


def groups(size: int) -> dict[str, dict[str, torch.Tensor]]:
    """Make tensors of a checkpoint, so many to a group."""
    return {group: {"w": torch.arange(float(size))} for group in GROUPS}


def damaged_files(here: Path) -> str:
    """Flip bits and cut files, of a checkpoint and of weights."""
    saved, draw = Checkpoints(here), random.Random(0)
    for step in (1, 2):
        saved.save({"step": step}, groups(8))
    files, truth = sorted((saved.folder / "000002").iterdir()), saved.read(2, GROUPS, 2**20).manifest
    for file in files * 5:
        intact = file.read_bytes()
        spoiled = bytearray(intact)
        spoiled[draw.randrange(len(intact))] ^= 1 << draw.randrange(8)
        file.write_bytes(spoiled if draw.random() < 0.5 else intact[: draw.randrange(len(intact) - 1)])
        newest = saved.newest()
        right = newest is not None and (newest.head["step"] == 1 or newest.manifest == truth)
        expect(right, f"a damaged {file.name} was taken for whole")
        file.write_bytes(intact)
    content = dump(groups(8)["model"])
    for byte in range(len(content) - 32, len(content)):
        with contextlib.suppress(RunFolderError):
            parse(content[:byte] + bytes([content[byte] ^ 4]) + content[byte + 1 :], here)
            raise Wrong(f"byte {byte} of the weights was flipped, and they were read")
    return f"{len(files) * 5} of a checkpoint, 32 of weights: all found"


def gpu_against_cpu(here: Path) -> str:
    """Compare with the same closed form on CUDA."""
    if not torch.cuda.is_available():
        raise Skipped("no CUDA here")
    return f"{torch.cuda.get_device_name()}: {oracle(here, 'cuda')}"


def surroundings() -> list[Any]:
    """Return what no work here may change: validation and other switches, and the random states of torch, numpy and Python."""
    numpy_state: Any = np.random.get_state()
    return [pyro.settings.get(), torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()]


CHECKS: dict[str, Callable[[Path], str]] = {
    "log p(x) against closed form": oracle,
    "kill and resume": kill_and_resume,
    "full disk": full_disk,
    "damaged files": damaged_files,
    "GPU against CPU": gpu_against_cpu,
}


def outcomes() -> Iterator[tuple[str, str, str, float]]:
    """Yield (check, result, finding, seconds) of each check, each in a folder of its own; the last is of all of them."""
    before = surroundings()
    for name, check in CHECKS.items():
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as here:
            try:
                result, finding = "passed", check(Path(here))
            except Skipped as reason:
                result, finding = "skipped", str(reason)
            except Exception as error:  # whatever it is, it is the finding
                result, finding = "FAILED", f"{type(error).__name__}: {error}"
        yield name, result, finding, time.perf_counter() - start
    same = before == surroundings()
    yield "validation and random state", "passed" if same else "FAILED", "left as they were" if same else "changed", 0.0


def selftest() -> None:
    """Make all checks and print a table.

    Raises:
        PyroVAEError: a check failed.
    """
    table = Table(title=f"selftest on {machine(torch.device('cpu'))}, torch {torch.__version__}", title_justify="left")
    for column in ("check", "result", "found", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    failed = 0
    for name, result, finding, seconds in outcomes():
        table.add_row(name, result, finding, f"{seconds:.1f}")
        failed += result == "FAILED"
    Console(width=None if sys.stdout.isatty() else 140).print(table, markup=False)
    if failed:
        raise PyroVAEError(f"{failed} of {table.row_count} checks failed on this machine")
