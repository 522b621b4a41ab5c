"""The lean step: stock Pyro's losses and gradients from tensors alone, nothing waited for, nothing declared twice."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import MLP, VAE, Bound, Conditional, StandardNormal, adam, bernoulli, fit, iwae, normal
from pyro_vae.common.inductor import compiler
from pyro_vae.errors import DivergedError, UsageError
from pyro_vae.objectives.pyro_elbos import mean_field, tensor_loss, trace_elbo, unscored
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.parameters import ParametersRegistered, register
from pyro_vae.training import mkl_threads, precision
from pyro_vae.training.engines import verify
from pyro_vae.training.finite_checks import DeferredFiniteCheck, can_skip
from pyro_vae.training.fused_adam import take_step
from pyro_vae.training.mkl_threads import all_threads, mkl
from pyro_vae.training.precision import Bfloat16
from pyro_vae.training.step import Step
from tests.helpers.environment import HEAVY
from tests.helpers.recording import NumbersRead
from tests.helpers.small import binary, small_vae

sgd = partial(torch.optim.SGD, lr=0.01)


class Coins(nn.Module):
    """A latent without a path (its score function is differentiated), one with a path, and a scale over all."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.net, self.back, self.scale = nn.Linear(6, 3), nn.Linear(3, 6), scale

    def model(self, x):
        pyro.module(f"coins{id(self)}", self)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(self.back(torch.cat([z, k.unsqueeze(-1)], -1)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(f"coins{id(self)}", self)
        h = self.net(x)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            pyro.sample("z", dist.Normal(h[:, :2], 0.5).to_event(1))
            pyro.sample("k", dist.Bernoulli(logits=h[:, 2]))


def double_vae(device, dtype):
    return small_vae(device=device).to(dtype)


STOCK = {
    "Trace_ELBO": (lambda: Trace_ELBO(), double_vae),
    "4 particles": (lambda: Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1), double_vae),
    "3 one by one": (lambda: Trace_ELBO(num_particles=3), double_vae),
    "score function": (lambda: Trace_ELBO(), lambda *place: Coins().to(*place)),
    "score function, scaled": (lambda: Trace_ELBO(num_particles=2), lambda *place: Coins(0.3).to(*place)),
    "mean field": (lambda: TraceMeanField_ELBO(), double_vae),
    "mean field, 4 particles": (
        lambda: TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        double_vae,
    ),
}


def stock(objective, vae, x):
    torch.manual_seed(3)
    vae.zero_grad()
    loss = objective.loss_and_grads(vae.model, vae.guide, x)
    return loss, [p.grad for p in vae.parameters()]


def lean(loss_of, vae, x):
    torch.manual_seed(3)
    with without_validation(), ParametersRegistered():
        loss = loss_of(vae.model, vae.guide, x)
    return loss.item(), torch.autograd.grad(loss, list(vae.parameters()))


def check_stock(make, vae, x, loss_of=None):
    theirs, gradients = stock(make(), vae, x)
    ours, our_gradients = lean(loss_of or tensor_loss(make()), vae, x)
    assert ours == pytest.approx(theirs, rel=1e-12)
    torch.testing.assert_close(list(our_gradients), gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STOCK)
def test_the_tensor_loss_is_stock_pyros(name, device):
    make, build = STOCK[name]
    check_stock(make, build(device, torch.float64), binary(20, device).double())


def test_losses_that_leave_something_out_are_not_stock_pyros():
    x = binary(20).double()

    def without_score(p, q):
        p.compute_log_prob()
        return p.log_prob_sum() - q.log_prob_sum()

    for make, vae, wrong in (
        (Trace_ELBO, Coins().double(), without_score),
        (TraceMeanField_ELBO, small_vae().double(), trace_elbo),
        (Trace_ELBO, small_vae().double(), mean_field),
    ):
        objective = make()
        objective.loss(vae.model, vae.guide, x)

        def loss(model, guide, x, objective=objective, wrong=wrong):
            return -wrong(*next(unscored(objective, model, guide, (x,))))

        with pytest.raises(AssertionError):
            check_stock(make, vae, x, loss)


def test_objectives_without_a_tensor_form_keep_their_own():
    class Mine(Trace_ELBO):
        pass

    assert all(tensor_loss(o) is None for o in (Mine(), TraceGraph_ELBO(), RenyiELBO(num_particles=2)))
    vae, x = small_vae().double(), binary(20).double()
    step = Step(vae.model, vae.guide, RenyiELBO(num_particles=2), sgd)
    losses = [step(x) for _ in range(3)]
    assert all(isinstance(loss, torch.Tensor) for loss in losses) and step.parameters[0].grad.abs().sum() > 0


# nothing read back, nothing declared


def late(step, x):
    step(x)
    step.finite_check = DeferredFiniteCheck(x.device)
    return step


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, Bound, lambda: Bound(iwae, 3)])
def test_a_step_reads_no_number_back(objective, device):
    vae, x = small_vae(device=device).double(), binary(20, device).double()
    step = late(Step(vae.model, vae.guide, objective(), adam()), x)
    with NumbersRead() as read:
        step(x)
    assert read.count == 0


