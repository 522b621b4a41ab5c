"""Runs a small training in forked children, kills them, goes on, and prints what each left. For test_survival.py."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import pyro_vae.runs.train_run as workflows
from pyro_vae.cli.main import main as command
from pyro_vae.common import atomic_write as atomic
from pyro_vae.common.digests import sha256, tensor_digest
from pyro_vae.errors import RunFolderError
from pyro_vae.runs import folder
from pyro_vae.runs.checkpoint import Checkpoints
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.evaluations import evaluations
from pyro_vae.runs.load import load_run
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


def seen(path):
    """What a reader sees of a folder: weights and evidence of one model, or that there is no whole run."""
    try:
        run = load_run(path)
        evidence = run.evidence
    except RunFolderError:
        return "no whole run"
    weights = tensor_digest(run.vae.state_dict())
    metrics = folder.read_lines(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
    told = [e.summary["weights"] for e in evaluations(path)]
    in_order = [r["epoch"] for r in metrics] == [*range(1, len(metrics) + 1)]
    if {*told, evidence.get("weights", weights)} <= {weights} and in_order:
        return "one generation"
    return f"weights {weights[:8]}, evidence of {evidence.get('weights', '')[:8]}, {told}, epochs {len(metrics)}"


def to_hub(path):
    """Export a run for the hub, in the place of an export from before."""
    target = path.with_name(f"{path.name} hub")
    shutil.rmtree(target, ignore_errors=True)
    if code := command(["export", str(path), str(target), "--hub"]):
        os._exit(code)


def exported(path):
    """What a reader sees of an export: nothing, a whole one of the run's weights, or what is wrong with it."""
    target = path.with_name(f"{path.name} hub")
    if not target.exists():
        return "nothing"
    digest = tensor_digest(load_run(target).vae.state_dict())
    of_one = load_run(target).evidence.get("weights", digest) == digest
    whole = {p.name for p in target.iterdir()} >= {"README.md", "config.json", "model.safetensors"}
    return "whole" if of_one and whole else f"{sorted(p.name for p in target.iterdir())} of {digest[:8]}"


def whole_lives(here, config, kills, engine):
    """Kill training, resumption, evaluation, a sample and an export, one after another, at random moments; what is seen."""
    workflows.draw_figures = real_draw
    config = replace(config, engine=engine)
    jobs = {
        "train": lambda path: workflows.train_run(config, path, num_samples=20, minutes=0, device="cpu"),
        "resume": lambda path: resume_run(path, num_samples=20, minutes=0, device="cpu"),
        "evaluate": lambda path: evaluate_run(path, num_samples=30, device="cpu", resume=True),
        "sample": lambda path: command(["sample", str(path), "--num-samples", "4"]),
        "export": to_hub,
    }
    took = {}
    for name, job in jobs.items():
        begun = time.monotonic()
        assert child(partial(job, here / f"{engine} whole")) == 0
        took[name] = time.monotonic() - begun
    whole, draw = left(here / f"{engine} whole"), random.Random(1)
    for number in range(kills):
        path = here / f"{engine} {number}"
        said = {"how": f"{engine} {number}", "codes": [], "seen": [], "exported": []}
        for name in ("train", "resume", "resume", "evaluate", "sample", "export", "evaluate"):
            name = name if (path / "config.json").is_file() else "train"
            if name in ("sample", "export") and seen(path) == "no whole run":
                continue
            said["codes"].append(child(partial(jobs[name], path), after=draw.random() * took[name]))
            said["seen"].append(seen(path))
            said["exported"].append(exported(path))
        for name in ("resume", "evaluate", "sample", "export"):
            name = name if (path / "config.json").is_file() else "train"
            said["codes"].append(child(partial(jobs[name], path)))
        said["exported"].append(exported(path))
        print(json.dumps(said | {"same": left(path) == whole}), flush=True)


real_draw = workflows.draw_figures


def main(here, kills, engines):
    """Print one JSON object a run: how it was killed, what a reader saw after each kill, and digests of all it left.

    With engines named, trainings, resumptions, evaluations and exports are killed under each. For a process of its own.
    """
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
        looks = [seen(path)]
        while codes[-1] and len(codes) < 4:
            codes.append(child(go_on(path) if (path / "config.json").is_file() else start(path)))
            looks.append(seen(path))
        said = {"how": crash or f"after {after:.3f} s", "codes": codes, "seen": looks}
        print(json.dumps(said | left(path)), flush=True)
    for engine in engines:
        whole_lives(here, config, kills, engine)
