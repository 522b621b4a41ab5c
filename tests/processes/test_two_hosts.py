"""Two hosts: two network namespaces of this machine, joined by a virtual cable, train to the bits of one process."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

import pyro_vae as pv
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.processes import joined
from pyro_vae.data import Stored, write_shards

from .launch import environments, launch, wait

HOSTS = {"pvhost0": "10.213.77.1", "pvhost1": "10.213.77.2"}  # namespace to address
PORT = 29517
TRAIN = "import sys; from tests.processes.test_two_hosts import train; train(sys.argv[1])"


def train(folder):
    """Train on rows that are on disk, and print what came of it."""
    with joined():
        torch.manual_seed(0)
        vae = pv.VAE(
            pv.StandardNormal(2),
            pv.Conditional(pv.MLP(2, 12, hidden=(8,)), pv.normal),
            pv.Conditional(pv.MLP(6, 4, hidden=(8,)), pv.normal),
        )
        run = pv.fit(vae, Stored(folder, memory="30 kB"), epochs=2, batch_size=64, shards=4, verbose=False)
        print(tensor_digest(dict(vae.named_parameters())), run.history[-1]["elbo"])


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Two namespaces that see each other alone."""
    if shutil.which("ip") is None:
        pytest.skip("no iproute2, whose ip makes network namespaces")
    try:
        for i, name in enumerate(HOSTS):
            ip("netns", "add", name)
            if i:
                ip("link", "add", "pvcable0", "type", "veth", "peer", "name", "pvcable1")
        for i, (name, address) in enumerate(HOSTS.items()):
            ip("link", "set", f"pvcable{i}", "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"pvcable{i}")
            for device in ("lo", f"pvcable{i}"):
                ip("-n", name, "link", "set", device, "up")
        yield list(HOSTS)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here ({error.stderr.strip()}): they take root")
    finally:
        for name in HOSTS:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.mark.skipif(not os.environ.get("PYRO_VAE_HEAVY"), reason="three launches, 20 s: PYRO_VAE_HEAVY=1")
def test_two_hosts_train_to_the_bits_of_one_process(hosts, tmp_path):
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(2))
    write_shards(x, tmp_path / "rows", rows=300)
    (alone,) = launch(1, "tests.processes.test_two_hosts:train", tmp_path / "rows")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "rows")]
    started = []
    for i, (host, env) in enumerate(zip(hosts, environments(2, PORT), strict=True)):
        env |= {"MASTER_ADDR": HOSTS[hosts[0]], "GLOO_SOCKET_IFNAME": f"pvcable{i}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(["ip", "netns", "exec", host, *command], env=env, **pipes))
    ended = wait(started, 300)
    assert [e.code for e in ended] == [0, 0], ended[0].err[-2000:] + ended[1].err[-2000:]
    assert ended[0].out == ended[1].out == alone
