"""Trained models are copied, by whatever means, and score the same bits; a copy that would not is refused."""

import copy
import functools
import io
import pickle

import joblib
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_vae import (
    GMVAE,
    MLP,
    VAE,
    BackwardGRU,
    Bayesian,
    BottomUp,
    Classes,
    Conditional,
    ConvDecoder,
    ConvEncoder,
    GlobalGuide,
    HierarchicalVAE,
    MultimodalVAE,
    ProductOfExperts,
    SemiSupervised,
    StandardNormal,
    StateSpaceModel,
    WithMask,
    bernoulli,
    binomial,
    fit,
    log_likelihood,
    normal,
    posteriors,
    priors,
)
from pyro_vae.common.closures import held_modules
from pyro_vae.distributions.features import FamilyOfOptions
from pyro_vae.errors import ProgramError
from pyro_vae.models.networks import Tanh
from pyro_vae.runs.registry import build, names
from tests.helpers.children import FRESH, printed_by
from tests.helpers.small import binary, small_vae
from tests.runs.test_registry import ELEMENTS, config


def by_torch(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_joblib(module):
    file = io.BytesIO()
    joblib.dump(module, file)
    file.seek(0)
    return joblib.load(file)


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


WAYS = {"pickle": by_pickle, "deepcopy": copy.deepcopy, "torch": by_torch, "joblib": by_joblib}


def elbo_of(module):
    """The missing labels of M2 are summed over."""
    return TraceEnum_ELBO(max_plate_nesting=1) if isinstance(module, SemiSupervised) else Trace_ELBO()


def trained(module, *x):
    """One step of plain SVI, which leaves Pyro's references on every parameter."""
    SVI(module.model, module.guide, pyro.optim.Adam({"lr": 1e-2}), elbo_of(module)).step(*x)
    return module


def loss(module, *x):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return elbo_of(module).loss(module.model, module.guide, *x)


def score(module, x):
    return log_likelihood(module.model, module.guide, x, num_samples=20, verbose=False).log_px


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_vae_that_was_fitted_and_evaluated_scores_the_same_bits_whatever_copied_it(engine, device):
    x, vae = binary(device=device), small_vae(device=device)
    fit(vae, x, epochs=2, engine=engine, standardize=False, verbose=False)
    before = score(vae, x)
    for way, copied in WAYS.items():
        assert torch.equal(score(copied(vae), x), before), way
    assert torch.equal(score(vae, x), before)
    run = fit(by_pickle(vae), x, epochs=1, engine=engine, verbose=False)  # a copy trains
    assert run.history


def test_without_the_mechanism_no_trained_module_is_pickled():
    """Broken: a network of torch's alone, once it was in Pyro's store."""
    net = nn.Linear(6, 4)
    pyro.module("net", net)
    with pytest.raises(TypeError, match="weakref"):
        pickle.dumps(net)
    vae = trained(
        VAE(StandardNormal(2), Conditional(MLP(2, 6), bernoulli), Conditional(nn.Linear(6, 4), normal)), binary()
    )
    assert by_pickle(vae).posterior.net.in_features == 6  # but inside one of ours it is
    for part in (vae.posterior, vae.likelihood.net, vae.prior):
        trained(vae, binary())
        assert type(by_pickle(part)) is type(part)


CELLS = [("standard_normal", name, "normal") for name in names("likelihood")]
CELLS += [
    (name, "normal", q) for name, q in [("uniform_sphere", "power_spherical"), ("one_hot", "one_hot_categorical_st")]
]
CELLS += [(name, "normal", "normal") for name in ("normal", "laplace", "student_t", "mixture", "vamp", "flow")]
CELLS += [("dirichlet", "normal", "logistic_normal")]
CELLS += [
    ("standard_normal", "normal", name)
    for name in ("low_rank_normal", "full_normal", "mixture_normal", "flow", "semi_amortized")
]


def test_every_registered_part_but_one_is_in_a_cell():
    """one_hot_categorical is the family of its straight-through sibling, and has no pathwise step."""
    for i, role in enumerate(("prior", "likelihood", "posterior")):
        assert {cell[i] for cell in CELLS} | {"one_hot_categorical"} >= set(names(role))


@pytest.mark.parametrize("cell", CELLS, ids=["-".join(cell) for cell in CELLS])
def test_every_registered_part_is_copied(cell):
    torch.manual_seed(1)
    vae = build(config(*cell), (ELEMENTS,))
    with torch.no_grad():
        x = vae.likelihood(vae.prior().expand((8,)).sample()).sample().float()
    trained(vae, x)
    before = loss(vae, x)
    for copied in (by_pickle, copy.deepcopy):
        again = copied(vae)
        assert loss(again, x) == before
        assert {p.data_ptr() for p in again.parameters()}.isdisjoint(p.data_ptr() for p in vae.parameters())
    assert repr(again) == repr(vae)


def step_of(loc, *_):
    return normal(torch.cat([loc, 0 * loc], -1)).to_event(1)


def emit(z, *_):
    return normal(torch.cat([z, 0 * z], -1)).to_event(1)


def infer(z, h):
    return normal(torch.cat([0.5 * z + h[..., :1], 0 * z], -1)).to_event(1)


def mlp(inputs, outputs):
    return MLP(inputs, outputs, (4,), Tanh)


def graphs():
    """A model of each graph, and what it is trained on."""
    torch.manual_seed(0)
    x, real = binary(12), torch.randn(12, 6)
    conv = VAE(
        StandardNormal(2),
        Conditional(ConvDecoder(2, 2, (1, 4, 4)), bernoulli),
        Conditional(ConvEncoder(4, width=2, shape=(1, 4, 4)), normal),
    )
    yield "convolutional", conv, [torch.ones(3, 16)]
    yield "gaps", small_vae(posterior=Conditional(WithMask(MLP(12, 4, (4,))), normal)), [x]
    units = small_vae(likelihood=normal, features=2)
    units.standardize(real)
    yield "standardized", units, [real]
    classes = Classes(3, learned=True)
    m2 = SemiSupervised(
        classes,
        StandardNormal(2),
        Conditional(mlp(2 + 3, 6), bernoulli),
        Conditional(mlp(6, 3), categorical_of, event_dim=0),
        Conditional(mlp(6 + 3, 4), normal),
    )
    yield "semi-supervised", m2, [x, torch.arange(12) % 3]
    hierarchy = HierarchicalVAE(
        [Conditional(mlp(2, 4), normal), StandardNormal(2)],
        Conditional(mlp(2, 6), bernoulli),
        BottomUp(Conditional(mlp(6, 4), normal), Conditional(mlp(2, 4), normal)),
    )
    yield "hierarchical", hierarchy, [x]
    both = MultimodalVAE(
        StandardNormal(2),
        {"a": Conditional(mlp(2, 6), bernoulli), "b": Conditional(mlp(2, 12), normal)},
        ProductOfExperts(StandardNormal(2), {"a": Conditional(mlp(6, 4), normal), "b": Conditional(mlp(6, 4), normal)}),
    )
    yield "multimodal", both, [x, real]
    chain = StateSpaceModel(StandardNormal(1), step_of, emit, BackwardGRU(1, 4), infer)
    yield "state space", chain, [torch.randn(5, 3, 1)]


def categorical_of(features):
    return pyro.distributions.Categorical(logits=features)


@pytest.mark.parametrize("which", range(7), ids=["conv", "gaps", "units", "m2", "hierarchy", "modalities", "chain"])
def test_every_graph_is_copied(which):
    _, vae, x = list(graphs())[which]
    trained(vae, *x)
    before = loss(vae, *x)
    for copied in (by_pickle, copy.deepcopy):
        assert loss(copied(vae), *x) == before


def linear(theta, c):
    return pyro.distributions.Normal((theta * c).sum(-1), 1.0)


def test_global_parameters_and_an_autoguide_are_copied():
    x, c = torch.randn(20), torch.randn(20, 2)
    regression = Bayesian(StandardNormal(2), linear, posterior=priors.DiagonalNormal(2))
    trained(regression, x, c)
    assert loss(by_pickle(regression), x, c) == loss(regression, x, c)
    guide = GlobalGuide(regression.model, AutoNormal)
    SVI(regression.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x, c)
    again = by_pickle(guide)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(guide.parameters(), again.parameters(), strict=True))
        torch.manual_seed(0)
        first = guide.auto(x, c)
        torch.manual_seed(0)
        assert torch.equal(again.auto(x, c)["theta"], first["theta"])


