"""Whole blocks weighed by graphs: the programs' bits where nothing is compiled; the programs weigh what cannot be traced."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.overrides import TorchFunctionMode

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    SkipMissing,
    WithMask,
    bernoulli,
    defensive,
    load_evidence,
    normal,
    posteriors,
    priors,
    save_evidence,
    widened,
)
from pyro_vae.common import flat_program, torch_private
from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.inductor import compiler
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.importance import block_layout, estimator, sampler, weighing
from pyro_vae.evidence.importance.accumulator import RowBlock
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.programs import flat_evaluation
from tests.helpers.bits import same
from tests.helpers.environment import HEAVY
from tests.helpers.importance import Chain, GammaPoisson, log_likelihood
from tests.helpers.small import binary, small_vae

K = 140  # two whole blocks of 64 particles, and 12 particles


def both(model, guide, x, *context, k=K, **options):
    """The evidence of the programs, and that of a graph."""
    run = partial(log_likelihood, model, guide, x, *context, num_samples=k, **options)
    return run(engine="eager"), run(engine="trace")


def check_traced(*args, **options):
    eager, traced = both(*args, **options)
    assert "operations traced" in traced.engine_note and "programs themselves" not in traced.engine_note
    assert same(traced, eager) and traced.engine == eager.engine == "eager" and eager.engine_note == ""


def check_refused(why, *args, **options):
    eager, traced = both(*args, **options)
    assert f"weighed by the programs themselves: {why}" in traced.engine_note, traced.engine_note
    assert same(traced, eager)


# the same numbers


def vamp():
    q = Conditional(MLP(6, 4, (8,)), normal)
    return small_vae(priors.VampPrior(q, 5, 6), posterior=q)


def batch_norm():
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Flatten(0, -2), nn.BatchNorm1d(8), nn.Linear(8, 6))
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return VAE(priors.StandardNormal(2), Conditional(decoder, bernoulli), Conditional(encoder, normal))


def dropout():
    return VAE(
        priors.StandardNormal(2),
        Conditional(nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)), bernoulli),
        Conditional(nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)), normal),
    )


VAES = {
    "bernoulli": small_vae,
    "normal": partial(small_vae, likelihood=normal, features=2),
    "vamp": vamp,
    "flow": lambda: small_vae(posterior=posteriors.FlowPosterior(MLP(6, 64), 2, transforms=1)),
    "dropout": dropout,
    "batch norm": batch_norm,
    "double": lambda: small_vae().double(),
}


@pytest.mark.parametrize(
    "name", VAES if HEAVY else [name for name in VAES if name != "double"]
)  # oracles are in double
def test_a_graph_computes_the_bits_of_the_programs(name):
    torch.manual_seed(0)
    vae = VAES[name]()
    check_traced(vae.model, vae.guide, binary(70).to(next(vae.parameters())))


PROPOSALS = (GUIDE, defensive(0.15), widened(1.3), Proposal(0.1, 1.2))
SUPPORTS = [(Chain, p) for p in PROPOSALS if HEAVY or p != widened(1.3)]  # the last is widened too
SUPPORTS += [(GammaPoisson, p) for p in PROPOSALS[0 if HEAVY else -1 :]]


@pytest.mark.parametrize(("oracle", "proposal"), SUPPORTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_whatever_the_proposal_the_supports_and_the_blocks(oracle, proposal):
    o = oracle()
    check_traced(o.model, o.guide, o.x[:100], proposal=proposal)


def test_under_a_target_and_with_fewer_rows_than_a_block():
    o = Chain(40)
    check_traced(o.model, o.guide, o.x, k=120, target_se=0.05)


def contexts(x, c):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.StudentT(4.0, z, 1.0), obs=x)


def of_context(x, c):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + c) / 2, 0.9))


def masked(program):
    def run(x):
        with poutine.mask(mask=x > -1):
            program(x)

    return run


def classes(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x)


def of_class(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=-(x[:, None] - torch.arange(3.0)).square() / 2))


def test_contexts_masks_and_classes():
    torch.manual_seed(0)
    x, c = torch.randn(2, 70)
    check_traced(contexts, of_context, x, c)
    o = Chain(70)
    check_traced(masked(o.model), masked(o.guide), o.x)
    check_traced(classes, of_class, x)


def test_missing_values():
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(2),
        SkipMissing(Conditional(MLP(2, 6, (8,)), bernoulli)),
        Conditional(WithMask(MLP(12, 4, (8,))), normal),
    )
    x = binary(70)
    x[torch.rand(70, 6, generator=torch.Generator().manual_seed(1)) < 0.2] = torch.nan
    check_traced(vae.model, vae.guide, x)


def test_particles_as_rows():
    torch.manual_seed(0)
    vae = batch_norm()
    eager, traced = both(vae.model, vae.guide, binary(70))
    assert "rows" in traced.vectorizing and same(eager, traced) and "operations traced" in traced.engine_note
    check_refused(
        "particles are run one after the other", vae.model, vae.guide, binary(8), k=600, vectorize_particles=False
    )


def test_weights_of_zero_are_no_reason_to_look():
    """A guide that leaves the prior's support now and then: log w is −∞ there, in a graph too."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(torch.ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.abs(), 1.0))

    eager, traced = both(model, guide, torch.linspace(0.1, 2, 64))
    assert same(eager, traced) and "programs themselves" not in traced.engine_note


