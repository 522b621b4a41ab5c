"""The parts of a step by one graph: to the bits of one part after the other, or part by part, and said so."""

from functools import lru_cache, partial

import pyro
import pytest
import torch
from torch import nn

from pyro_vae import MLP, VAE, Bound, Conditional, StandardNormal, bernoulli, dreg, fit, iwae, normal
from pyro_vae.common import inductor
from pyro_vae.common.inductor import compiler
from pyro_vae.priors.vamp import VampPrior
from pyro_vae.training.engines import part_products, parts_at_once, product_sums
from pyro_vae.training.engines.part_products import same_bits
from pyro_vae.training.engines.parts_at_once import AtOnce, side_by_side
from pyro_vae.training.engines.product_sums import by_panels, by_tiles, panels
from tests.helpers.environment import HEAVY

X = torch.rand(256, 64, generator=torch.Generator().manual_seed(1)).round()
NEEDS_COMPILER = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def small(latents=4, likelihood=None):
    pyro.set_rng_seed(0)
    posterior = Conditional(MLP(64, 2 * latents, (32,)), normal)
    return VAE(StandardNormal(latents), likelihood or Conditional(MLP(latents, 64, (32,)), bernoulli), posterior)


def vamp():
    pyro.set_rng_seed(0)
    posterior = Conditional(MLP(64, 8, (32,)), normal)
    return VAE(VampPrior(posterior, 5, 64, bounds=(0, 1)), Conditional(MLP(4, 64, (32,)), bernoulli), posterior)


def tied():
    """One weight matrix in two layers, of which one is transposed: two gradients of one parameter, added up."""
    pyro.set_rng_seed(0)
    inner = nn.Linear(4, 64)

    def logits(z):
        return inner(nn.functional.relu(nn.functional.linear(inner(z), inner.weight.T)))

    likelihood = Conditional(MLP(4, 64, (32,)), lambda out: bernoulli(out + logits(out[..., :4])))
    likelihood.inner = inner
    return small(likelihood=likelihood)


def convolution():
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.Unflatten(-1, (2, 16)), nn.ConvTranspose1d(2, 1, 4, 4), nn.Flatten(-2))
    return small(likelihood=Conditional(net, bernoulli))


def linear():
    """Of the fewest kernels, each of which a compiler takes seconds for."""
    pyro.set_rng_seed(0)
    return VAE(StandardNormal(4), Conditional(nn.Linear(4, 64), bernoulli), Conditional(nn.Linear(64, 8), normal))


PROGRAMS = {
    "mlp": small,
    "one-latent": partial(small, 1),
    "vamp": vamp,
    "tied": tied,
    "convolution": convolution,
    "linear": linear,
}


def train(make, engine="trace", **more):
    vae = make()
    given = {
        "shards": 4,
        "batch_size": 64,
        "epochs": 3,
        "engine": engine,
        "validation": X[:9],
        "verbose": False,
    } | more
    result = fit(vae, X, **given)
    return [p.detach().clone() for p in vae.parameters()], result


@lru_cache
def usual():
    """A run that several tests compare with: only read."""
    return train(small)


def part_by_part(monkeypatch):
    monkeypatch.setattr(AtOnce, "__call__", lambda *_: None)
    monkeypatch.setattr(AtOnce, "prove", lambda *_: None)


@pytest.fixture
def counted(monkeypatch):
    """How many steps were made at once, and how many were not."""
    counts, call = {True: 0, False: 0}, AtOnce.__call__

    def counting(*args):
        sums = call(*args)
        counts[sums is not None] += 1
        return sums

    monkeypatch.setattr(AtOnce, "__call__", counting)
    return counts


def assert_same(a, b):
    (weights, result), (others, other) = a, b
    assert all(map(torch.equal, weights, others))
    assert [record["loss"] for record in result.history] == [record["loss"] for record in other.history]


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, "trace") for name in PROGRAMS if name != "linear"),
        *(pytest.param(name, "compile", marks=NEEDS_COMPILER) for name in ("linear", *(["mlp"] if HEAVY else []))),
    ],
)
def test_training_has_the_bits_of_part_by_part(name, engine, monkeypatch, counted, request):
    if name != "convolution":  # whose particles are rows: probes tell
        request.getfixturevalue("examined")
    at_once = train(PROGRAMS[name], engine)
    assert counted[True] > 0 or "parts one after the other" in str(at_once[1].engine)
    if name in ("mlp", "vamp", "linear"):
        assert counted == {True: 8, False: 3}  # the first step of each epoch is proven; the first of all declares
    part_by_part(monkeypatch)
    assert_same(at_once, train(PROGRAMS[name], engine))


@pytest.mark.usefixtures("examined")
@pytest.mark.parametrize("options", [{}, {"estimator": dreg}], ids=["iwae", "dreg"])
def test_training_by_several_particles_has_the_bits_of_part_by_part(options, monkeypatch, counted):
    objective = {"objective": Bound(iwae, num_particles=3, **options)}
    at_once = train(small, **objective)
    assert counted[True] > 0 or options
    part_by_part(monkeypatch)
    assert_same(at_once, train(small, **objective))


@pytest.mark.usefixtures("examined")
def test_sums_in_another_order_are_found_and_not_used(monkeypatch, counted):
    wanted = usual()

    def chained(a, b, out, spare, within):
        torch.mm(a[0], b[0], out=out)
        for x, y in zip(a[1:], b[1:], strict=True):
            out.addmm_(x, y)

    monkeypatch.setattr(product_sums, "add_up", chained)
    counted[True] = 0
    found = train(small)
    assert counted[True] == 0 and "by one graph they have other bits" in str(found[1].engine)
    assert_same(found, wanted)


