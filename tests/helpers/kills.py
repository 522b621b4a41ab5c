"""Runs a small training in forked children, kills them, goes on, and prints what each left. For test_survival.py.

usage: kills.py FOLDER KILLS: prints one JSON object a run: how it was killed, and digests of all it left.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import pyro_vae.runs.train_run as workflows
from pyro_vae.common import atomic_write as atomic
from pyro_vae.common.digests import sha256, tensor_digest
from pyro_vae.runs import folder
from pyro_vae.runs.checkpoint import Checkpoints
from pyro_vae.runs.config import Config
from pyro_vae.runs.resume_run import resume_run

POINTS = ("written", "renamed", "model", "best", "optimizer", "rng", "state", "manifest", "unpublished", "published")
POINTS += ("forgotten",)


def child(job, crash="", after=None):
    """Forks, does the job, is killed at a crash point or after some seconds; the exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.environ["PYRO_VAE_CRASH_AT"] = crash
            atomic.VISITS.clear()
            job()
            code = 0
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def left(path):
    """All that a run leaves, without its clocks."""
    saved = Checkpoints(path).newest()
    metrics = [{k: v for k, v in r.items() if k != "seconds"} for r in folder.read_lines(path / "metrics.jsonl")]
    evidence = folder.read_sealed(path / "evidence.json")
    return {
        **{group: tensor_digest(saved.groups[group]) for group in ("model", "best", "optimizer", "rng")},
        "step": saved.manifest["step"],
        "metrics": sha256(json.dumps(metrics).encode()),
        "weights": sha256((path / "model.safetensors").read_bytes()),
        "rows": sha256((path / "evidence.csv").read_bytes()),
        "log_px": evidence["log_px"],
        "half-written": sorted(str(p.relative_to(path)) for p in path.rglob("*.part")),
    }


def main(here, kills):
    workflows.draw_figures = lambda *_: None
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    x = here / "x.npy"
    np.save(x, np.random.default_rng(0).random((50, 6), dtype=np.float32))
    options = {"kl": "beta", "kl_options": {"schedule": "linear"}, "binarization": "dynamic", "likelihood": "bernoulli"}
    config = Config(data=str(x), hidden=(4,), latent_dim=2, epochs=3, batch_size=16, patience=2, **options)

    def start(path):
        return lambda: workflows.train_run(config, path, num_samples=20, minutes=0, device="cpu")

    def go_on(path):
        return lambda: resume_run(path, num_samples=20, minutes=0, device="cpu")

    begun = time.monotonic()
    assert child(start(here / "whole")) == 0
    took = time.monotonic() - begun
    print(json.dumps({"how": "whole", **left(here / "whole")}), flush=True)
    draw = random.Random(0)
    for number in range(kills):
        path = here / f"cut{number}"
        crash = f"{POINTS[number]}:{draw.randint(1, 5)}" if number < len(POINTS) else ""
        after = None if crash else draw.random() * took
        codes = [child(start(path), crash, after)]
        while codes[-1] and len(codes) < 4:
            codes.append(child(go_on(path) if (path / "config.json").is_file() else start(path)))
        said = {"how": crash or f"after {after:.3f} s", "codes": codes}
        print(json.dumps(said | left(path)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
