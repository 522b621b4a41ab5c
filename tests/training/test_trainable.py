"""Parameters and layers that cannot be trained, or computed with, are refused by name before torch stops somewhere within."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, fit, fit_ensemble, log_likelihood, normal
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.parameter_kinds import check_one_gpu, check_values

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Shifted(nn.Module):
    """A network whose output a part of its own shifts, by six numbers or one."""

    def __init__(self, shift):
        super().__init__()
        self.net, self.part = MLP(1, 2 * 3), shift

    def forward(self, z):
        return self.net(z) + self.part(z)


class Holds(nn.Module):
    """Six numbers, as they are made of a parameter."""

    def __init__(self, numbers, use=lambda numbers: numbers, trained=True):
        super().__init__()
        self.numbers, self.use = nn.Parameter(numbers, requires_grad=trained), use

    def forward(self, z):
        return self.use(self.numbers)


class OneClass(nn.Embedding):
    def forward(self, z):
        return super().forward(torch.zeros(z.shape[:-1], dtype=torch.long))


def quantized():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(1, 6)), {nn.Linear}, dtype=torch.qint8)


def of(part):
    return VAE(StandardNormal(1), Conditional(Shifted(part), normal), Conditional(MLP(3, 2), normal))


def train(vae):
    return fit(vae, X, epochs=1, verbose=False)


UNTRAINED = {
    "sparse gradient": (lambda: OneClass(2, 6, sparse=True), UsageError, "part.weight' gets a sparse gradient"),
    "complex": (lambda: Holds(torch.ones(6) * 1j, torch.abs), UsageError, "part.numbers' is complex"),
    "float16": (lambda: Holds(torch.ones(6).half(), torch.Tensor.float), UsageError, "part.numbers' is in float16"),
    "quantized": (quantized, ProgramError, "layer 'likelihood.net.part.0' is quantized .* no gradient passes"),
}
VALUELESS = {
    "lazy": (lambda: nn.LazyLinear(6), "part.weight belongs to a lazy module"),
    "lazy buffer": (lambda: nn.Sequential(nn.Linear(1, 6), nn.LazyBatchNorm1d()), "part.1.weight belongs to a lazy"),
    "meta": (lambda: nn.Linear(1, 6, device="meta"), "part.weight is on the meta device"),
    "sparse": (lambda: Holds(torch.eye(6).to_sparse(), lambda p: torch.sparse.sum(p, 0).to_dense()), "sparse tensor"),
    "float8": (lambda: Holds(torch.ones(6).to(torch.float8_e4m3fn), torch.Tensor.float), "is in torch.float8_e4m3fn"),
}
TRAINED = {
    "whole numbers": lambda: Holds(torch.arange(6), trained=False),
    "frozen complex": lambda: Holds(torch.ones(6) * 1j, torch.abs, trained=False),
    "dense gradient": lambda: OneClass(2, 6),
}


@pytest.mark.filterwarnings("ignore")  # torch's own: of lazy modules, and of the future of its quantization
@pytest.mark.parametrize("name", UNTRAINED)
def test_what_cannot_be_trained_is_refused_by_name_and_can_be_scored(name, monkeypatch):
    part, kind, said = UNTRAINED[name]
    vae = of(part())
    if name == "quantized":  # whose scale is read off all rows, as a check finds
        with pytest.raises(kind, match=r"a latent of another row is far away .* quantized as it runs"):
            train(vae)
        monkeypatch.setattr("pyro_vae.training.before_training.check_training", lambda *looked_at: [])
    with pytest.raises(kind, match=said) as raised:
        train(vae)
    assert "Fix: " in str(raised.value)
    score = partial(log_likelihood, vae.model, vae.guide, X, num_samples=4, verbose=False)
    if name != "quantized":
        assert torch.isfinite(score().log_px).all()
        return
    with pytest.raises(ProgramError, match="a latent of another row is far away"):  # its scale is read off all rows
        score()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VALUELESS)
def test_what_has_no_values_is_refused_by_name(name):
    part, said = VALUELESS[name]
    vae = of(part())
    with pytest.raises(ProgramError, match=said) as raised:
        train(vae)
    assert "Fix: " in str(raised.value)
    with pytest.raises(ProgramError, match=said):
        log_likelihood(vae.model, vae.guide, X, num_samples=4, verbose=False)


@pytest.mark.parametrize("name", TRAINED)
def test_what_can_be_trained_is(name):
    assert train(of(TRAINED[name]())).history[0]["elbo"] is not None


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_layer_that_sees_the_data_alone_is_trained_behind():
    front = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}, dtype=torch.qint8)
    encoder = nn.Sequential(front, nn.Linear(4, 2))
    before = copy.deepcopy(encoder[1].weight)
    train(VAE(StandardNormal(1), Conditional(MLP(1, 6), normal), Conditional(encoder, normal)))
    assert not torch.equal(encoder[1].weight, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "part", [lambda: nn.LazyLinear(6), lambda: OneClass(2, 6, sparse=True)], ids=["lazy", "sparse"]
)
def test_members_are_refused_as_one_is(part):
    with pytest.raises(UsageError, match=r"lazy module|sparse gradient"):
        fit_ensemble(lambda: of(part()), X, seeds=[0, 1], epochs=1, verbose=False)


ON = {name: SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda:0", "cuda:1")}


def test_parameters_on_two_gpus_are_refused_by_name():
    """Of stand-ins: noise is seeded on one device, so that draws on the other would be others each time."""
    with pytest.raises(ProgramError, match=r"enc.weight is on cuda:0, dec.weight on cuda:1.*Fix: "):
        check_one_gpu({"enc.weight": ON["cuda:0"], "enc.bias": ON["cuda:0"], "dec.weight": ON["cuda:1"]})


def test_a_number_on_the_cpu_beside_one_gpu_is_not_refused():
    check_one_gpu({"scale": ON["cpu"], "enc.weight": ON["cuda:0"], "dec.weight": ON["cuda:0"]})


def test_all_parameters_of_both_programs_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr("pyro_vae.programs.parameter_kinds.check_one_gpu", seen.append)
    vae = of(MLP(1, 6))
    check_values(vae.model, vae.guide)
    assert len(seen[0]) == len(list(vae.parameters())) + len(list(vae.buffers()))