# what is not traced


def test_a_program_that_reads_a_number_back():
    o = Chain(64)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, max(1.0, 1e-3 * z2.abs().max().item())), obs=x)

    check_refused("Tensor.item() reads numbers back (after site 'z2')", model, o.guide, o.x)


def test_control_flow_by_the_data():
    o = Chain(64)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal((0.3 if x.mean() < 50 else 0.1) * x, 0.9))
            pyro.sample("z2", dist.Normal(0.4 * z1 + 0.4 * x, 0.8))

    check_refused("Tensor.__bool__() reads numbers back", o.model, guide, o.x)


def counting(step):
    """A guide that counts its runs: its scale does not depend on that, or hardly."""
    o, calls = Chain(64), [0]

    def guide(x):
        calls[0] += 1
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.3 * x, 0.9 + step * calls[0]))
            pyro.sample("z2", dist.Normal(0.4 * z1 + 0.4 * x, 0.8))

    return o, guide


def test_a_number_of_pythons_own_that_changes():
    o, guide = counting(1e-9)
    traced = log_likelihood(o.model, guide, o.x, num_samples=K, engine="trace")
    assert "two traces differ" in traced.engine_note and "A number of the programs' own changes" in traced.engine_note


def test_noise_of_numpys():
    o = Chain(64)

    def guide(x):
        np.random.seed(0)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.3 * x, 0.9))
            pyro.sample("z2", dist.Normal(0.4 * z1 + 0.4 * x, 0.8 + 0 * np.random.rand()))

    check_traced(o.model, guide, o.x)  # the same number at each run is a constant


def test_a_frozen_number_is_refused_by_the_check(monkeypatch):
    """Broken: traces are not compared."""
    monkeypatch.setattr(flat_evaluation, "check_traces", lambda flat, other: None)
    o, guide = counting(1e-9)
    traced = log_likelihood(o.model, guide, o.x, num_samples=K, engine="trace")
    assert "weighed by the programs themselves: its log weights are off by" in traced.engine_note


def test_what_is_invalid_later_is_named_as_the_programs_name_it():
    o = Chain(200)
    o.x[130] = 100.0

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Gamma(torch.where(x == 100, -1.0, 2.0), 1 + z2.square()), obs=x.abs() + 0.1)

    for engine in ("eager", "trace"):
        with pytest.raises(ProgramError, match=r"site 'x' of the model: Gamma has concentration -1 for rows \[130\]"):
            log_likelihood(model, o.guide, o.x, num_samples=K, engine=engine)


def test_nan_weights_are_named_too():
    o = Chain(200)
    o.x[[130, 131]] = 100.0

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(torch.where(x == 100, torch.nan, z2), 1.0), obs=x)

    for engine in ("eager", "trace"):
        with pytest.raises(ProgramError, match=r"NaN or \+inf for rows \[130, 131\], from site 'x' of the model"):
            log_likelihood(model, o.guide, o.x, num_samples=K, engine=engine)


def covariance(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        matrix = torch.eye(2) + z[..., None] * z[..., None, :]
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=matrix), obs=x)


def of_covariance(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).expand([len(x), 2]).to_event(1))


def test_checks_of_a_factor_stay_in_the_graph_and_are_not_compiled():
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    check_traced(covariance, of_covariance, x)
    assert (
        "factorises matrices"
        in log_likelihood(covariance, of_covariance, x, num_samples=K, engine="compile").engine_note
    )


# compiled


def other_digits(by):
    """Stands for the compiler: a graph whose log w are off."""

    def compile_(flat, block):
        def run(*inputs):
            log_w, flag = flat.module.forward(*inputs)
            return [log_w + by, flag]

        return run

    return compile_