def test_stock_pyro_reads_several():
    vae, x = small_vae().double(), binary(20).double()
    with NumbersRead() as read, without_validation():
        Trace_ELBO().loss_and_grads(vae.model, vae.guide, x)
    assert read.count >= 3


def test_parameters_are_declared_in_the_first_step_only(monkeypatch):
    vae, x, declared = small_vae().double(), binary(20).double(), []
    param = pyro.param
    monkeypatch.setattr(pyro, "param", lambda *a, **k: declared.append(a[0]) or param(*a, **k))
    step = Step(vae.model, vae.guide, Trace_ELBO(), adam())
    step(x)
    first = len(declared)
    step(x)
    assert first >= 8 and len(declared) == first


# not finite, found later


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_found_late_leaves_the_weights_of_the_step_before(value, device):
    vae, x = small_vae(device=device).double(), binary(20, device).double()
    step = late(Step(vae.model, vae.guide, Bound(), adam()), x)
    assert can_skip(step.optimizer)
    for _ in range(2):
        step(x)
    before = copy.deepcopy(vae.state_dict())
    spoilt = x.clone()
    spoilt[3, 2] = value
    for batch in (spoilt, x, x):  # what comes after the bad step is skipped, too
        step(batch)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    fine, what = step.finite_check.first_failure()
    assert fine == 2 and what.startswith("the loss is ") and not what.endswith("0.0")
    assert step.finite_check.first_failure() is None
    step(x)
    assert not torch.equal(before["posterior.net.0.weight"], vae.state_dict()["posterior.net.0.weight"])


def test_fit_that_asks_late_names_the_same_step_and_rows(monkeypatch, device):
    x = torch.cat([binary(40, device).double(), torch.randn(1, 6, device=device, dtype=torch.float64)])
    armed = []

    class Trap(VAE):
        def model(self, x):
            register(self)
            with pyro.plate("data", len(x)):
                d = self.likelihood(pyro.sample("z", self.prior())).base_dist
                bad = (x != x.round()).all(-1, keepdim=True) & bool(armed)
                pyro.sample("x", dist.Normal(d.loc.masked_fill(bad, math.nan), d.scale).to_event(1), obs=x)

    said = []
    for lazily in (False, True):
        torch.manual_seed(0)
        vae = Trap(StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), Conditional(MLP(6, 4, (8,)), normal))
        vae.to(device, torch.float64)
        armed.clear()
        if lazily:
            first = Step._first

            def and_late(step, *batch, first=first):
                loss = first(step, *batch)
                step.finite_check = DeferredFiniteCheck(batch[0].device)
                return loss

            monkeypatch.setattr(Step, "_first", and_late)
        with pytest.raises(DivergedError) as caught:
            fit(vae, x, epochs=4, batch_size=8, verbose=False, on_epoch=lambda r: armed.append(1) and None)
        said.append((str(caught.value), {n: t.clone() for n, t in vae.state_dict().items()}))
    assert said[0][0] == said[1][0] and "the loss is nan on rows 40. " in said[0][0]
    assert all(torch.equal(t, said[1][1][n]) for n, t in said[0][1].items())


# the optimizer's step


def trained(optimizer, step, times=4, skip=None):
    w, b = torch.linspace(-1, 1, 40, requires_grad=True), torch.zeros((), requires_grad=True)
    of = optimizer([w, b])
    for i in range(times):
        for p in (w, b):
            p.grad = torch.cos(p.detach() * (i + 1))
        of.found_inf = skip[i] if skip else None
        step(of)
    return [w, b, *(t for p in (w, b) for _, t in sorted(of.state[p].items()))]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"amsgrad": True}])
def test_an_optimizer_step_is_torchs(options):
    make = partial(torch.optim.Adam, lr=0.1, fused=True, **options)
    for skip in (None, [torch.tensor(float(i == 2)) for i in range(4)]):
        ours, theirs = trained(make, take_step, skip=skip), trained(make, lambda o: o.step(), skip=skip)
        assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(ours[0], trained(make, take_step)[0])


