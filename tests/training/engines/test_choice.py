"""Which engine a run gets, and those that are not here."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pyro_vae import fit
from pyro_vae.common import inductor
from pyro_vae.errors import UsageError
from pyro_vae.training.engines import choose
from pyro_vae.training.engines.choose import resolve
from pyro_vae.training.engines.flat_graph import Untraceable
from tests.helpers.engines import plain, runs
from tests.helpers.small import binary, small_vae

fit = partial(fit, verbose=False, epochs=2, batch_size=8, seed=5)


def test_auto_goes_by_the_length_of_the_run(monkeypatch):
    assert [resolve("auto", n)[0] for n in (10, 5000, 10**6)] == ["eager", "trace", "compile"]
    assert resolve("auto", 5000, torch.device("cuda"))[0] == resolve("graph", 1, torch.device("cuda"))[0] == "graph"
    monkeypatch.setattr(choose, "compiler", lambda: None)
    assert resolve("auto", 10**6) == ("trace", "auto: 1000000 steps; no C++ compiler for more")
    assert resolve("compile", 1) == ("trace", "compile was asked for, but no C++ compiler (g++ or clang++) was found")
    vae = small_vae()
    assert "engine trace (compile was asked for, but no C++" in fit(vae, binary(20), engine="compile").engine


def test_engines_that_are_not_here_are_refused():
    for engine, message in (
        ("fast", "choose one of auto, eager, trace, compile, graph"),
        ("graph", "needs a CUDA device"),
    ):
        with pytest.raises(UsageError, match=message):
            fit(small_vae(), binary(20), engine=engine)


def test_a_compiler_that_fails_leaves_the_run_eager(monkeypatch):
    monkeypatch.setattr(inductor, "compiler", lambda: None)
    with pytest.raises(Untraceable, match="no C"):
        inductor.compile_flat(SimpleNamespace(), [torch.zeros(1)])
    a, held, _ = runs(plain, "eager")
    b, other, said = runs(plain, "compile")
    assert "eager from here on: no C++ compiler" in said and a == b and all(map(torch.equal, held, other))
