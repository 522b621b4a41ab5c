"""Arguments of `fit`: of each wrong type, a word of what was wanted before anything is trained; other forms are converted."""

import copy
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import VAE, Beta, Bound, adam, cosine, cyclical, dreg, elbo, fit, iwae, miwae, renyi, warmup
from pyro_vae.errors import DivergedError, PyroVAEError, UsageError
from pyro_vae.training.aggressive_inference import Aggressive
from tests.helpers.bits import same
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import numbers

fit = partial(fit, verbose=False, epochs=2, batch_size=10)

WRONG = {
    "bound": ({"objective": iwae}, r"objective=iwae is a bound.*Bound\(iwae, num_particles=8\)"),
    "bound-by-name": ({"objective": "iwae"}, r"Bound\(iwae, num_particles=8\)"),
    "bound-of-groups": ({"objective": miwae}, r"Bound\(miwae, num_particles=8, num_groups=8\)"),
    "bound-class": ({"objective": renyi}, r"Bound\(renyi\(\.\.\.\), num_particles=8\)"),
    "bound-made": ({"objective": renyi(0.5)}, r"Bound\(renyi\(\.\.\.\), num_particles=8\)"),
    "estimator": ({"objective": dreg}, r"dreg is a gradient estimator.*estimator=dreg"),
    "estimator-by-name": ({"objective": "stl"}, r"stl is a gradient estimator.*estimator=stl"),
    "objective-name": ({"objective": "Trace_ELBO"}, r"objective must be a pyro\.infer\.ELBO.*got 'Trace_ELBO'"),
    "objective-function": ({"objective": lambda *a: 0.0}, r"objective must be .*got a function"),
    "objective-number": ({"objective": 3}, "objective must be .*got 3"),
    "optimizer-name": ({"optimizer": "adam"}, r"adam\(lr=1e-3\).*got 'adam'"),
    "optimizer-rate": ({"optimizer": 1e-3}, r"optimizer=adam\(lr=0\.001\)"),
    "optimizer-of-optimizers": ({"optimizer": lambda p: adam}, r"call it first, such as optimizer=adam"),
    "optimizer-of-nothing": ({"optimizer": lambda p: None}, "optimizer gave None"),
    "lbfgs": ({"optimizer": torch.optim.LBFGS}, "LBFGS evaluates the loss several times"),
    "pyro-scheduler": (
        {"optimizer": pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.9})},
        r"schedule=, such as warmup\(cosine\)",
    ),
    "pyro-decay": ({"optimizer": pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9})}, r"lrd=0\.9.*leave lrd out"),
    "pyro-by-name": ({"optimizer": pyro.optim.Adam(lambda name: {"lr": 0.1})}, "groups of a torch optimizer"),
    "pyro-clipping": ({"optimizer": pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0})}, "clip_args.*ClippedAdam"),
    "pyro-no-rate": ({"optimizer": pyro.optim.AdagradRMSProp({"eta": 0.1})}, "AdagradRMSProp has no learning rate"),
    "schedule-name": ({"schedule": "cosine"}, r"schedule takes a function.*got 'cosine'"),
    "schedule-rate": ({"schedule": 1e-3}, r"optimizer=adam\(lr=0\.001\)"),
    "schedule-not-called": ({"schedule": warmup}, "warmup gives no number for 1.0: if it makes a schedule, call it first"),
    "cyclical-not-called": ({"schedule": cyclical}, "call it first|cycles"),
    "epochs-fraction": ({"epochs": 2.5}, r"epochs must be a whole number from 1, got 2\.5"),
    "epochs-name": ({"epochs": "10"}, "epochs must be a whole number from 1, got '10'"),
    "epochs-0": ({"epochs": 0}, "epochs must be at least 1, got 0"),
    "batch-size-fraction": ({"batch_size": 0.5}, r"batch_size must be a whole number, got 0\.5"),
    "batch-size-true": ({"batch_size": True}, "batch_size must be a whole number, got True"),
    "patience-true": ({"patience": True}, "patience must be a whole number from 1, got True"),
    "patience-0": ({"patience": 0}, "patience must be at least 1, got 0"),
    "seed-none": ({"seed": None}, "seed must be a whole number from 0"),
    "bad-steps": ({"bad_steps": "many"}, "bad_steps must be a whole number from 1"),
    "aggressive-true": ({"aggressive": True}, r"aggressive=Aggressive\(\), got True"),
    "aggressive-class": ({"aggressive": Aggressive}, "got the class Aggressive"),
    "transform-name": ({"transform": "binarize"}, "transform must be a function, got 'binarize'"),
    "on-epoch-list": ({"on_epoch": [print]}, "on_epoch must be a function, got a list"),
    "on-step-beta": ({"on_step": 3}, "on_step must be a function, got 3"),
    "callbacks": ({"callbacks": print}, "callbacks must be a list"),
    "scheduled": ({"scheduled": Beta()}, "scheduled must be a list"),
    "engine-none": ({"engine": None}, "engine must be a name, got None"),
    "engine-name": ({"engine": "cuda"}, "engine='cuda': choose one of"),
    "precision-type": ({"precision": torch.bfloat16}, "precision must be a name, got a dtype"),
    "device-number": ({"device": 1.5}, r"device must be a name.*got 1\.5"),
    "device-name": ({"device": "gpu"}, "'gpu' is no device"),
    "resume-path": ({"resume": "runs/a"}, r"Checkpointer\(folder\)\.newest\(\), got 'runs/a'"),
    "missing-name": ({"missing": "nan"}, "missing must be True or False, got 'nan'"),
    "drop-last": ({"drop_last": 5}, "drop_last must be True or False, got 5"),
    "verbose": ({"verbose": "no"}, "verbose must be True or False"),
    "validation-empty": ({"validation": ()}, "validation is an empty tuple"),
    "validation-share": ({"validation": 0.2}, "validation x is a single number"),
    "transform-arity": ({"transform": lambda x: x}, r"called as transform\(x_batch, generator\).*too many"),
    "on-step-arity": ({"on_step": lambda: None}, r"called as on_step\(done\)"),
    "on-epoch-arity": ({"on_epoch": lambda a, b: None}, r"called as on_epoch\(record\).*missing"),
    "optimizer-keyword": (
        {"optimizer": partial(torch.optim.Adam, learning_rate=1.0)}, "could not be made.*unexpected keyword.*'learning_rate'"),
    "optimizer-base": ({"optimizer": torch.optim.Optimizer}, "could not be made.*missing 1 required"),
    "optimizer-sparse": ({"optimizer": torch.optim.SparseAdam}, "SparseAdam takes sparse gradients only"),
    "keyword": ({"lr": 0.1}, "lr"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_was_wanted_is_said_before_training(kind):
    options, words = WRONG[kind]
    vae, epochs = small_vae(), []
    start = state_of(vae)
    with pytest.raises(PyroVAEError, match=words):
        fit(vae, binary(), **{"on_epoch": epochs.append} | options)
    assert not epochs and same(start, state_of(vae))


@pytest.mark.parametrize("thing", [VAE, (VAE, VAE)], ids=["class", "classes"])
def test_a_class_is_no_pair(thing):
    with pytest.raises(UsageError, match="got the class VAE: make one first"):
        fit(thing, binary())


def test_an_svi_is_not_an_objective():
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    with pytest.raises(UsageError, match="objective is an SVI"):
        fit(vae, binary(), objective=svi)


def test_what_on_epoch_returns_joins_the_record_or_is_refused():
    with pytest.raises(UsageError, match="on_epoch returned a list; wanted a dict"):
        fit(small_vae(), binary(), on_epoch=lambda record: [1])


def trained(**options):
    """A run from the same start, and the weights that it ends with."""
    vae = small_vae(seed=0)
    given = {name: value(vae) if name == "optimizer" else value for name, value in options.items()}
    return numbers(fit(vae, binary(), **given)), state_of(vae)


SAME = {
    "class-of-objective": ({"objective": TraceMeanField_ELBO}, {"objective": TraceMeanField_ELBO()}),
    "adam-not-called": ({"optimizer": lambda vae: adam}, {}),
    "torch-class": ({"optimizer": lambda vae: torch.optim.SGD}, {"optimizer": lambda vae: partial(torch.optim.SGD, lr=1e-3)}),
    "built": (
        {"optimizer": lambda vae: torch.optim.SGD(vae.parameters(), lr=0.1)},
        {"optimizer": lambda vae: partial(torch.optim.SGD, lr=0.1)},
    ),
    "built-in-groups": (
        {"optimizer": lambda vae: torch.optim.SGD([{"params": [p]} for p in vae.parameters()], lr=0.1)},
        {"optimizer": lambda vae: partial(torch.optim.SGD, lr=0.1)},
    ),
    "pyro-optim": (
        {"optimizer": lambda vae: pyro.optim.SGD({"lr": 0.1, "momentum": 0.5})},
        {"optimizer": lambda vae: partial(torch.optim.SGD, lr=0.1, momentum=0.5)},
    ),
    "pyro-clipped": (
        {"optimizer": lambda vae: pyro.optim.ClippedAdam({"lr": 0.1, "clip_norm": 1e9})},
        {"optimizer": lambda vae: partial(torch.optim.Adam, lr=0.1)},
    ),
    "numpy-numbers": ({"epochs": np.int64(2), "batch_size": np.int32(10)}, {}),
    "drop-last-number": ({"drop_last": 0}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_other_forms_mean_the_same(kind):
    (given, weights), (plain, others) = (trained(**options) for options in SAME[kind])
    assert [r.keys() for r in given] == [r.keys() for r in plain]
    assert given[-1]["elbo"] == pytest.approx(plain[-1]["elbo"], abs=1e-4)
    assert all(torch.allclose(t, others[name], atol=1e-5) for name, t in weights.items())


def test_a_built_optimizer_that_lacks_parameters_is_refused_by_name():
    vae = small_vae()
    start = state_of(vae)
    with pytest.raises(
        UsageError, match=r"lacks 4 of the 8 parameters .*likelihood\.net.*functools\.partial\(torch\.optim\.Adam"
    ):
        fit(vae, binary(), optimizer=torch.optim.Adam(vae.posterior.parameters()))
    assert same(start, state_of(vae))


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(UsageError, match="lacks 8 of the 8"):
        fit(small_vae(), binary(), optimizer=torch.optim.Adam(small_vae().parameters()))


def test_a_built_optimizer_moves_nothing_else_and_keeps_its_rate():
    vae, other = small_vae(), torch.nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    optimizer = torch.optim.SGD([*vae.parameters(), other], lr=0.1)
    run = fit(vae, binary(), optimizer=optimizer, schedule=cosine)
    assert torch.equal(other.data, torch.ones(3)) and optimizer.param_groups[0]["lr"] == 0.1
    assert run.history[-1]["lr"] == pytest.approx(0.0, abs=1e-6)


# a loss that is a tuple


def test_reweighted_wake_sleep_trains_and_logs_wake_theta(device):
    """One step, against stock loss_and_grads: the same loss and the same gradients."""
    x, vae = binary(30, device), small_vae(device=device)
    objective, seen = ReweightedWakeSleep(num_particles=3, vectorize_particles=False), []

    class Spy(ReweightedWakeSleep):
        def loss_and_grads(self, *args):
            seen.append(super().loss_and_grads(*args))
            return seen[-1]

    run = fit(vae, x, objective=Spy(num_particles=3), epochs=1, batch_size=30)
    assert run.history[0]["loss"] == pytest.approx(seen[0][0] / 30, rel=1e-5) and len(seen) == 1
    start = run.history[0]["elbo"]
    later = fit(vae, x, objective=objective, epochs=25, batch_size=10, optimizer=adam(0.03))
    assert later.history[-1]["elbo"] > start + 0.1


def test_of_a_tuple_any_part_that_is_not_finite_stops_training():
    class Broken(ReweightedWakeSleep):
        def loss_and_grads(self, *args):
            return super().loss_and_grads(*args)[0], float("nan")

    with pytest.raises(DivergedError, match="the loss is nan"):
        fit(small_vae(), binary(), objective=Broken(num_particles=2))


def test_the_arguments_are_left_as_they_were():
    objective, optimizer = Bound(elbo), pyro.optim.Adam({"lr": 0.01})
    before = copy.deepcopy(optimizer.pt_optim_args)
    fit(small_vae(), binary(), objective=objective, optimizer=optimizer)
    assert optimizer.pt_optim_args == before and not optimizer.optim_objs