def test_the_mixture_is_copied():
    vae = GMVAE(
        Classes(3, learned=True),
        Conditional(MLP(3, 4, (4,)), normal),
        Conditional(MLP(2, 6, (4,)), bernoulli),
        Conditional(MLP(6, 4, (4,)), normal),
    )
    x = binary(12)
    pyro.module("mixture", vae)
    assert torch.equal(score(by_pickle(vae), x), score(vae, x))


def test_a_family_of_options_is_the_call_that_made_it():
    for family in (binomial(16), posteriors.low_rank_normal(2)):
        again = by_pickle(family)
        assert isinstance(family, FamilyOfOptions) and again is not family and again.__name__ == family.__name__
        h = torch.randn(3, 8)
        assert torch.equal(again(h).mean, family(h).mean)
    assert not list(held_modules(binomial(16)))


NET = MLP(2, 6, (4,))


def decode(z):
    return bernoulli(NET(z)).to_event(1)


def decode_by(net, z):
    return bernoulli(net(z)).to_event(1)


def test_a_function_over_a_global_network_is_refused_and_a_partial_has_its_own():
    vae = VAE(StandardNormal(2), decode, Conditional(MLP(6, 4, (4,)), normal))
    saved = pickle.dumps(vae)
    with pytest.raises(ProgramError, match=r"would share 'likelihood\.NET'"):
        pickle.loads(saved)
    whole = VAE(StandardNormal(2), functools.partial(decode_by, MLP(2, 6, (4,))), Conditional(MLP(6, 4, (4,)), normal))
    x = binary()
    trained(whole, x)
    again = by_pickle(whole)
    assert loss(again, x) == loss(whole, x)
    fit(again, x, epochs=1, verbose=False)
    assert loss(again, x) != loss(whole, x)


def unpickle(path):
    """Run in a child, which has made a network of its own."""
    with pytest.raises(ProgramError) as refused:
        pickle.loads(path.read_bytes())
    print(refused.value)


def test_another_process_does_not_run_its_own_network_in_the_place_of_the_saved(tmp_path):
    vae = VAE(StandardNormal(2), decode, Conditional(MLP(6, 4, (4,)), normal))
    (tmp_path / "vae").write_bytes(pickle.dumps(vae))
    said = printed_by(unpickle, tmp_path / "vae")
    assert "would run 'likelihood.NET' (MLP) as it is here, not as it was saved" in said


def test_another_process_scores_the_same_bits():
    vae, x = trained(small_vae(), binary()), binary()
    with FRESH.Pool(1) as pool:
        assert torch.equal(pool.apply(score, (vae, x)), score(vae, x))