def test_parts_and_continuations_of_compiled_evidence_are_the_whole_to_the_bit(monkeypatch, tmp_path):
    monkeypatch.setattr(weighing, "compile_flat", other_digits(1e-10))
    o = Chain(150)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=300, engine="compile")
    whole = run()
    assert whole.engine == "compiled" and not same(whole, run(engine="eager"))
    parts = [run(rows=range(0, 64)), *(run(rows=range(64, 150), particles=k) for k in (range(101), range(101, 300)))]
    assert same(Evidence.merge(parts), whole) and Evidence.merge(parts).engine == "compiled"
    save_evidence(run(num_samples=100), tmp_path / "some")
    some = load_evidence(tmp_path / "some")
    grown = run(resume=some, engine="auto")  # goes on as it began
    assert some.engine == grown.engine == "compiled" and same(grown, whole)
    mixed = Evidence.merge([run(particles=range(100)), run(particles=range(100, 300), engine="trace")])
    assert mixed.engine == "compiled and eager" and mixed.summary()["engine"] == mixed.engine


def test_a_compiler_that_goes_wrong_is_not_used(monkeypatch):
    monkeypatch.setattr(weighing, "compile_flat", other_digits(1e-3))
    o = Chain(64)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=K)
    wrong = run(engine="compile")
    assert "not compiled: its log weights are off by 0.001" in wrong.engine_note
    assert wrong.engine == "eager" and same(wrong, run(engine="eager"))


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_inductor_computes_the_same_to_rounding():
    vae = small_vae(seed=0)
    run = partial(log_likelihood, vae.model, vae.guide, binary(64), num_samples=K)
    compiled, eager = run(engine="compile"), run(engine="eager")
    assert compiled.engine == "compiled" and "; compiled in" in compiled.engine_note
    torch.testing.assert_close(compiled.log_px, eager.log_px, rtol=0, atol=1e-5)


def test_without_a_compiler_the_trace_goes_on(monkeypatch):
    monkeypatch.setattr("pyro_vae.common.inductor.compiler", lambda: None)
    o = Chain(64)
    evidence = log_likelihood(o.model, o.guide, o.x, num_samples=K, engine="compile")
    assert "not compiled: no C++ compiler" in evidence.engine_note and evidence.engine == "eager"


# the choice


def test_auto_goes_by_the_work(monkeypatch):
    monkeypatch.setattr(weighing, "compile_flat", other_digits(0.0))
    monkeypatch.setattr(weighing, "compiler", lambda: "g++")
    o = Chain(150)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=300)
    assert run().engine_note == ""  # eight whole blocks
    monkeypatch.setattr(weighing, "WORTH_TRACE", 8)
    monkeypatch.setattr(weighing, "WORTH_FIRST", 8)
    monkeypatch.setattr(estimator, "WORTH_FIRST", 8)
    assert "operations traced" in run().engine_note and run(particles=range(100)).engine_note == ""
    monkeypatch.setattr(weighing, "GAIN", 1.0)
    assert "compiled in" in run().engine_note and "compiled in" in run(particles=range(100)).engine_note
    assert "compiled in" not in run(num_samples=200).engine_note  # six


def test_an_engine_that_is_none_is_refused():
    o = Chain(3)
    with pytest.raises(UsageError, match="engine='graph': choose one of auto, eager, trace, compile"):
        log_likelihood(o.model, o.guide, o.x, engine="graph")


@pytest.mark.parametrize("name", [torch_private.MODE, torch_private.MAKE_FX])
def test_a_torch_without_a_tracer_weighs_by_the_programs(name, monkeypatch):
    find = torch_private.find
    monkeypatch.setattr(torch_private, "find", lambda path: None if path == name else find(path))
    o = Chain(64)
    check_refused(f"torch has no {name}", o.model, o.guide, o.x)


# what the loop over particles does


