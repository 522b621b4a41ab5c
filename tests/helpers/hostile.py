"""A corpus of run folders as an attacker would make them, each from a good one; and a process that opens them, watched."""

import json
import os
import pickle
import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pyro_vae.cli.main import main as command
from pyro_vae.common.safe_read import seal
from pyro_vae.errors import PyroVAEError
from pyro_vae.runs.config import Config
from pyro_vae.runs.load import load_run
from pyro_vae.runs.registry import build, resolved
from pyro_vae.runs.resume_run import resume_run

CANARY = "canary"
RUN, BAD = ("import", "exec", "os.", "subprocess", "pickle", "marshal", "socket", "ctypes", "shutil", "urllib"), []
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr", "os.stat")


class Payload:
    """Leaves a canary when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def edit(change, sealed=True):
    """A corpus entry that changes config.json, sealed as if it had been written so."""

    def make(run, canary):
        path = run / "config.json"
        record = {k: v for k, v in json.loads(path.read_bytes()).items() if k != "sha256"}
        change(record, canary)
        path.write_text(json.dumps(seal(record) if sealed else record))

    return make


def config(**values):
    return edit(lambda record, canary: record["config"].update(values))


def raw(name, content):
    return lambda run, canary: (run / name).write_bytes(content(canary) if callable(content) else content)


def weights(change):
    def make(run, canary):
        state = load_file(run / "model.safetensors")
        change(state)
        save_file(state, run / "model.safetensors")

    return make


def tensors(header, data=b""):
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


def first(state):
    return next(iter(state))


def link(name, target):
    def make(run, canary):
        (run / name).unlink()
        (run / name).symlink_to(target)

    return make


def pipe(run, canary):
    (run / "model.safetensors").unlink()
    os.mkfifo(run / "model.safetensors")


def hollow(run, canary):
    """Four terabytes of holes, with a header and a config that ask for them."""
    state = load_file(run / "model.safetensors")
    head = json.dumps({first(state): {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    with (run / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 4 * 10**12)


def checkpoint(spoil):
    """A run without model.safetensors, whose newest generations are spoiled."""

    def make(run, canary):
        (run / "model.safetensors").unlink()
        for path in (run / "checkpoints").glob("0*"):
            spoil(path, canary)

    return make


def manifest(change):
    def spoil(path, canary):
        made = {k: v for k, v in json.loads((path / "manifest.json").read_bytes()).items() if k != "sha256"}
        change(made["files"], canary)
        (path / "manifest.json").write_text(json.dumps(seal(made)))

    return spoil


def traversal(files, canary):
    files[f"../../../{canary}"] = files.pop("best.safetensors")


def pickled(canary):
    return pickle.dumps(Payload(canary))


def saved_by_torch(canary):
    import io

    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer)
    return buffer.getvalue()


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
CORPUS = {
    "pickle as weights": raw("model.safetensors", pickled),
    "torch.save as weights": raw("model.safetensors", saved_by_torch),
    "pickle as config": raw("config.json", pickled),
    "header of 100 MB": raw("model.safetensors", (10**8).to_bytes(8, "little") + b"{" + b" " * 10**8),
    "header that lies": raw("model.safetensors", (2**63).to_bytes(8, "little")),
    "10^5 names": raw("model.safetensors", tensors({str(i): F32 for i in range(10**5)})),
    "30,000 names": raw("model.safetensors", tensors({str(i): F32 | {"shape": []} for i in range(30_000)}, bytes(4))),
    "tensor of 10^12 elements": raw("model.safetensors", tensors({"w": F32 | {"shape": [10**12]}}, bytes(4))),
    "four terabytes of holes": hollow,
    "deep JSON as config": raw("config.json", b"[" * 10**6),
    "deep JSON in config": raw(
        "config.json", b'{"schema":1,"data":{},"config":' + b'{"a":' * 10**4 + b"1" + b"}" * (10**4 + 1)
    ),
    "config of 100 MB": raw("config.json", b" " * 10**8),
    "config names os.system": config(prior="os.system"),
    "config names a path": config(prior="../../../etc/passwd"),
    "config names __class__": config(posterior="__class__"),
    "config names a builtin": config(likelihood="builtins.eval"),
    "config with _target_": config(_target_="os.system"),
    "config with an instantiator": edit(
        lambda r, c: r["config"].update(prior_options={"_target_": "os.mkdir", "path": c})
    ),
    "config with an activation of its own": config(activation="os.system"),
    "config of 10^12 latents": config(latent_dim=10**12),
    "config of 10^5 x 10^5 units": config(hidden=[10**5, 10**5, 10**5]),
    "config of a million layers": config(hidden=[1] * 10**6),
    "config of 10^5 layers": config(hidden=[1] * 10**5),
    "config of 10^30 units": config(hidden=[10**30]),
    "config of 10^9 components": config(prior="vamp", prior_options={"components": 10**9}),
    "config of 10^9 transforms": config(posterior="flow", posterior_options={"transforms": 10**9}),
    "config of 10^9 classes": config(likelihood="categorical", likelihood_options={"num_classes": 10**9}),
    "config that is a list": edit(lambda r, c: r.update(config=[])),
    "data of 10^12 columns": edit(lambda r, c: r["data"].update(shape=[10**12])),
    "data of no shape": edit(lambda r, c: r["data"].update(shape="os.system")),
    "data of a negative shape": edit(lambda r, c: r["data"].update(shape=[-4])),
    "newer schema": edit(lambda r, c: r.update(schema=2)),
    "edited without its seal": edit(lambda r, c: r["config"].update(learning_rate=0.5, sha256=1), sealed=False),
    "weights missing": weights(lambda state: state.pop(first(state))),
    "weights of another shape": weights(lambda state: state.update({first(state): torch.zeros(7)})),
    "weights of another dtype": weights(lambda state: state.update({first(state): state[first(state)].double()})),
    "weights of another name": weights(lambda state: state.update(__class__=torch.zeros(1))),
    "weights of NaN": weights(lambda state: state[first(state)].fill_(torch.nan)),
    "link to /etc/passwd": link("model.safetensors", "/etc/passwd"),
    "link to itself": link("config.json", "config.json"),
    "link to /dev/zero": link("config.json", "/dev/zero"),
    "pipe": pipe,
    "manifest that climbs out": checkpoint(manifest(traversal)),
    "manifest of 10^15 bytes": checkpoint(manifest(lambda files, c: files["best.safetensors"].update(bytes=10**15))),
    "pickle in a checkpoint": checkpoint(lambda path, c: (path / "best.safetensors").write_bytes(pickled(c))),
    "checkpoint that is a link": checkpoint(lambda path, c: (shutil.rmtree(path), path.symlink_to("/etc"))),
    "state of code": checkpoint(lambda path, c: (path / "state.json").write_text('{"__reduce__": "os.system"}')),
}


def hook(event, arguments):
    if BAD is not None and event.startswith(RUN) and not event.startswith(HARMLESS):
        BAD.append(f"{event} {arguments}"[:200])


def opened(run, how):
    """What refused the run; None if nothing did."""
    try:
        load_run(run) if how == "load" else resume_run(run, device="cpu")
    except PyroVAEError as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def main(good, here):
    """Print one JSON object a hostile run: what refused it, its seconds, what was imported or run. For a process of its own."""
    canary = here / CANARY
    made = {}
    for name, spoil in CORPUS.items():
        made[name] = Path(shutil.copytree(good, here / f"run{len(made)}"))
        spoil(made[name], str(canary))
    assert opened(good, "load") is None  # whatever our own code imports late is imported now
    build(resolved(Config(data="x.csv", latent_dim=2, prior="flow", posterior="flow")), (6,))
    assert command(["evaluate", str(here / "nowhere")]) == 4
    torch.broadcast_shapes((1,), (2,))  # and what torch does: modules of its own
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(hook)
    for name, run in made.items():
        BAD.clear()
        start = time.process_time()
        said = opened(run, "load")
        seconds = time.process_time() - start
        print(json.dumps({"name": name, "said": said, "seconds": seconds, "events": list(BAD)}), flush=True)
    print(json.dumps({"name": CANARY, "said": canary.exists(), "seconds": 0, "events": []}))
