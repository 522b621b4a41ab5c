"""What engines are compared on, and the comparison: the same run as eager."""

import random
from functools import partial

import pyro
import torch
from torch import nn

from pyro_vae import Conditional, fit, normal
from tests.helpers.small import binary, small_vae

fit = partial(fit, verbose=False, epochs=2, batch_size=8, seed=5)


def weights(*modules):
    return [t.detach().clone() for m in modules for t in (*m.parameters(), *m.buffers())]


def runs(make, engine, **options):
    """A run of a fresh pair on this engine: its history without the clock, the weights, what it says of the engine."""
    torch.manual_seed(1)
    random.seed(2)
    pyro.clear_param_store()
    pair, *modules = make()
    run = fit(pair, binary(20), engine=engine, **{k: v() if k == "objective" else v for k, v in options.items()})
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in run.history]
    store = [p.detach().clone() for _, p in sorted(pyro.get_param_store().items()) if not p._is_view()]
    return history, weights(*modules) or store, run.engine


def check_same(make, **options):
    """Traced and eager, bit by bit; the trace was in use to the end. Returns what it says of the engine."""
    a, held, _ = runs(make, "eager", **options)
    b, other, said = runs(make, "trace", **options)
    assert "traced" in said and "eager from here on" not in said, said
    assert a == b and all(map(torch.equal, held, other))
    return said


def check_refused(make, reason, **options):
    """Eager from some step on, by this reason; nothing of the run is another."""
    a, held, _ = runs(make, "eager", **options)
    b, other, said = runs(make, "trace", **options)
    assert f"eager from here on: {reason}" in said, said
    assert a == b and all(map(torch.equal, held, other))


def plain():
    vae = small_vae()
    return vae, vae


def noisy():
    """Batch norm changes buffers, dropout draws; no bias before it, whose gradient is rounding alone."""
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 4))
    vae = small_vae(posterior=Conditional(net, normal))
    return vae, vae