def test_who_listens_to_an_optimizer_is_heard():
    heard = []

    def make(parameters):
        optimizer = torch.optim.Adam(parameters, fused=True)
        optimizer.register_step_post_hook(lambda *_: heard.append(1))
        return optimizer

    trained(make, take_step)
    assert len(heard) == 4
    frozen = torch.ones(2, requires_grad=True)  # no gradient: it stands still
    optimizer = torch.optim.Adam([frozen, other := torch.ones(2, requires_grad=True)], fused=True)
    for _ in range(3):
        other.grad = torch.ones(2)
        take_step(optimizer)
    assert torch.equal(frozen, torch.ones(2)) and not torch.equal(other, torch.ones(2))


# bfloat16, and threads


def test_bfloat16_is_of_networks_alone_and_within_a_tenth_of_a_nat():
    torch.manual_seed(1)
    x = torch.bernoulli(torch.full((64, 784), 0.13))
    vae = VAE(StandardNormal(8), Conditional(MLP(8, 784, (64,)), bernoulli), Conditional(MLP(784, 16, (64,)), normal))
    fit(vae, x, epochs=15, batch_size=16, optimizer=adam(0.003), verbose=False, precision="bf16")
    exact, rounded = Bound(), Bound()
    torch.manual_seed(2)
    a = exact.per_row(vae.model, vae.guide, x)
    torch.manual_seed(2)
    with Bfloat16():
        b = rounded.per_row(vae.model, vae.guide, x)
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    assert (a.mean() - b.mean()).abs() < 0.1 and (a - b).abs().max() < 1
    with pytest.raises(UsageError, match="choose one of float32, tf32, bf16"):
        fit(vae, x, precision="fp8")


def test_a_run_in_bfloat16_is_another_but_no_worse():
    x, losses, held = binary(200), {}, {}
    for name, engine in (("float32", "eager"), ("bf16", "eager"), ("bf16", "trace")):
        torch.manual_seed(0)
        vae = small_vae()
        run = fit(vae, x, epochs=6, optimizer=adam(0.01), verbose=False, precision=name, engine=engine)
        losses[name, engine], held[name, engine] = run.history[-1]["elbo"], list(vae.parameters())
    assert losses["bf16", "eager"] == pytest.approx(losses["float32", "eager"], abs=0.1)
    assert not torch.equal(held["bf16", "eager"][0], held["float32", "eager"][0])
    assert all(map(torch.equal, held["bf16", "eager"], held["bf16", "trace"]))


def test_where_bfloat16_is_the_slower_it_is_said_before_training(monkeypatch, capsys):
    x, vae = binary(50), small_vae()

    def said(name: str, bfloat16: float) -> str:
        monkeypatch.setattr(precision, "seconds", lambda dtype: bfloat16 if dtype == torch.bfloat16 else 1e-3)
        fit(vae, x, epochs=1, precision=name)
        return "".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("note: precision"))

    assert said("bf16", 2e-3) == (
        "note: precision='bf16': products in bfloat16 run at 0.50 of float32's speed here, leave it out"
    )
    assert said("bf16", 0.5e-3) == said("float32", 2e-3) == ""
    monkeypatch.undo()
    assert 0 < precision.seconds(torch.float32) < 1


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_compiled_bfloat16_rounds_elsewhere_and_is_taken(monkeypatch):
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((256, 784), 0.13))

    def engine():
        torch.manual_seed(1)
        vae = VAE(
            StandardNormal(8), Conditional(MLP(8, 784, (64,)), bernoulli), Conditional(MLP(784, 16, (64,)), normal)
        )
        return fit(vae, x, epochs=2, batch_size=64, verbose=False, precision="bf16", engine="compile").engine

    assert "compiled in" in (said := engine()) and "eager from here on" not in said, said
    if HEAVY:
        monkeypatch.setattr(verify, "ROUNDED", 1e-9)
        assert "eager from here on" in engine()


@pytest.mark.skipif(mkl() is None, reason="torch without MKL's switch")
def test_the_matrix_library_gets_its_threads_back():
    library = mkl()
    for was in (1, 0):
        library.MKL_Set_Dynamic(was)
        with pytest.raises(LookupError), all_threads() as switched:
            assert switched and library.mkl_serv_get_dynamic() == 0
            raise LookupError
        assert library.mkl_serv_get_dynamic() == was


def test_without_the_switch_nothing_happens(monkeypatch):
    monkeypatch.setattr(mkl_threads, "mkl", lambda: None)
    with all_threads() as switched:
        assert switched is False
