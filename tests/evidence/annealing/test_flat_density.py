"""Annealing on graphs of the densities: the bits that the programs give, and the programs where a graph cannot be trusted."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, normal, posteriors
from pyro_vae.common.notes import Notes
from pyro_vae.errors import DeviceLostError, ProgramError
from pyro_vae.evidence.annealing import flat_density
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bracket
from pyro_vae.evidence.annealing.densities import Densities
from pyro_vae.programs.problem import Problem
from tests.helpers.environment import HEAVY
from tests.helpers.importance import Chain, GammaPoisson
from tests.helpers.pilots import FIRST, TOTAL, short_pilots
from tests.helpers.recording import Again, NumbersRead
from tests.helpers.small import binary, small_vae

ais = partial(ais, num_temperatures=5, num_chains=4, leapfrog_steps=2, step_size=0.3, verbose=False)


@pytest.fixture
def notes(monkeypatch):
    """Graphs from the first evaluation on, and short pilots; the list is filled with what they note."""
    short_pilots(monkeypatch)
    found = []

    class Heard(Notes):
        def add(self, line):
            super().add(line)
            found.append(line)

    graphs = flat_density.DensityGraphs

    monkeypatch.setattr(flat_density, "WORTH_TRACE", 0)
    monkeypatch.setattr(flat_density, "WORTH_FIRST", 0)
    monkeypatch.setattr("pyro_vae.evidence.annealing.ais.DensityGraphs", lambda planned: graphs(planned, Heard()))
    return found


def by_programs(monkeypatch, run):
    with monkeypatch.context() as never:
        never.setattr(flat_density, "WORTH_TRACE", 10**9)
        never.setattr(flat_density, "WORTH_FIRST", 10**9)
        return run()


def check_same(monkeypatch, run):
    traced, programs = run(), by_programs(monkeypatch, run)
    assert torch.equal(traced.log_w, programs.log_w) and torch.equal(traced.acceptance, programs.acceptance)
    return traced


def of_vae(posterior=normal):
    torch.manual_seed(0)
    vae = small_vae(posterior=posterior if posterior is normal else posterior())
    return vae.model, vae.guide, binary(12)


def of_oracle(oracle):
    return oracle.model, oracle.guide, oracle.x[:12]


PAIRS = {
    "bernoulli": of_vae,
    "flow": lambda: of_vae(lambda: posteriors.FlowPosterior(MLP(6, 64), 2, transforms=1)),
    "two sites": lambda: of_oracle(Chain(12)),
    "positive": lambda: of_oracle(GammaPoisson()),
}


WALKS = [("bernoulli", "prior"), ("flow", "guide"), ("two sites", "prior"), ("positive", "guide")]
OTHERS = [("bernoulli", "guide"), ("flow", "prior"), ("two sites", "guide"), ("positive", "prior")]


@pytest.mark.parametrize(("name", "start"), WALKS + (OTHERS if HEAVY else []))
def test_chains_walk_as_on_the_programs(name, start, notes, monkeypatch):
    check_same(monkeypatch, lambda: ais(*PAIRS[name](), start=start))
    assert any("operations traced" in note for note in notes)


def test_chunks_of_two_sizes_a_pilot_and_the_way_back(notes, monkeypatch):
    o = Chain(12)
    check_same(monkeypatch, lambda: ais(*of_oracle(o), chunk_size=20, step_size=None))
    assert len(notes) == 2 and all("operations traced" in note for note in notes)  # for 5 rows, and for the last 2

    def both_ends():
        return bracket(*of_oracle(o), num_samples=20, num_temperatures=4, num_chains=3, refresh=2, verbose=False)

    traced, programs = both_ends(), by_programs(monkeypatch, both_ends)
    assert torch.equal(traced.upper, programs.upper) and torch.equal(traced.lower, programs.lower)


def covariance(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        matrix = torch.where(z[..., :1, None] > 0.5, 0.0, 1.0) * torch.eye(2)
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=matrix), obs=x)


def of_covariance(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.full((2,), -2.0), 0.3).expand([len(x), 2]).to_event(1))


def test_a_singular_covariance_on_the_way_is_a_rejection_still(notes, monkeypatch):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    check_same(
        monkeypatch, lambda: ais(covariance, of_covariance, x, start="guide", step_size=1.0, num_temperatures=10)
    )


def test_a_program_that_reads_a_number_back(notes, monkeypatch):
    o = Chain(12)

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0 if z1.abs().max() < 1e6 else 2.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    check_same(monkeypatch, lambda: ais(model, o.guide, o.x))
    assert notes == ["evaluated by the programs themselves: Tensor.__bool__() reads numbers back (after site 'z1')"]


def test_invalid_parameters_are_named_as_ever(notes):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Gamma(2.5 - z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 0.1).expand([len(x)]))

    with pytest.raises(ProgramError, match="site 'x' of the model: Gamma has concentration -"):
        ais(model, guide, torch.full((5,), 1e-6), start="guide", num_temperatures=40, leapfrog_steps=10)


def test_a_frozen_number_is_refused_by_the_check(notes, monkeypatch):
    """Broken: traces are not compared; the model counts its runs."""
    monkeypatch.setattr("pyro_vae.programs.flat_evaluation.check_traces", lambda flat, other: None)
    o, calls = Chain(12), [0]

    def model(x):
        calls[0] += 1
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0 + 1e-9 * calls[0]), obs=x)

    ais(model, o.guide, o.x)
    assert notes[-1] == "evaluated by the programs themselves: its values are not those of the programs"


@pytest.fixture
def recorders(monkeypatch):
    """As on a GPU: transitions are recorded, by what runs them again."""
    made = []

    def recorder(device):
        made.append(Again())
        return made[-1]

    monkeypatch.setattr(flat_density, "on_device", recorder)
    return made


@pytest.mark.parametrize("name", PAIRS if HEAVY else ["flow", "two sites"])  # those of one site are traced alike
def test_recorded_transitions_are_those_of_the_programs(name, notes, recorders, monkeypatch):
    def run():
        return ais(*PAIRS[name](), step_size=None, chunk_size=16)  # three chunks of four rows, and a pilot

    check_same(monkeypatch, run)
    used = [r for r in recorders if r.replays]
    assert len(used) == 1 and used[0].replays > 3 * (FIRST + TOTAL + 5) - 5 and len(notes) == 1


def test_a_recording_that_fails_or_is_flagged_leaves_the_programs_numbers(notes, recorders, monkeypatch):
    o = Chain(8)
    with monkeypatch.context() as broken:
        broken.setattr(Again, "replay", lambda self: self.results[-1].fill_(True))
        check_same(monkeypatch, lambda: ais(*of_oracle(o)))

    def fails(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Again, "record", fails)
    check_same(monkeypatch, lambda: ais(*of_oracle(o)))
    assert notes[-1] == "transitions are not recorded: operation not permitted when stream is capturing"


def test_no_transition_is_waited_for(notes, recorders):
    """What is read back is the same, however many transitions there are."""
    counts = []
    for temperatures in (5, 9):
        with NumbersRead() as reads:
            ais(*of_oracle(Chain(8)), num_temperatures=temperatures, step_size=None)
        counts.append(reads.count)
    assert recorders and counts[1] - counts[0] == 2 * 4  # the temperatures themselves, which are on the host


@pytest.mark.parametrize("fails", [False, True], ids=["wrong numbers", "an error of wrong numbers"])
def test_one_doubtful_transition_has_all_of_its_walk_made_again(fails, notes, recorders, monkeypatch):
    """Broken numbers from a transition on that was flagged: nothing of them is left, in the pilot and in the run itself."""
    replay, doubted = Again.replay, []

    def doubtful(self):
        replay(self)
        if self.replays in (20, 50):  # of the pilot, and of what follows it
            doubted.append(self.replays)
            for result in self.results[:-1]:
                result.mul_(float("nan"))
            self.results[-1].fill_(True)
        elif self.replays == 21 and fails:
            raise ValueError("of NaN")

    monkeypatch.setattr(Again, "replay", doubtful)
    check_same(monkeypatch, lambda: ais(*of_oracle(Chain(8)), num_temperatures=30, step_size=None))
    assert doubted


def test_a_device_that_failed_is_asked_nothing():
    class OfTheDevice:
        def __bool__(self):
            raise RuntimeError("CUDA error: device-side assert triggered")

    graphs = flat_density.DensityGraphs(planned=0)

    def run():
        graphs.unread = OfTheDevice()
        raise DeviceLostError("the device failed")

    with pytest.raises(DeviceLostError):
        graphs.trusted(run)
    assert graphs.reads


def test_a_doubt_that_nobody_asks_for_would_be_seen(notes, recorders, monkeypatch):
    replay = Again.replay

    def doubtful(self):
        replay(self)
        if self.replays == 20:
            self.results[0].add_(1.0)
            self.results[-1].fill_(True)

    monkeypatch.setattr(Again, "replay", doubtful)
    monkeypatch.setattr(flat_density.DensityGraphs, "doubted", lambda self: False)
    with pytest.raises(AssertionError):
        check_same(monkeypatch, lambda: ais(*of_oracle(Chain(8)), num_temperatures=30, step_size=None))


def test_a_stale_buffer_is_seen(notes, recorders, monkeypatch):
    """Broken: the rows of the first chunk are those of all."""
    monkeypatch.setattr("pyro_vae.evidence.annealing.recorded_transition.copy_all", lambda own, given: None)
    with pytest.raises(AssertionError):
        check_same(monkeypatch, lambda: ais(*of_oracle(Chain(12)), chunk_size=16))


def test_nothing_is_traced_for_a_few_evaluations():
    o, graphs = Chain(6), flat_density.DensityGraphs(planned=50)
    problem = Problem.of(o.model, o.guide, o.x, seed=0)
    with problem.quiet(0):
        density = Densities(problem, "prior", graphs)
        density(density.draw(3))
    assert not graphs.graphs
