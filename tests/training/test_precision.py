"""TF32: torch's switch is on while a step is computed, and at no other time; a CPU computes the same to the bit."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.backends.cuda import matmul

from pyro_vae import adam
from pyro_vae import fit as noisy_fit
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.training.engines.trace_setting import ambient
from pyro_vae.training.engines.whole_step import WholeStep
from pyro_vae.training.precision import TensorFloat32, name_of, precision_of
from pyro_vae.training.trainer import TrainingCallback
from tests.helpers.bits import same
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import numbers

fit = partial(noisy_fit, verbose=False)
NEW = hasattr(matmul, "fp32_precision")  # since torch 2.9


def switch():
    return matmul.fp32_precision if NEW else matmul.allow_tf32


@pytest.fixture(autouse=True)
def as_found():
    yield
    torch.set_float32_matmul_precision("highest")
    if NEW:
        torch.backends.mkldnn.matmul.fp32_precision = matmul.fp32_precision = "none"


def legacy(value):
    matmul.allow_tf32 = value


def renewed(value):
    matmul.fp32_precision = value


STATES = {
    "not said": lambda: None,
    "off": lambda: legacy(False),
    "on": lambda: legacy(True),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "new on": lambda: renewed("tf32"),
    "new off": lambda: renewed("ieee"),
}


@pytest.mark.parametrize("state", [s for s in STATES if NEW or not s.startswith("new")])
def test_the_switch_is_put_back_as_it_was(state):
    STATES[state]()
    before = switch(), ambient()
    with pytest.raises(LookupError), TensorFloat32():
        assert switch() in ("tf32", True)
        with TensorFloat32():
            pass
        assert switch() in ("tf32", True)
        raise LookupError
    assert (switch(), ambient()) == before


class Watched(nn.Module):
    """Notes the switch in its forward and its backward pass."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(6, 4), []

    def forward(self, x):
        out = self.layer(x)
        mode = "trained" if torch.is_grad_enabled() else "looked at"
        self.seen.append((mode, switch()))
        if out.requires_grad:
            out.register_hook(lambda _: self.seen.append(("backward", switch())))
        return out


@pytest.mark.parametrize(("name", "on"), [("tf32", True), ("float32", False)])
def test_forward_and_backward_are_inside_and_what_is_logged_is_not(name, on):
    vae, off, inside = small_vae(), switch(), "tf32" if NEW else True
    vae.posterior.net = Watched()
    between = []

    class Between(TrainingCallback):
        def before_training(self, trainer):
            vae.posterior.net.seen.clear()  # of the checks, which run with gradients, too

        def after_step(self, trainer):
            between.append(switch())

    fit(vae, binary(), epochs=2, precision=name, engine="eager", callbacks=[Between()])
    seen = set(vae.posterior.net.seen)
    assert ("backward", inside if on else off) in seen and ("backward", off if on else inside) not in seen
    assert ("looked at", off) in seen and ("looked at", inside) not in seen
    assert set(between) == {off} and switch() == off


@pytest.mark.parametrize("engine", ["trace", "eager"])
def test_a_cpu_computes_the_same_to_the_bit_and_it_is_said(engine, monkeypatch, capsys):
    run_of, states, ran = WholeStep.__call__, [], []
    monkeypatch.setattr(WholeStep, "__call__", lambda whole, *given: ran.append(switch()) or run_of(whole, *given))
    for name in ("float32", "tf32"):
        torch.manual_seed(0)
        vae = small_vae()
        run = noisy_fit(vae, binary(200), epochs=3, optimizer=adam(0.01), engine=engine, precision=name)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: precision")]
        assert len(said) == (name == "tf32") and all("tf32' changes nothing on cpu" in line for line in said)
        states.append((state_of(vae), numbers(run)))
    assert same(states[0][0], states[1][0]) and states[0][1] == states[1][1]
    assert ("tf32" in ran or True in ran) == (engine == "trace")  # a graph's products are launched with it


def test_names_are_those_that_fit_takes():
    assert [name_of(precision_of(name)) for name in ("float32", "tf32", "bf16")] == ["float32", "tf32", "bf16"]


def test_a_run_that_goes_on_at_another_precision_says_that_the_bits_differ(tmp_path, capsys):
    vae, x, saved = small_vae(), binary(), Checkpointer(tmp_path)
    fit(vae, x, epochs=1, callbacks=[saved])
    assert fit(vae, x, epochs=1, resume=saved.newest()).exact
    assert not fit(vae, x, epochs=1, resume=saved.newest(), precision="tf32").exact
    assert "precision" in capsys.readouterr().err