class Reads(TorchFunctionMode):
    """Counts what is read back."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in flat_program.READS_OF
        return func(*args, **(kwargs or {}))


def test_one_thing_is_read_back_for_a_group_of_blocks(monkeypatch):
    """The flags: neither log w, nor sums, nor the largest weights, nor anything whose shape depends on numbers."""
    depends, counted = [], []

    def note(operation, args, kwargs):
        try:
            return flat_program.checked_operation(operation, args, kwargs)
        except flat_program.Untraceable as why:
            depends.append(str(why))
            return operation(*args, **kwargs)

    filling = sampler.Sampler.filling

    def watched(self, sums, problem, particles):
        self.graph(sums, problem, 0)  # made before
        with Reads() as reads, torch_private.dispatching(note):
            yield from filling(self, sums, problem, particles)
        counted.append(reads.count)

    monkeypatch.setattr(sampler.Sampler, "filling", watched)
    o = Chain(128)
    log_likelihood(o.model, o.guide, o.x, num_samples=64 * 100, engine="trace", proposal=defensive(0.25))
    # two groups of up to 64 blocks a block of rows, and the programs' own reads for the guide's ELBO, whose draws are few
    assert [n for n in counted if n <= 2] == [2, 2]
    assert not [why for why in depends if "_local_scalar_dense" not in why]


def test_out_of_memory_in_a_graph_is_left_to_the_programs_and_said(monkeypatch):
    calls = []

    def too_large(self, *inputs):
        calls.append(1)
        if len(calls) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *inputs)

    original = flat_program.FlatProgram.__call__
    o = Chain(128)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=64 * 6)
    eager = run(engine="eager")
    monkeypatch.setattr(flat_program.FlatProgram, "__call__", too_large)
    evidence = run(engine="trace")
    assert same(evidence, eager) and "from here on: a whole block does not fit into memory" in evidence.engine_note


def test_random_state_and_parameters_stay():
    vae, x = small_vae(), binary(64)
    before, weights = torch.get_rng_state(), [p.clone() for p in vae.parameters()]
    log_likelihood(vae.model, vae.guide, x, num_samples=K, engine="trace")
    assert torch.equal(torch.get_rng_state(), before) and vae.training
    assert all(map(torch.equal, weights, vae.parameters())) and all(p.grad is None for p in vae.parameters())


# the layout of blocks is the evidence's


def test_larger_blocks_are_part_of_the_evidence(monkeypatch, tmp_path):
    """As on a GPU: 256 particles at a time."""
    o = Chain(128)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=700)
    small = run()
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(estimator, "layout_on", lambda *_: (64, 64 * 256))
        whole, some = run(), run(num_samples=300)
        assert same(run(engine="trace"), whole)
        save_evidence(some, tmp_path / "some")
    assert [b.size for b in whole.row_blocks] == [256, 256] and not same(small, whole)
    assert (small.log_px - whole.log_px).abs().max() < 8 * math.hypot(small.mc_se.max(), whole.mc_se.max())
    some = load_evidence(tmp_path / "some")
    assert same(run(resume=some), whole)  # on a CPU, in the blocks that it began with
    with pytest.raises(UsageError, match="blocks of 16384 and of 4096"):
        Evidence.merge([some, run(particles=range(300, 700))])


def test_a_gpus_blocks_of_rows_are_the_evidences_too(monkeypatch, tmp_path):
    """As on a GPU: 256 rows and 20 particles at a time."""
    o = Chain(300)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=70)
    small = run()
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(block_layout, "layout_on", layout := lambda *_: (256, 256 * 20))
        on_gpu.setattr(estimator, "layout_on", layout)
        whole, some = run(), run(num_samples=40)
        parts = [run(rows=range(256)), run(rows=range(256, 300))]
        with pytest.raises(UsageError, match="start at a multiple of 256"):
            run(rows=range(64, 300))
        save_evidence(some, tmp_path / "some")
    assert [len(b.rows) for b in whole.row_blocks] == [256, 44] and same(Evidence.merge(parts), whole)
    assert (small.log_px - whole.log_px).abs().max() < 8 * math.hypot(small.mc_se.max(), whole.mc_se.max())
    assert same(run(resume=load_evidence(tmp_path / "some")), whole)  # on a CPU
    with pytest.raises(UsageError, match="blocks of 5120 and of 4096"):
        Evidence.merge([whole, run(rows=range(64))])
    with pytest.raises(UsageError):
        Evidence.merge([whole, run(rows=range(64, 128))])


@pytest.mark.parametrize(("rows", "size"), [(40, 64), (64, 64), (65, 256), (300, 256)])
def test_evidence_goes_on_in_blocks_of_as_many_rows(rows, size):
    blocks = [RowBlock(range(start, min(start + size, rows)), 10) for start in range(0, rows, size)]
    found, _ = block_layout.layout_on(torch.device("cpu"), 10, SimpleNamespace(row_blocks=blocks), "block")
    assert found == size and block_layout.layout_on(torch.device("cuda"), 5000, None, "block") == (256, 256 * 1000)
    assert block_layout.layout_on(torch.device("cpu"), 5000, None, "block") == (64, 4096)


@pytest.mark.parametrize("behind", [False, True], ids=["at once", "a block later"])
def test_what_a_graph_doubts_is_weighed_by_the_programs_and_the_rest_counts_once(behind, monkeypatch):
    """Draws that are seldom far out have another density there, which the graph leaves to the programs."""
    monkeypatch.setattr(sampler, "computes_behind", lambda device: behind)  # as on a GPU

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
            scale = torch.where(z[..., :1] > 6, 2.0, 1.0) if is_doubtful((z > 6).any()) else torch.ones(())
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    x = 0.3 * torch.randn(192, 2, generator=torch.Generator().manual_seed(0))
    x[100] = 12.0  # neither of the first rows nor of the last, which are looked at before
    asked = []

    def counted(x):
        asked.append(len(x))
        return model(x)

    eager, traced = both(model, guide, x, k=1000)
    assert "operations traced" in traced.engine_note and same(traced, eager)
    log_likelihood(counted, guide, x, num_samples=1000, engine="trace")
    assert asked.count(64) > 3  # some blocks, beside the first looks