@pytest.mark.usefixtures("examined")
def test_products_whose_bits_depend_on_the_number_of_rows_are_taken_part_by_part(monkeypatch, counted):
    wanted = usual()
    counted[True] = 0
    monkeypatch.setattr(part_products, "same_bits", lambda *_: False)
    assert_same(train(small), wanted)
    assert counted[True] == 8


def test_what_draws_by_what_it_computed_is_part_by_part(counted):
    def model(x):
        pyro.module("likelihood", likelihood)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        pyro.module("posterior", posterior)
        with pyro.plate("rows", len(x)):
            mean, scale = posterior(x).chunk(2, -1)
            pyro.sample("z", pyro.distributions.Gamma(mean.exp(), scale.exp()).to_event(1))

    pyro.set_rng_seed(0)
    likelihood, posterior = Conditional(MLP(4, 64, (32,)), bernoulli), MLP(64, 8, (32,))
    result = fit((model, guide), X, shards=4, batch_size=64, epochs=2, engine="trace", validation=X[:9], verbose=False)
    assert counted[True] == 0 and "what a part draws depends on what it computes" in str(result.engine)


SHAPES = [(4, 20, 900, 500), (8, 16, 3, 700), (2, 8, 1, 40), (1, 8, 5, 6), (2, 4, 301, 2000), (4, 8, 9, 1)]
SHAPES += [(4, 16, 4, 32), (8, 16, 32, 8), (2, 64, 2, 3)]  # of which a library may begin a sum with what it is added to


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sum_by_panels_has_the_bits_of_the_tree(shape):
    a, b = factors(shape)
    assert torch.equal(by_panels(a, b), tree(a, b))


def factors(shape, dtype=torch.float32):
    count, rows, p, q = shape
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, rows, n, dtype=dtype, generator=generator) for n in (p, q)]


def tree(a, b):
    sums = [x.T @ y for x, y in zip(a, b, strict=True)]
    while len(sums) > 1:
        sums = [x + y for x, y in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(8, 16, 600, 1100), (4, 20, 257, 513), (2, 8, 30, 2), (1, 8, 300, 20)], ids=str)
def test_a_sum_by_tiles_has_the_bits_of_the_tree(shape, dtype):
    a, b = factors(shape, dtype)
    within = product_sums.pairs_within(shape, dtype, torch.get_num_threads())
    # else the next lines would be of panels; at a tile's edge some processors round doubles otherwise
    assert within is not None or dtype == torch.float64
    assert torch.equal(by_tiles(a, b), tree(a, b))
    assert within is None or torch.equal(product_sums.kernels()[dtype](a, b, False), tree(a, b))
    across = [t.mT.contiguous().mT for t in (a, b)]
    assert within is None or torch.equal(by_tiles(*across), by_tiles(a, b))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_tiles_would_round_otherwise_is_summed_by_panels(shape, monkeypatch):
    def in_order(a, b, within):
        return sum(x.T @ y for x, y in zip(a[1:], b[1:], strict=True)) + a[0].T @ b[0]

    a, b = factors(shape)
    assert torch.equal(
        by_tiles(a, b), tree(a, b)
    )  # two of the shapes are vectors, which a BLAS sums by other functions
    product_sums.pairs_within.cache_clear()
    monkeypatch.setattr(product_sums, "kernels", lambda: {torch.float32: in_order})
    assert torch.equal(by_tiles(a, b), tree(a, b))
    monkeypatch.setattr(product_sums, "kernels", dict)
    assert torch.equal(by_tiles(a, b), tree(a, b))
    product_sums.pairs_within.cache_clear()


def test_factors_that_do_not_go_together_are_no_memory_to_read():
    a, b = factors((4, 8, 30, 20))
    for other in (b.double(), b[:2], b[:, :4]):
        with pytest.raises((RuntimeError, IndexError)):
            by_tiles(a, other)
    for p, q in ((0, 20), (30, 0)):
        assert by_tiles(a[..., :p], b[..., :q]).shape == (p, q)
    assert torch.equal(by_tiles(a[:, :0], b[:, :0]), torch.zeros(30, 20))


@pytest.mark.parametrize("why", ["no compiler", "it gave up"])
def test_without_a_compiler_there_are_no_tiles(why, monkeypatch):
    if why == "no compiler":
        monkeypatch.setattr(inductor, "compiler", lambda: None)
        source = product_sums.SOURCE.read_text(encoding="utf-8")
    else:
        source = "this is no C++"
    assert inductor.compile_cpp(source) is None
    monkeypatch.setattr(product_sums, "compile_cpp", lambda source: None)
    assert product_sums.kernels.__wrapped__() == {}


@pytest.mark.parametrize("size", [(1, 9), (9000, 9000), (3, 10**6), (10**6, 3), (10**6, 1), (601, 1000)], ids=str)
def test_no_panel_is_a_row_alone(size):
    count = panels(*size)
    assert count == 1 or (size[0] // count >= 2 and size[1] > 1)


def test_an_example_tells_whether_rows_are_rounded_alike():
    x, w = torch.empty(32, 20), torch.empty(20, 10)
    assert same_bits(None, x, w, 4) and same_bits(torch.empty(10), x, w, 4) and same_bits(torch.empty(32, 10), x, w, 4)
    assert not same_bits(None, x.bfloat16(), w, 4) and not same_bits(None, x.int(), w.int(), 4)


def test_parts_that_do_not_follow_each_other_in_memory_are_copied():
    a = torch.arange(24.0).view(8, 3)
    for parts in (a.split(2), a.flip(0).split(2), (a[4:6], a[:2]), a.T.contiguous().T.split(4)):
        assert torch.equal(side_by_side(parts), torch.stack(list(parts)))
    assert parts_at_once.stacked([(part, part[:, 0]) for part in a.split(4)])[1].shape == (2, 4)
